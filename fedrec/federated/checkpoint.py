"""Checkpoints: the server's state and its place in the ledger, replaced in one atomic step; safetensors only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from fedrec.errors import ProtocolError
from fedrec.files import replace_file
from fedrec.models.protocol import ServerState

_VERSION = 2


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What a server needs to go on after a crash.

    Args:
        state: shared parameters and server memory after `round`.
        round: last finished round; 0 before the first.
        run_id: which run this is.
        release_digest: digest of what round `round` released, or "" (without privacy, or before the first round).
        ledger_position: the ledger's position when the checkpoint was written, or None without privacy.
        absences: digest of who was absent in which of the rounds so far; "" where nobody ever was.
    """

    state: ServerState
    round: int
    run_id: str
    release_digest: str = ""
    ledger_position: Mapping[str, Any] | None = None
    absences: str = ""


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Replace the checkpoint file; after a crash at any instruction either the old or the new one is there, whole.

    Privacy:
        Holds released values only, under central trust: safe to publish once its round is recorded in the ledger.
    """
    tensors = {f"shared/{name}": tensor.contiguous() for name, tensor in checkpoint.state.shared.items()}
    tensors |= {f"memory/{name}": tensor.contiguous() for name, tensor in checkpoint.state.memory.items()}
    header = {
        "version": _VERSION,
        "round": checkpoint.round,
        "run_id": checkpoint.run_id,
        "release_digest": checkpoint.release_digest,
        "ledger_position": checkpoint.ledger_position,
        "absences": checkpoint.absences,
    }
    replace_file(path, save(tensors, {"fedrec": json.dumps(header, sort_keys=True)}))


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint file.

    Raises:
        ProtocolError: where the file is missing, damaged or of another version.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})["fedrec"])
            # Copied to where torch aligns: matrix products round by where a matrix lies, and a resumed run is the same.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise ProtocolError(
            f"checkpoint {path} can't be read ({error}); restore it from a backup or start a new run"
        ) from error
    if header.get("version") != _VERSION:
        raise ProtocolError(f"checkpoint {path} has version {header.get('version')}, this fedrec reads {_VERSION}")
    parts: dict[str, dict[str, Any]] = {"shared": {}, "memory": {}}
    for name, tensor in tensors.items():
        part, _, rest = name.partition("/")
        parts[part][rest] = tensor
    return Checkpoint(
        state=ServerState(parts["shared"], parts["memory"]),
        round=header["round"],
        run_id=header["run_id"],
        release_digest=header["release_digest"],
        ledger_position=header["ledger_position"],
        absences=header["absences"],
    )
