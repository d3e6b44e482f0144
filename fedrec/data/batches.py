"""User batches: padded tensors of user histories, bucketed by length so that padding stays small."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from fedrec.data.interactions import Interactions


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
    """

    rows: np.ndarray
    items: Tensor
    mask: Tensor
    times: Tensor | None = None
    ratings: Tensor | None = None
    context: Mapping[str, Tensor] = field(default_factory=dict)

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
        )


def make_batch(interactions: Interactions, rows: np.ndarray) -> UserBatch:
    """Gather the histories of some users into one padded batch.

    Args:
        interactions: the node's interactions.
        rows: (B,) rows of the users wanted.
    """
    lengths = interactions.lengths[rows]
    width = int(lengths.max(initial=0))
    positions = np.arange(width)
    mask = positions < lengths[:, None]
    index = np.where(mask, interactions.indptr[rows][:, None] + positions, 0)

    def padded(column: np.ndarray) -> Tensor:
        values = column[index] if len(column) else np.zeros(index.shape, dtype=column.dtype)
        return torch.from_numpy(np.where(mask, values, np.zeros((), dtype=column.dtype)))

    return UserBatch(
        rows=rows,
        items=padded(interactions.items),
        mask=torch.from_numpy(mask),
        times=None if interactions.times is None else padded(interactions.times),
        ratings=None if interactions.ratings is None else padded(interactions.ratings),
        context={name: padded(column) for name, column in interactions.context.items()},
    )


def user_batches(
    interactions: Interactions, rows: np.ndarray | None = None, max_elements: int = 2**17, max_users: int = 4096
) -> Iterator[UserBatch]:
    """Go through users in batches of similar history length.

    Users are sorted by length (ties by row), so a batch of at most `max_elements` padded cells wastes little. A single
    longer history is a batch of its own.

    Args:
        interactions: the node's interactions.
        rows: (n,) rows of the users wanted; all users where None.
        max_elements: bound on B x L of a batch: the micro-batch that bounds memory.
        max_users: bound on B.
    """
    rows = np.arange(interactions.num_users) if rows is None else np.asarray(rows, dtype=np.int64)
    lengths = interactions.lengths[rows]
    order = np.lexsort((rows, lengths))
    rows, lengths = rows[order], lengths[order]
    start = 0
    while start < len(rows):
        stop = min(start + max_users, len(rows))
        cells = np.arange(1, stop - start + 1) * np.maximum(lengths[start:stop], 1)
        fits = int(np.searchsorted(cells, max_elements, side="right"))
        stop = start + max(fits, 1)
        yield make_batch(interactions, rows[start:stop])
        start = stop
