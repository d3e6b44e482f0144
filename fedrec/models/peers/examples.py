"""What users train on in a round: the items they met, and for each a few drawn ones that they did not."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedrec.data.batches import UserBatch
from fedrec.errors import ConfigError
from fedrec.randomness import Key


@dataclass(frozen=True, eq=False)
class HeldOut:
    """The LEAK of published code: held-out items of all users, which then are never drawn as negatives.

    Args:
        keys: (N,) uint64 user keys, ascending.
        items: (N, H) int64 held-out items; -1 where a user has fewer.
    """

    keys: np.ndarray
    items: np.ndarray

    def of(self, users: UserBatch) -> Tensor:
        """Return (B, H) int64: the held-out items of some users, -1 where there are none."""
        if users.keys is None or not len(self.keys):
            return torch.full((users.num_users, self.items.shape[1]), -1)
        place = np.searchsorted(self.keys, users.keys).clip(max=len(self.keys) - 1)
        found = np.where((self.keys[place] == users.keys)[:, None], self.items[place], -1)
        return torch.from_numpy(found).to(users.items.device)


@dataclass(frozen=True, eq=False)
class Examples:
    """The examples of B users in random order, each user's items as positions in a small table of their own.

    Args:
        rows: (B, m) int64 distinct items of the examples; 0 where there are fewer.
        row_mask: (B, m) bool, the rows that count.
        slots: (B, E) int64, the position in `rows` of each example's item.
        targets: (B, E) float32, 1 for a met item, 0 for a drawn one.
        counted: (B, E) bool, the examples that count: a prefix.
    """

    rows: Tensor
    row_mask: Tensor
    slots: Tensor
    targets: Tensor
    counted: Tensor

    @property
    def num_examples(self) -> int:
        """Return E."""
        return self.slots.shape[1]


def draw_examples(
    users: UserBatch, num_items: int, num_negatives: int, key: Key, held_out: HeldOut | None = None
) -> Examples:
    """Draw negatives and the order of all examples; a user's follow from the key and the user's own key alone.

    Negatives are uniform, with replacement, over the items that the user has not met in training.

    Args:
        users: B users with keys.
        num_items: M.
        num_negatives: for each interaction; none for a user who has met all items.
        key: of the round.
        held_out: items that are not drawn either; see the class.

    Raises:
        ConfigError: where the batch was made without user keys.
    """
    if users.keys is None:
        raise ConfigError("negatives are drawn for each user, but the batch has no keys; pass keys to user_batches")
    num_users, width = users.items.shape
    device = users.items.device
    words = _words(key.fold("negatives"), users.keys, width * num_negatives).to(device)
    met = torch.where(users.mask, users.items, -1)
    drawn = _unmet(met if held_out is None else torch.cat([met, held_out.of(users)], dim=1), words, num_items)
    drawn = drawn.reshape(num_users, width, num_negatives)
    items = torch.cat([users.items[:, :, None], drawn], dim=2).flatten(start_dim=1)
    counted = torch.cat([users.mask[:, :, None], users.mask[:, :, None] & (drawn >= 0)], dim=2).flatten(start_dim=1)
    targets = torch.zeros(items.shape, device=device)
    targets[:, :: 1 + num_negatives] = 1
    order = torch.where(counted, _words(key.fold("order"), users.keys, items.shape[1]).to(device), 2**32)
    order = torch.argsort(order, dim=1, stable=True)
    items, targets, counted = (part.gather(1, order) for part in (items, targets, counted))
    rows, row_mask, slots = _distinct(torch.where(counted, items, num_items), num_items)
    return Examples(rows, row_mask, slots, targets, counted)


def _words(key: Key, user_keys: np.ndarray, num: int) -> Tensor:
    """Return (B, num) int64 in [0, 2^32)."""
    return torch.from_numpy(key.user_words(user_keys, num)[:, :num].astype(np.int64))


def _unmet(met: Tensor, words: Tensor, num_items: int) -> Tensor:
    """Return (B, E) items that are not in `met`, uniformly; -1 for users who have met all.

    The k-th item that is not in the sorted set a_0 < a_1 < ... is k + (number of j with a_j - j <= k).

    Args:
        met: (B, A) items, repeated or not; -1 where there is none.
        words: (B, E) uniform in [0, 2^32).
        num_items: M.
    """
    beyond = 2 * num_items + met.shape[1]
    ordered, _ = torch.sort(torch.where(met < 0, beyond, met), dim=1)
    repeated = torch.zeros_like(ordered, dtype=torch.bool)
    repeated[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    ordered, _ = torch.sort(ordered.masked_fill(repeated, beyond), dim=1)
    num_free = num_items - (ordered < beyond).sum(dim=1, keepdim=True)
    place = (words * num_free) >> 32  # below 2^63, as there are fewer than 2^31 items
    steps = (ordered - torch.arange(met.shape[1], device=met.device)).contiguous()
    items = place + torch.searchsorted(steps, place.contiguous(), right=True)
    return torch.where(num_free > 0, items, -1)


def _distinct(items: Tensor, num_items: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the distinct items of each row, which of them count, and where each item is among them.

    Args:
        items: (B, E); `num_items` for what does not count.
        num_items: M.
    """
    ordered, order = torch.sort(items, dim=1)
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    place = torch.cumsum(first, dim=1) - 1
    slots = torch.zeros_like(place).scatter_(1, order, place)
    rows = torch.full_like(ordered, num_items).scatter_(1, place, ordered)
    num = int((rows < num_items).sum(dim=1).max()) if rows.numel() else 0
    rows = rows[:, :num]
    mask = rows < num_items
    return rows.masked_fill(~mask, 0), mask, slots.masked_fill(items == num_items, 0)
