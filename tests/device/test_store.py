"""The private store: what a node keeps, refuses and never loses."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import torch

from fedrec.device.store import DeviceStore, PrivateState
from fedrec.errors import PrivacyError, ProtocolError

SHARED = {"items": torch.zeros(2, 3)}


def test_round_asked_for_again_must_bring_the_same_parameters(tmp_path: Path) -> None:
    store = DeviceStore(tmp_path / "s")
    store.take_part("run", "plan", 1, SHARED, max_rounds=9)
    store.take_part("run", "plan", 1, {"items": torch.zeros(2, 3)}, max_rounds=9)
    with pytest.raises(PrivacyError, match="again with other parameters"):
        store.take_part("run", "plan", 1, {"items": torch.ones(2, 3)}, max_rounds=9)


def test_record_that_holds_a_plan_is_on_disk_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[int] = []
    monkeypatch.setattr(os, "fsync", flushed.append)
    store = DeviceStore(tmp_path / "s")
    store.take_part("free", "", 1, SHARED, max_rounds=9)
    assert not flushed, "nothing is spent without a plan"
    store.take_part("run", "plan", 1, SHARED, max_rounds=9)
    assert len(flushed) == 2, "the file and its folder"
    store.take_part("free", "", 2, SHARED, max_rounds=9)
    assert len(flushed) == 4, "the plan's rounds stand in the same file"


def test_node_refuses_more_rounds_than_the_plan_allows(tmp_path: Path) -> None:
    store = DeviceStore(tmp_path / "s")
    store.take_part("run", "plan", 1, SHARED, max_rounds=2)
    store.take_part("run", "plan", 2, SHARED, max_rounds=2)
    store.take_part("run", "plan", 2, SHARED, max_rounds=2)  # a retried round is the same round
    with pytest.raises(PrivacyError, match="its plan allows 2"):
        store.take_part("run", "plan", 3, SHARED, max_rounds=2)


def test_record_survives_a_restart_and_pins_the_plan(tmp_path: Path) -> None:
    DeviceStore(tmp_path / "s").take_part("run", "plan", 1, SHARED, max_rounds=1)
    again = DeviceStore(tmp_path / "s")
    with pytest.raises(PrivacyError, match="pinned plan"):
        again.take_part("run", "another", 1, SHARED, max_rounds=9)
    for number in (2, 0, -5, 10**9):
        with pytest.raises(PrivacyError, match="refuses"):
            again.take_part("run", "plan", number, SHARED, max_rounds=1)


def test_damaged_record_stops_participation(tmp_path: Path) -> None:
    store = DeviceStore(tmp_path / "s")
    store.take_part("run", "plan", 1, SHARED, max_rounds=2)
    for text in ('{"run": ', "[]", '""', '{"run": 3}', '{"run": {}}', '{"run": {"plan": "plan", "rounds": [1]}}'):
        (tmp_path / "s" / "participation.json").write_text(text)
        with pytest.raises(PrivacyError, match="damaged"):
            store.take_part("run", "plan", 1, SHARED, max_rounds=2)


def test_private_state_is_for_its_owner_only_and_comes_back(tmp_path: Path) -> None:
    store = DeviceStore(tmp_path / "s")
    assert store.load_state() == {}
    store.save_state({"vectors": torch.ones(3, 2)})
    mode = stat.S_IMODE((tmp_path / "s" / "private_state.safetensors").stat().st_mode)
    assert mode == 0o600 and stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o700
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
