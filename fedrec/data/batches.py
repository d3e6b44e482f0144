"""User batches: padded tensors of user histories, bucketed by length so that padding stays small."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from fedrec.data.padding import pad
from fedrec.errors import ConfigError


class Columns(Protocol):
    """Interactions as columns of one length, as far as they are known."""

    @property
    def items(self) -> np.ndarray:
        """Return (n,) item rows, whole numbers of any size."""
        ...

    @property
    def times(self) -> np.ndarray | None:
        """Return (n,) int64 seconds, or None where the data has no time."""
        ...

    @property
    def ratings(self) -> np.ndarray | None:
        """Return (n,) floats, or None."""
        ...

    @property
    def context(self) -> Mapping[str, np.ndarray]:
        """Return name -> (n,) codes (whole numbers of any size) or float32 values."""
        ...


class Histories(Columns, Protocol):
    """What batches are made of: the histories of all users, one after the other, oldest interaction first.

    `Interactions` hold them in memory, `StoredHistories` in files that are mapped and read as far as they are used.
    """

    @property
    def num_users(self) -> int:
        """Return the number of users."""
        ...

    @property
    def num_items(self) -> int:
        """Return the number of items."""
        ...

    @property
    def indptr(self) -> np.ndarray:
        """Return (num_users + 1,) int64: the interactions of user u are rows indptr[u]:indptr[u + 1]."""
        ...

    @property
    def lengths(self) -> np.ndarray:
        """Return (num_users,) int64: how many interactions each user has."""
        ...


@dataclass(frozen=True, eq=False)
class UserBatch:
    """The histories of B users, padded to a common length L, oldest interaction first.

    Args:
        rows: (B,) int64 numpy, each user's row on this node.
        items: (B, L) int64 item rows; 0 where padded.
        mask: (B, L) bool, True where there is an interaction (always a prefix of the row).
        times: (B, L) int64 seconds, or None where the data has no time.
        ratings: (B, L) float32, or None.
        context: name -> (B, L) codes or values.
        keys: (B,) uint64 numpy, what each user's draws follow from; None where the batch was made without.
        state: name -> (B, ...) private state that the node kept of these users after earlier rounds, with "known" (B,)
            bool: of whom there is any. Empty where nothing was kept; models read it through `kept`.
        query: name -> (B,) the context that each list is wanted in: int64 codes as in `context`, -1 where unknown, or
            float32 values, NaN where unknown. A field that is not there is unknown for all; in training none is there,
            as the context of an interaction to predict stands in `context`.
    """

    rows: np.ndarray
    items: Tensor
    mask: Tensor
    times: Tensor | None = None
    ratings: Tensor | None = None
    context: Mapping[str, Tensor] = field(default_factory=dict)
    keys: np.ndarray | None = None
    state: Mapping[str, Tensor] = field(default_factory=dict)
    query: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def num_users(self) -> int:
        """Return B."""
        return len(self.rows)

    @property
    def lengths(self) -> Tensor:
        """Return (B,) int64: interactions of each user."""
        return self.mask.sum(dim=1)

    @property
    def ages(self) -> Tensor | None:
        """Return (B, L) int64: 0 for the newest interaction, 1 for the one before ...; None where times are unknown."""
        if self.times is None:
            return None
        positions = torch.arange(self.items.shape[1], device=self.items.device)
        return (self.lengths[:, None] - 1 - positions).clamp(min=0)

    def kept(self, name: str, start: Tensor) -> Tensor:
        """Return what was kept of each user after earlier rounds, or where users start of whom nothing was.

        Args:
            name: of the private state.
            start: (...) for all users.

        Returns:
            (B, ...), of the type and on the device of `start`.
        """
        anew = start.expand(self.num_users, *start.shape)
        if name not in self.state:
            return anew
        known = self.state["known"].reshape(-1, *([1] * start.ndim))
        return torch.where(known, self.state[name].to(start.dtype), anew)

    def of(self, part: slice) -> UserBatch:
        """Return some of the users, as far padded as all."""
        return UserBatch(
            rows=self.rows[part],
            items=self.items[part],
            mask=self.mask[part],
            times=None if self.times is None else self.times[part],
            ratings=None if self.ratings is None else self.ratings[part],
            context={name: column[part] for name, column in self.context.items()},
            keys=None if self.keys is None else self.keys[part],
            state={name: tensor[part] for name, tensor in self.state.items()},
            query={name: column[part] for name, column in self.query.items()},
        )

    def split(self, most: int) -> Iterator[UserBatch]:
        """Go through batches of at most `most` of the users each, as far padded as this one; this one where few."""
        if self.num_users <= most:
            yield self
            return
        for start in range(0, self.num_users, most):
            yield self.of(slice(start, start + most))

    def to(self, device: torch.device) -> UserBatch:
        """Move the tensors to a device; the same batch where they are there already."""
        if self.items.device == device:
            return self
        return replace(
            self,
            items=self.items.to(device),
            mask=self.mask.to(device),
            times=None if self.times is None else self.times.to(device),
            ratings=None if self.ratings is None else self.ratings.to(device),
            context={name: column.to(device) for name, column in self.context.items()},
            state={name: tensor.to(device) for name, tensor in self.state.items()},
            query={name: column.to(device) for name, column in self.query.items()},
        )


def make_batch(
    histories: Histories,
    rows: np.ndarray,
    keys: np.ndarray | None = None,
    state: Mapping[str, Tensor] | None = None,
) -> UserBatch:
    """Gather the histories of some users into one padded batch.

    Args:
        histories: the node's interactions, in memory or mapped from files.
        rows: (B,) rows of the users wanted.
        keys: (num_users,) uint64 of all users, see `fedrec.randomness.user_keys`; only models that draw need them.
        state: name -> (num_users, ...) private state that was kept of all users, see `UserBatch`.
    """
    first = histories.indptr[rows]
    lengths = histories.indptr[rows + 1] - first
    width = int(lengths.max(initial=0))

    def padded(column: np.ndarray) -> Tensor:
        return torch.from_numpy(pad(column, first, lengths, width))

    return UserBatch(
        rows=rows,
        items=padded(histories.items),
        mask=torch.from_numpy(np.arange(width) < lengths[:, None]),
        times=None if histories.times is None else padded(histories.times),
        ratings=None if histories.ratings is None else padded(histories.ratings),
        context={name: padded(column) for name, column in histories.context.items()},
        keys=None if keys is None else keys[rows],
        state={name: tensor[torch.from_numpy(rows)] for name, tensor in (state or {}).items()},
    )


def user_batches(
    histories: Histories,
    rows: np.ndarray | None = None,
    max_elements: int = 2**17,
    max_users: int = 2**16,
    keys: np.ndarray | None = None,
    state: Mapping[str, Tensor] | None = None,
) -> Iterator[UserBatch]:
    """Go through users in batches of similar history length.

    Users are sorted by length (ties by row), so a batch of at most `max_elements` padded cells wastes little. A single
    longer history is a batch of its own.

    Args:
        histories: the node's interactions, in memory or mapped from files.
        rows: (n,) rows of the users wanted; all users where None.
        max_elements: bound on B x L of a batch: the micro-batch that bounds memory.
        max_users: bound on B.
        keys: (num_users,) uint64 of all users; only models that draw need them.
        state: name -> (num_users, ...) private state that was kept of all users, see `UserBatch`.

    Raises:
        ConfigError: where a bound is below 1.
    """
    if max_elements < 1 or max_users < 1:
        raise ConfigError(f"max_elements={max_elements}, max_users={max_users}: a batch holds 1 or more of each")
    rows = np.arange(histories.num_users) if rows is None else np.asarray(rows, dtype=np.int64)
    rows, edges = _buckets(rows, histories.lengths[rows], max_elements, max_users)
    for start, stop in pairwise(edges):
        yield make_batch(histories, rows[start:stop], keys, state)


def _buckets(rows: np.ndarray, lengths: np.ndarray, max_elements: int, max_users: int) -> tuple[np.ndarray, list[int]]:
    """Return the rows sorted by length, and where each batch of them starts and the last one ends.

    All is worked out before the first batch, so that of the memory that grows with users only the rows stay.
    """
    order = np.lexsort((rows, lengths))
    rows, lengths = rows[order], lengths[order]
    edges = [0]
    while edges[-1] < len(rows):
        start = edges[-1]
        stop = min(start + max_users, len(rows))
        cells = np.arange(1, stop - start + 1) * np.maximum(lengths[start:stop], 1)
        edges.append(start + max(int(np.searchsorted(cells, max_elements, side="right")), 1))
    return rows, edges
