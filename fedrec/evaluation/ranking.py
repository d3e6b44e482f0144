"""Full ranking in batches: the rank of each target among all items the user has not met, and the list shown.

Ties count against the target and NaN ranks last, so a constant scorer gets about zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedrec.data.interactions import Interactions
from fedrec.randomness import Key


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
        """Gather the distinct held-out items of some users; rows as in `held_out.users`."""
        lengths = held_out.lengths[rows]
        positions = np.arange(int(lengths.max(initial=1)))
        mask = positions < lengths[:, None]
        index = np.where(mask, held_out.indptr[rows][:, None] + positions, 0)
        items = np.where(mask, held_out.items[index], 0) if len(held_out) else np.zeros(mask.shape, dtype=np.int64)
        if mask.shape[1] > 1:
            mask = mask & _first_of_its_kind(np.where(mask, items, -1 - positions))
        return cls(torch.from_numpy(items), torch.from_numpy(mask))


def _first_of_its_kind(values: np.ndarray) -> np.ndarray:
    """Return (B, T) bool: True where a value stands for the first time in its row."""
    order = np.argsort(values, axis=1, kind="stable")
    ordered = np.take_along_axis(values, order, axis=1)
    new = np.ones_like(order, dtype=bool)
    new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    first = np.empty_like(new)
    np.put_along_axis(first, order, new, axis=1)
    return first


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


def draw_negatives(met: Tensor, user_keys: np.ndarray, key: Key, num_negatives: int = 99) -> Tensor:
    """Draw distinct items that each user has never met, uniformly and for every model the same.

    Candidates are drawn with replacement, and the first `num_negatives` that are new and unmet are kept: that is
    uniform sampling without replacement. Users who have met nearly everything get the items of the smallest draws.

    Args:
        met: (B, M) bool, items the user has met in any part of the data.
        user_keys: (B,) uint64.
        key: a user's draws depend on nothing but this key and the user's own.
        num_negatives: how many; all there are where a user has fewer.

    Returns:
        (B, num_negatives) int64, -1 where there are no more.
    """
    num_users, num_items = met.shape
    negatives = torch.full((num_users, num_negatives), -1, dtype=torch.int64)
    unmet = num_items - met.sum(dim=1)
    scarce = (unmet < max(4 * num_negatives, num_items // 4)).numpy()
    rows = np.flatnonzero(scarce)
    if len(rows):
        draws = torch.from_numpy(key.fold("all").user_uniforms(user_keys[rows], num_items))
        values, items = torch.topk(
            draws.masked_fill(met[rows], torch.inf), min(num_negatives, num_items), dim=1, largest=False
        )
        negatives[rows, : items.shape[1]] = torch.where(torch.isfinite(values), items, -1)
    rows = np.flatnonzero(~scarce)
    if len(rows):
        drawn = key.user_uniforms(user_keys[rows], 16 * num_negatives)
        negatives[rows] = _first_new(torch.from_numpy((drawn * num_items).astype(np.int64)), met[rows], num_negatives)
    return negatives


def _first_new(items: Tensor, met: Tensor, num: int) -> Tensor:
    """Return the first `num` distinct unmet items of each row of (B, K) draws; K is ample, see the caller."""
    ordered, order = torch.sort(items, dim=1, stable=True)
    repeated = torch.zeros_like(ordered, dtype=torch.bool)
    repeated[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    usable = torch.zeros_like(repeated).scatter_(1, order, ~repeated) & ~met.gather(1, items)
    position = torch.where(usable, torch.arange(items.shape[1]), items.shape[1])
    first = torch.topk(position, num, dim=1, largest=False, sorted=True).values
    return torch.where(first < items.shape[1], items.gather(1, first.clamp(max=items.shape[1] - 1)), -1)


def sampled_ranks(masked: Tensor, targets: Targets, negatives: Tensor) -> Tensor:
    """Return the rank of the first target among sampled negatives (compatibility mode).

    Args:
        masked: (B, M) from `mask_scores`.
        targets: (B, T); the first target of each user counts.
        negatives: (B, num_negatives) from `draw_negatives`.

    Returns:
        (B,) int64 rank, ties against the target.
    """
    target = masked.gather(1, targets.items[:, :1])
    better = (masked.gather(1, negatives.clamp(min=0)) >= target) & (negatives >= 0)
    return 1 + better.sum(dim=1)
