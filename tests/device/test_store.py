"""The private store: what a node keeps to itself."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
import torch

from fedrec.device.store import DeviceStore, PrivateState
from fedrec.errors import PrivacyError, ProtocolError


def test_record_of_an_earlier_version_is_not_forgotten(tmp_path: Path) -> None:
    (tmp_path / "participation.json").write_text('{"run": {"plan": "plan", "rounds": {"1": "aa"}}}')
    with pytest.raises(PrivacyError, match=r"participation\.json is of an earlier version.*count these runs as fully"):
        DeviceStore(tmp_path)
    assert (tmp_path / "participation.json").exists()


def test_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ProtocolError, match="can't be made"):
        DeviceStore(tmp_path / "file" / "store")


def test_private_state_is_for_its_owner_only_and_comes_back(tmp_path: Path) -> None:
    store = DeviceStore(tmp_path / "s")
    assert store.load_state() == {}
    store.save_state({"vectors": torch.ones(3, 2)})
    mode = stat.S_IMODE((tmp_path / "s" / "private_state.safetensors").stat().st_mode)
    assert mode == 0o600 and stat.S_IMODE(store.folder.stat().st_mode) == 0o700
    assert torch.equal(store.load_state()["vectors"], torch.ones(3, 2))


def test_damaged_private_state_is_named(tmp_path: Path) -> None:
    store = DeviceStore(tmp_path / "s")
    (tmp_path / "s" / "private_state.safetensors").write_bytes(b"\x80\x04 not tensors")
    with pytest.raises(ProtocolError, match=r"private_state\.safetensors is damaged"):
        store.load_state()


def test_state_of_users_who_were_not_drawn_is_kept() -> None:
    state = PrivateState(3, {"vectors": torch.ones(3, 2)})
    state.put(torch.tensor([1]), {"vectors": torch.full((1, 2), 5.0)})
    assert state.tensors["vectors"].tolist() == [[1, 1], [5, 5], [1, 1]]
    resized = PrivateState(4, {"vectors": torch.ones(3, 2)})
    resized.put(torch.tensor([3]), {"vectors": torch.full((1, 2), 5.0)})
    assert resized.tensors["vectors"].tolist() == [[0, 0], [0, 0], [0, 0], [5, 5]]
