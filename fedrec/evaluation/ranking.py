"""Full ranking in batches: the rank of each target among all items the user has not met, and the list shown.

Ties count against the target and NaN ranks last, so a constant scorer gets about zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedrec.data.interactions import Interactions


@dataclass(frozen=True, eq=False)
class Targets:
    """The held-out items of B users, padded.

    Args:
        items: (B, T) int64 item rows; 0 where padded.
        mask: (B, T) bool.
    """

    items: Tensor
    mask: Tensor

    @classmethod
    def of(cls, held_out: Interactions, rows: np.ndarray) -> Targets:
        """Gather the held-out items of some users; rows as in `held_out.users`."""
        lengths = held_out.lengths[rows]
        positions = np.arange(int(lengths.max(initial=1)))
        mask = positions < lengths[:, None]
        index = np.where(mask, held_out.indptr[rows][:, None] + positions, 0)
        items = np.where(mask, held_out.items[index], 0) if len(held_out) else np.zeros(mask.shape, dtype=np.int64)
        return cls(torch.from_numpy(items), torch.from_numpy(mask))


def mask_scores(scores: Tensor, seen: Tensor, seen_mask: Tensor, candidates: Tensor | None = None) -> Tensor:
    """Return scores where items that may not be ranked, and NaN, are -inf.

    Args:
        scores: (B, M) float.
        seen: (B, L) int64 items met before; padding is allowed where `seen_mask` is False.
        seen_mask: (B, L) bool.
        candidates: (M,) bool, items that may be ranked; None for all.

    Returns:
        (B, M) new tensor.
    """
    lowest = torch.finfo(scores.dtype).min
    masked = torch.nan_to_num(scores, nan=lowest, posinf=torch.finfo(scores.dtype).max, neginf=lowest)
    if candidates is not None:
        masked = masked.masked_fill(~candidates, -torch.inf)
    extra = torch.full((len(masked), 1), -torch.inf, dtype=masked.dtype, device=masked.device)
    padded = torch.cat([masked, extra], dim=1)
    padded.scatter_(1, torch.where(seen_mask, seen, masked.shape[1]), -torch.inf)
    return padded[:, :-1]


def target_ranks(masked: Tensor, targets: Targets) -> Tensor:
    """Return the rank of each target: 1 + the number of other items with a score at least as high.

    Args:
        masked: (B, M) from `mask_scores`.
        targets: (B, T); a target that may not be ranked itself ranks last, and so does one whose score is NaN.

    Returns:
        (B, T) int64; M + 1 where padded.
    """
    num_items = masked.shape[1]
    scores = masked.gather(1, targets.items)
    if targets.items.shape[1] == 1:
        ranks = (masked >= scores).sum(dim=1, keepdim=True)
    else:
        ascending = torch.sort(masked, dim=1).values
        ranks = num_items - torch.searchsorted(ascending, scores, right=False)
    last = torch.full_like(ranks, num_items + 1)
    return torch.where(targets.mask & torch.isfinite(scores), ranks, last)


def top_items(masked: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """Return the `num` best items of each user, best first, ties by item row.

    Args:
        masked: (B, M) from `mask_scores`.
        num: length of the list; shorter lists are filled with item -1 and score -inf.

    Returns:
        (B, num) int64 items and (B, num) scores.
    """
    width = min(num, masked.shape[1])
    scores, items = torch.topk(masked, width, dim=1)
    items, order = torch.sort(items, dim=1)
    scores, order = torch.sort(scores.gather(1, order), dim=1, descending=True, stable=True)
    items = items.gather(1, order)
    items = torch.where(torch.isneginf(scores), -1, items)
    fill = num - width
    if fill:
        items = torch.nn.functional.pad(items, (0, fill), value=-1)
        scores = torch.nn.functional.pad(scores, (0, fill), value=-torch.inf)
    return items, scores


def sampled_ranks(masked: Tensor, targets: Targets, met: Tensor, uniforms: Tensor, num_negatives: int = 99) -> Tensor:
    """Return the rank of the first target among `num_negatives` uniform negatives (compatibility mode).

    The negatives are the items with the smallest uniform draws among those the user has never met, so they are fixed
    by the draws and the same for every model.

    Args:
        masked: (B, M) from `mask_scores`.
        targets: (B, T); the first target of each user counts.
        met: (B, M) bool, items the user has met in any part of the data, targets included.
        uniforms: (B, M) one draw an item.
        num_negatives: how many; all there are where a user has fewer.

    Returns:
        (B,) int64 rank, ties against the target.
    """
    draws = uniforms.masked_fill(met, torch.inf)
    values, negatives = torch.topk(draws, min(num_negatives, draws.shape[1]), dim=1, largest=False, sorted=False)
    target = masked.gather(1, targets.items[:, :1])
    better = (masked.gather(1, negatives) >= target) & torch.isfinite(values)
    return 1 + better.sum(dim=1)
