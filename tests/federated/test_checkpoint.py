"""Checkpoints: whole or not at all, and nothing but tensors and JSON."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fedrec.errors import ProtocolError
from fedrec.federated.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from fedrec.models.protocol import ServerState


def example(round_number: int = 3) -> Checkpoint:
    state = ServerState({"items": torch.arange(6.0).reshape(2, 3)}, {"momentum": torch.ones(2, dtype=torch.float64)})
    return Checkpoint(state, round_number, "run", "digest", {"records": 4, "checksum": "ab"})


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "c", example())
    found = read_checkpoint(tmp_path / "c")
    assert (found.round, found.run_id, found.release_digest) == (3, "run", "digest")
    assert found.ledger_position == {"records": 4, "checksum": "ab"}
    assert torch.equal(found.state.shared["items"], example().state.shared["items"])
    assert found.state.memory["momentum"].dtype == torch.float64


def test_same_state_gives_same_bytes(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "a", example())
    write_checkpoint(tmp_path / "b", example())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("keep", [0, 1, 7, 50, 200, -1])
def test_truncated_file_is_refused_with_its_name(tmp_path: Path, keep: int) -> None:
    file = tmp_path / "c"
    write_checkpoint(file, example())
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ProtocolError, match=r"c can't be read"):
        read_checkpoint(file)


def test_pickle_is_refused(tmp_path: Path) -> None:
    torch.save({"items": torch.ones(2)}, tmp_path / "c")
    with pytest.raises(ProtocolError):
        read_checkpoint(tmp_path / "c")


def test_failed_write_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint(tmp_path / "c", example(3))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ProtocolError, match="No space left"):
        write_checkpoint(tmp_path / "c", example(4))
    monkeypatch.undo()
    assert read_checkpoint(tmp_path / "c").round == 3
    assert [path.name for path in tmp_path.iterdir()] == ["c"], "no temporary file is left"
