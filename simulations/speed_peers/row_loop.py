"""The plain loop done well: a user's own rows only, gradient by hand, in torch."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from simulations.speed_peers.work import Work, clip_factor


def local_rows(items: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distinct item rows of a user, and each example's place among them."""
    rows, places = torch.unique(items, return_inverse=True)
    return rows, places


def train_user(
    table: Tensor, user: Tensor, places: Tensor, labels: Tensor, batch_size: int, learning_rate: float
) -> None:
    """Run one local epoch, in place.

    Args:
        table: (num rows, dim) the user's own copy of the touched item rows.
        user: (dim,) the user's vector.
        places: (n,) each example's row of `table`.
        labels: (n,) float32.
        batch_size: examples a step.
        learning_rate: of both.
    """
    for start in range(0, len(places), batch_size):
        where = places[start : start + batch_size]
        vectors = table[where]
        gradient = (torch.sigmoid(vectors @ user) - labels[start : start + batch_size]) * -learning_rate
        change = gradient @ vectors
        table.index_add_(0, where, torch.outer(gradient, user))
        user += change


class RowLoop:
    """Users one after the other; only the rows that a user touches are copied, moved and sent."""

    def __init__(self, work: Work) -> None:
        """Turn the work into tensors."""
        self._work = work
        self._table = torch.from_numpy(work.item_vectors.copy())
        self._users = torch.from_numpy(work.user_vectors.copy())
        self._items, self._labels = torch.from_numpy(work.items), torch.from_numpy(work.labels)
        self._generator = torch.Generator().manual_seed(0)

    def round(self) -> None:
        """Do one round."""
        work, total = self._work, torch.zeros_like(self._table)
        bounds = work.indptr.tolist()
        for index in range(work.num_users):
            part = slice(bounds[index], bounds[index + 1])
            rows, places = local_rows(self._items[part])
            before = self._table[rows]
            table = before.clone()
            train_user(table, self._users[index], places, self._labels[part], work.batch_size, work.learning_rate)
            table -= before
            if work.private:
                table *= clip_factor(float(table.norm()), work.clipping_norm)
            total.index_add_(0, rows, table)
        if work.noise_std:
            total += torch.normal(0.0, work.noise_std, total.shape, generator=self._generator)
        self._table += total / work.num_users

    def item_vectors(self) -> np.ndarray:
        """Return the item table."""
        return self._table.numpy()

    def close(self) -> None:
        """Do nothing."""
