"""Local SGD of matrix factorisation for many users at once: compiled for the CPU, batched torch for other devices."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedrec.compiled import compiled_for, over_rows
from fedrec.data.batches import UserBatch
from fedrec.errors import ConfigError
from fedrec.models.coalescing import highest_row
from fedrec.models.kernels import local_sgd as kernels
from fedrec.randomness import Key


@dataclass(frozen=True, eq=False)
class Examples:
    """What B users train on; a positive is followed by its negatives.

    Args:
        rows: (B, m) int64 distinct items touched; anything beyond `num_rows`.
        num_rows: (B,) int64.
        slots: (B, E) int32: the position in `rows` of each example's item.
        num_examples: (B,) int64.
        groups: (B,) int64: every `groups[u]`-th example is a positive; 1 where a user has no negatives.
    """

    rows: Tensor
    num_rows: Tensor
    slots: Tensor
    num_examples: Tensor
    groups: Tensor

    @property
    def row_mask(self) -> Tensor:
        """Return (B, m) bool: which of `rows` count."""
        return torch.arange(self.rows.shape[1], device=self.rows.device) < self.num_rows[:, None]


@dataclass(frozen=True)
class LocalSgd:
    """Settings of the local optimiser.

    Args:
        batch_size: examples of a step; their gradients are summed, the last step of an epoch may be smaller.
        learning_rate: of the user vector and of the item rows.
        negative_weight: weight of a negative example.
        logistic: logistic loss; else half the squared error against targets 1 and 0.
    """

    batch_size: int
    learning_rate: float
    negative_weight: float
    logistic: bool


def draw_examples(users: UserBatch, num_items: int, num_negatives: int, num_epochs: int, key: Key) -> Examples:
    """Draw the order and the negatives of every user, on the CPU; they follow from the key and the user's own key.

    Negatives are uniform over the items that the user has not met in training, and drawn anew in every epoch.

    Args:
        users: B users with keys.
        num_items: M.
        num_negatives: for each positive; a user who has met all items has none.
        num_epochs: times each positive is gone through.
        key: of the round.

    Raises:
        ConfigError: where the batch was made without user keys.
    """
    if users.keys is None:
        raise ConfigError("a gradient model draws negatives, but the batch has no user keys; pass keys to user_batches")
    items, lengths = users.items.cpu(), users.lengths.cpu()
    highest_row(items, num_items)
    num_users, width = items.shape
    num_examples = num_epochs * width * (1 + num_negatives)
    words = key.fold("examples").user_words(users.keys, num_examples)
    rows = torch.zeros(num_users, min(num_examples, num_items), dtype=torch.int64)
    slots = torch.zeros(num_users, num_examples, dtype=torch.int32)
    counts = torch.zeros(3, num_users, dtype=torch.int64)
    over_rows(
        kernels.draw_examples,
        num_users,
        *(items.numpy(), lengths.numpy(), words, num_items, num_negatives, num_epochs),
        *(rows.numpy(), counts[0].numpy(), slots.numpy(), counts[1].numpy(), counts[2].numpy()),
    )
    device = users.items.device
    rows, slots, counts = rows.to(device), slots.to(device), counts.to(device)
    return Examples(rows, counts[0], slots, counts[1], counts[2])


def train_users(items: Tensor, vectors: Tensor, examples: Examples, sgd: LocalSgd) -> tuple[Tensor, Tensor]:
    """Train the vector of each user and copies of the item rows it touches.

    Args:
        items: (M, d) float32.
        vectors: (B, d) where each user starts.
        examples: of the same B users.
        sgd: the optimiser.

    Returns:
        (B, d) trained vectors and (B, m, d) how far each row of `examples.rows` moved; only the rows that count are
        meaningful. Compiled in float32, user by user; in torch in float64, as sums over padded batches round by who
        else is in them.
    """
    if not compiled_for(items, vectors):
        return _train_with_torch(items.to(torch.float64), vectors.to(torch.float64), examples, sgd)
    vectors = vectors.to(torch.float32, copy=True).contiguous()
    deltas = torch.empty(*examples.rows.shape, items.shape[1], dtype=torch.float32)
    batch_size = min(sgd.batch_size, max(1, examples.slots.shape[1]))
    over_rows(
        kernels.train_users,
        len(vectors),
        *(items.contiguous().numpy(), examples.rows.numpy(), examples.num_rows.numpy(), examples.slots.numpy()),
        *(examples.num_examples.numpy(), examples.groups.numpy(), batch_size, np.float32(sgd.learning_rate)),
        *(np.float32(sgd.negative_weight), sgd.logistic, vectors.numpy(), deltas.numpy()),
    )
    return vectors, deltas


def _train_with_torch(items: Tensor, vectors: Tensor, examples: Examples, sgd: LocalSgd) -> tuple[Tensor, Tensor]:
    """Train all users side by side, one batch of each at a time: the reference, and the form of other devices."""
    start = items[examples.rows]
    deltas = torch.zeros_like(start)
    position = torch.arange(examples.slots.shape[1], device=items.device)
    counted = position < examples.num_examples[:, None]
    positive = position % examples.groups[:, None] == 0
    for first in range(0, len(position), sgd.batch_size):
        part = slice(first, first + sgd.batch_size)
        index = examples.slots[:, part, None].to(torch.int64).expand(-1, -1, items.shape[1])
        used = counted[:, part, None]  # padding may not touch anything: 0 times infinity is NaN
        rows = torch.where(used, start.gather(1, index) + deltas.gather(1, index), 0.0)
        scores = (rows * vectors[:, None]).sum(dim=2)
        if sgd.logistic:
            scores = torch.sigmoid(scores)
        errors = torch.where(positive[:, part], scores - 1, sgd.negative_weight * scores)
        steps = -sgd.learning_rate * torch.where(counted[:, part], errors, 0.0)
        moves = (steps[:, :, None] * rows).sum(dim=1)
        deltas.scatter_add_(1, index, torch.where(used, steps[:, :, None] * vectors[:, None], 0.0))
        vectors = vectors + moves
    return vectors, deltas
