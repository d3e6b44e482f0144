"""The private store of a node: a folder of its own, with the fitted user state in it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from fedrec.errors import PrivacyError, ProtocolError
from fedrec.files import replace_file

_PRIVATE = 0o600


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

    def save_state(self, state: Mapping[str, Tensor], durable: bool = False) -> None:
        """Replace the private state; name -> tensor. Where it can be fitted again, no disk has to be waited for."""
        content = save({name: tensor.contiguous() for name, tensor in state.items()})
        replace_file(self._folder / "private_state.safetensors", content, _PRIVATE, durable=durable)

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
