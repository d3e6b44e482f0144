"""The private store of a node: a folder of its own, with the fitted user state in it."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from fedrec.errors import PrivacyError, ProtocolError
from fedrec.files import replace_file

_LOG = logging.getLogger(__name__)
_PRIVATE = 0o600
_NEWEST, _BEFORE = "private_state.safetensors", "private_state.before.safetensors"
KNOWN = "known"
"""Name of the (num_users,) bool that says of which users a node has kept anything."""


class DeviceStore:
    """Private state on disk, replaced in one atomic step; readable by its owner only.

    Args:
        folder: made if missing, with mode 0700.

    Raises:
        ProtocolError: where the folder can't be made.
        PrivacyError: where it holds the record of an earlier version, which did not say what its rounds spent.

    Privacy:
        Nothing here is ever sent.
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
        record = folder / "participation.json"
        if record.exists():
            raise PrivacyError(
                f"{record} is of an earlier version: it holds rounds that this node took part in, but not what they "
                "spent; use a new folder and count these runs as fully spent, or remove the file if no plan is in it"
            )

    @property
    def folder(self) -> Path:
        """The folder, for what else a node keeps to itself."""
        return self._folder

    def save_state(
        self, state: Mapping[str, Tensor], durable: bool = False, made_by: Mapping[str, str] | None = None
    ) -> None:
        """Replace the private state; name -> tensor. Where it can be fitted again, no disk has to be waited for."""
        content = save({name: tensor.contiguous() for name, tensor in state.items()}, metadata=dict(made_by or {}))
        replace_file(self._folder / _NEWEST, content, _PRIVATE, durable=durable)

    def save_round(self, run_id: str, round: int, state: Mapping[str, Tensor]) -> None:
        """Keep the private state of all users as it is after a round, beside that of the round before.

        The round before stays, so that a round that is asked for again starts from where it started the first time.
        """
        if self._made_by(_NEWEST, run_id) not in (None, round):
            os.replace(self._folder / _NEWEST, self._folder / _BEFORE)
        self.save_state(state, made_by={"run": run_id, "round": str(round)})

    def load_round(self, run_id: str, round: int, num_users: int) -> dict[str, Tensor]:
        """Return the private state as it was after a round, or after the last one before it that was answered.

        Args:
            run_id: the run; what other runs left is not looked at.
            round: 0 for before the first.
            num_users: users of the node, in the order of the rows that were saved.

        Returns:
            name -> (num_users, ...), with `KNOWN`; empty where there is none: then users start anew.

        Raises:
            ProtocolError: where a file is damaged.
        """
        found = {name: self._made_by(name, run_id) for name in (_NEWEST, _BEFORE)}
        rounds = {made: name for name, made in found.items() if made is not None and made <= round}
        if not rounds:
            if round and any(made is not None for made in found.values()):
                _LOG.warning("%s holds state of later rounds than %d only: users start anew", self._folder, round)
            return {}
        state = self._load(rounds[max(rounds)])
        if any(len(tensor) != num_users for tensor in state.values()):
            _LOG.warning("%s holds state of another number of users than %d: they start anew", self._folder, num_users)
            return {}
        return state

    def _made_by(self, name: str, run_id: str) -> int | None:
        """Return the round that a file is of; None where it is not there, or of another run."""
        path = self._folder / name
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                made_by = file.metadata() or {}
        except (OSError, SafetensorError) as error:
            raise self._damaged(path, error) from error
        return int(made_by["round"]) if made_by.get("run") == run_id else None

    def load_state(self) -> dict[str, Tensor]:
        """Return the private state, empty where none was saved.

        Raises:
            ProtocolError: where the file is damaged.
        """
        return self._load(_NEWEST)

    def _load(self, name: str) -> dict[str, Tensor]:
        path = self._folder / name
        if not path.exists():
            return {}
        try:
            return dict(load_file(path))
        except (OSError, SafetensorError) as error:
            raise self._damaged(path, error) from error

    def _damaged(self, path: Path, error: Exception) -> ProtocolError:
        return ProtocolError(
            f"private state {path} is damaged ({error}); delete it, it is fitted again from the node's own data"
        )


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
        """Keep the state of the users at `rows`, and that they are known; state is name -> (len(rows), ...)."""
        known = torch.ones(len(rows), dtype=torch.bool)
        for name, values in {**state, KNOWN: known}.items() if state else ():
            kept = self.tensors.get(name)
            if kept is None or kept.shape[1:] != values.shape[1:]:
                kept = torch.zeros(self._num_users, *values.shape[1:], dtype=values.dtype)
                self.tensors[name] = kept
            kept[rows] = values.cpu()
