"""The private store of a node: fitted user state, the pinned plan and the record of rounds it took part in."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from fedrec.errors import PrivacyError, ProtocolError
from fedrec.files import replace_file

_PRIVATE = 0o600


class DeviceStore:
    """Private state and participation on disk; every write is atomic, files are readable by their owner only.

    Args:
        folder: made if missing, with mode 0700.

    Privacy:
        Nothing here is ever sent. The record is what lets a node refuse a server that asks for more than its plan
        allows.
    """

    def __init__(self, folder: Path) -> None:
        """Open or make the store."""
        self._folder = folder
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ProtocolError(
                f"private store {folder} can't be made ({error}); give a folder you may write"
            ) from error

    def take_part(
        self, run_id: str, plan_digest: str, round_number: int, shared: Mapping[str, Tensor], max_rounds: int
    ) -> None:
        """Record participation in a round before any work; the same round of the same run counts once.

        Args:
            run_id: the run.
            plan_digest: digest of the plan that the server announced; the first one of a run is pinned. "" without
                privacy; a record of nothing but such runs need not outlast a power cut.
            round_number: from 1.
            shared: the shared parameters as broadcast; a round asked for again must bring the same.
            max_rounds: how many rounds the plan allows; counted for each run.

        Raises:
            PrivacyError: where the plan changed within the run, more rounds are asked for than the plan allows, or a
                round that was answered is asked for again with other parameters.
        """
        if not 1 <= round_number <= max_rounds:
            raise PrivacyError(
                f"run {run_id} asks for round {round_number}, its plan allows {max_rounds} rounds; this node refuses"
            )
        record = self._read_record()
        run = record.setdefault(run_id, {"plan": plan_digest, "rounds": {}})
        if run["plan"] != plan_digest:
            raise PrivacyError(
                f"run {run_id} announced plan {plan_digest}, this node pinned {run['plan']}; "
                "it takes part in one plan a run"
            )
        asked = _digest(shared)
        known = run["rounds"].get(str(round_number))
        if known not in (None, asked):
            raise PrivacyError(
                f"run {run_id} asks for round {round_number} again with other parameters; a second answer would tell "
                "more than the plan covers: this node refuses"
            )
        if known is not None:
            return
        run["rounds"][str(round_number)] = asked
        content = json.dumps(record, sort_keys=True).encode()
        spends = any(known["plan"] for known in record.values())
        replace_file(self._folder / "participation.json", content, _PRIVATE, durable=spends)

    def save_state(self, state: Mapping[str, Tensor]) -> None:
        """Replace the private state; name -> (num_users, ...). It can be fitted again, so no disk is waited for."""
        content = save({name: tensor.contiguous() for name, tensor in state.items()})
        replace_file(self._folder / "private_state.safetensors", content, _PRIVATE, durable=False)

    def load_state(self) -> dict[str, Tensor]:
        """Return the private state, empty where none was saved.

        Raises:
            ProtocolError: where the file is damaged.
        """
        path = self._folder / "private_state.safetensors"
        if not path.exists():
            return {}
        try:
            return dict(load_file(path))
        except (OSError, SafetensorError) as error:
            raise ProtocolError(
                f"private state {path} is damaged ({error}); delete it, it is fitted again from the node's own data"
            ) from error

    def _read_record(self) -> dict[str, Any]:
        path = self._folder / "participation.json"
        if not path.exists():
            return {}
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            if not all(isinstance(run["plan"], str) and isinstance(run["rounds"], dict) for run in record.values()):
                raise ValueError("a run has no plan or rounds")
        except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
            raise PrivacyError(
                f"participation record {path} is damaged ({error}); restore it from a backup: without it "
                "this node can't know what it has spent and takes no part"
            ) from error
        return dict(record)


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].contiguous().numpy().tobytes())
    return digest.hexdigest()


class PrivateState:
    """Collects the state of a node's users over the batches of a round, row by row.

    Args:
        num_users: users of the node.
        previous: state of earlier rounds, kept for users who are not drawn.
    """

    def __init__(self, num_users: int, previous: Mapping[str, Tensor]) -> None:
        """Start from the state of earlier rounds."""
        self._num_users = num_users
        self.tensors = {name: tensor for name, tensor in previous.items() if len(tensor) == num_users}

    def put(self, rows: Tensor, state: Mapping[str, Tensor]) -> None:
        """Keep the state of the users at `rows`; state is name -> (len(rows), ...)."""
        for name, values in state.items():
            kept = self.tensors.get(name)
            if kept is None or kept.shape[1:] != values.shape[1:]:
                kept = torch.zeros(self._num_users, *values.shape[1:], dtype=values.dtype)
                self.tensors[name] = kept
            kept[rows] = values.cpu()
