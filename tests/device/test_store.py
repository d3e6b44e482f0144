"""The private store: what a node keeps to itself."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
import torch

from fedrec.device.store import KNOWN, DeviceStore, PrivateState
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


def test_state_of_the_round_before_stays_so_that_a_round_can_be_asked_for_again(tmp_path: Path) -> None:
    store = DeviceStore(tmp_path / "s")
    for number in (1, 2, 3, 3):
        store.save_round("run", number, {"vectors": torch.full((2, 1), float(number))})
    found = {number: store.load_round("run", number, 2) for number in range(5)}
    assert not found[0] and not found[1], "two rounds are kept"
    assert [found[number]["vectors"][0].item() for number in (2, 3, 4)] == [2, 3, 3]
    assert store.load_round("other run", 3, 2) == {}, "state of another run is not looked at"
    assert store.load_round("run", 3, 5) == {}, "users can't be told apart where their number has changed"


def test_changing_what_was_loaded_does_not_change_the_file(tmp_path: Path) -> None:
    store = DeviceStore(tmp_path / "s")
    store.save_round("run", 1, {"vectors": torch.ones(2, 1)})
    store.load_round("run", 1, 2)["vectors"].zero_()
    assert store.load_round("run", 1, 2)["vectors"].tolist() == [[1], [1]]


def test_users_who_were_never_drawn_are_told_apart() -> None:
    state = PrivateState(3, {})
    state.put(torch.tensor([2]), {"vectors": torch.zeros(1, 2)})
    assert state.tensors[KNOWN].tolist() == [False, False, True]
    state.put(torch.tensor([0]), {})
    assert state.tensors[KNOWN].tolist() == [False, False, True], "nothing was kept of a user of a stateless model"
