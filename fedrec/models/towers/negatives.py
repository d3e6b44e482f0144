"""Negatives for sampled losses: uniform items, the same for all positions of a user."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedrec.data.batches import UserBatch
from fedrec.errors import ConfigError
from fedrec.models.coalescing import distinct_items
from fedrec.models.towers.windows import own_copy
from fedrec.randomness import Key


@dataclass(frozen=True, eq=False)
class Negatives:
    """Items drawn for B users.

    Args:
        items: (B, K) int64.
        used: (B, K) bool, False for an item that the user has met in training.
        num_unmet: (B, 1) float32 items that the others were drawn from.
    """

    items: Tensor
    used: Tensor
    num_unmet: Tensor

    def of(self, users: Tensor) -> Negatives:
        """Return the negatives of some users; (B,) bool."""
        return Negatives(self.items[users], self.used[users], self.num_unmet[users])

    def alone(self, user: int) -> Negatives:
        """Return the negatives of one user, in memory of their own."""
        one = slice(user, user + 1)
        return Negatives(own_copy(self.items[one]), own_copy(self.used[one]), own_copy(self.num_unmet[one]))


def draw_negatives(users: UserBatch, num_items: int, num_negatives: int, key: Key) -> Negatives:
    """Draw items uniformly and leave out those that the user has met in training, and nothing else.

    Args:
        users: B users with keys.
        num_items: M.
        num_negatives: K drawn; the fewer are used the more a user has met.
        key: of the round; draws follow from it and from the user's own key.

    Raises:
        ConfigError: where the batch was made without user keys.
    """
    ids, met = distinct_items(users.items, users.mask)
    num_unmet = (num_items - met.sum(dim=1, keepdim=True)).to(torch.float32)
    if not num_negatives:
        return Negatives(ids[:, :0], ids[:, :0].to(torch.bool), num_unmet)
    if users.keys is None:
        raise ConfigError("negatives are drawn by user, but the batch has no user keys; pass keys to user_batches")
    words = key.fold("negatives").user_words(users.keys, num_negatives)[:, :num_negatives].astype(np.uint64)
    items = torch.from_numpy(((words * np.uint64(num_items)) >> np.uint64(32)).astype(np.int64)).to(users.items.device)
    known = torch.where(met > 0, ids, num_items)
    known = torch.nn.functional.pad(known, (0, 1), value=num_items).sort(dim=1).values
    used = known.gather(1, torch.searchsorted(known, items)) != items
    return Negatives(items, used, num_unmet)
