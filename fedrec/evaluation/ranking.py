"""Full ranking in batches: the rank of each target among all items the user has not met, and the list shown.

Ties count against the target and NaN ranks last, so a constant scorer gets about zero. `rank` does it all; on the CPU
in one compiled pass over each user's scores, elsewhere by `mask_scores`, `target_ranks`, `top_items`, `sampled_ranks`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedrec.compiled import compiled_for, over_rows
from fedrec.data.interactions import Interactions
from fedrec.errors import DataError


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
        index = held_out.indptr[rows][:, None] + positions
        items = np.zeros(mask.shape, dtype=np.int64)
        items[mask] = held_out.items[index[mask]]
        if mask.shape[1] > 1:
            mask = mask & _first_of_its_kind(np.where(mask, items, -1 - positions))
        return cls(torch.from_numpy(items), torch.from_numpy(mask))

    @classmethod
    def none(cls, num_users: int) -> Targets:
        """Return the targets of users for whom only a list is wanted; T = 0."""
        return cls(torch.zeros(num_users, 0, dtype=torch.int64), torch.zeros(num_users, 0, dtype=torch.bool))


def _first_of_its_kind(values: np.ndarray) -> np.ndarray:
    """Return (B, T) bool: True where a value stands for the first time in its row."""
    order = np.argsort(values, axis=1, kind="stable")
    ordered = np.take_along_axis(values, order, axis=1)
    new = np.ones_like(order, dtype=bool)
    new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    first = np.empty_like(new)
    np.put_along_axis(first, order, new, axis=1)
    return first


@dataclass(frozen=True, eq=False)
class Ranking:
    """What the ranking of all items says of B users; all on the CPU.

    Args:
        ranks: (B, T) int64 rank of each target, see `target_ranks`.
        items: (B, num) int64 best items, see `top_items`.
        scores: (B, num) their scores.
        sampled: (B, D) int64 ranks among D draws of negatives, see `sampled_ranks`.
    """

    ranks: Tensor
    items: Tensor
    scores: Tensor
    sampled: Tensor


def rank(
    scores: Tensor,
    seen: Tensor,
    seen_mask: Tensor,
    targets: Targets,
    num: int,
    candidates: Tensor | None = None,
    negatives: Tensor | None = None,
) -> Ranking:
    """Rank all items for each user: where the targets stand, and the list shown.

    Args:
        scores: (B, M) float, only read.
        seen: (B, L) int64 items met before; padding is allowed where `seen_mask` is False.
        seen_mask: (B, L) bool.
        targets: (B, T), on the CPU.
        num: length of the list, at least 1; shorter lists are filled with item -1 and score -inf.
        candidates: (M,) bool, items that may be ranked; None for all.
        negatives: (B, D, num_negatives) int64 of D calls of `draw_negatives`; None for D = 0.

    Raises:
        DataError: on an item that has no score.
    """
    if negatives is None:
        negatives = torch.zeros(len(scores), 0, 0, dtype=torch.int64)
    for items in (seen, targets.items, negatives):
        if items.numel() and int(items.max()) >= scores.shape[1]:
            raise DataError(
                f"item row {int(items.max())} has no score; the model scores items 0..{scores.shape[1] - 1}"
            )
    if compiled_for(scores) and scores.dtype == torch.float32:
        return _rank_compiled(scores, seen, seen_mask, targets, num, candidates, negatives)
    masked = mask_scores(scores, seen, seen_mask, candidates)
    targets = Targets(targets.items.to(scores.device), targets.mask.to(scores.device))
    shown, values = top_items(masked, num)
    sampled = [sampled_ranks(masked, targets, draw.to(scores.device)).cpu() for draw in negatives.unbind(1)]
    return Ranking(
        target_ranks(masked, targets).cpu(),
        shown.cpu(),
        values.cpu(),
        torch.stack(sampled, dim=1) if sampled else torch.zeros(len(scores), 0, dtype=torch.int64),
    )


def _rank_compiled(
    scores: Tensor,
    seen: Tensor,
    seen_mask: Tensor,
    targets: Targets,
    num: int,
    candidates: Tensor | None,
    negatives: Tensor,
) -> Ranking:
    from fedrec.evaluation.kernels import rank_rows

    num_users, num_items = scores.shape
    allowed = torch.ones(num_items, dtype=torch.bool) if candidates is None else candidates
    found = Ranking(
        ranks=torch.empty_like(targets.items, memory_format=torch.contiguous_format),
        items=torch.empty(num_users, num, dtype=torch.int64),
        scores=torch.empty(num_users, num, dtype=torch.float32),
        sampled=torch.empty(negatives.shape[:2], dtype=torch.int64),
    )
    given = (scores.detach(), seen, seen_mask, allowed, targets.items, targets.mask, negatives)
    written = (found.ranks, found.sampled, found.items, found.scores)
    over_rows(rank_rows, num_users, *(part.contiguous().numpy() for part in (*given, *written)))
    return found


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
    if not targets.items.shape[1]:
        return targets.items
    scores = masked.gather(1, targets.items)
    if targets.items.shape[1] == 1:
        ranks = (masked >= scores).sum(dim=1, keepdim=True)
    else:
        ascending = torch.sort(masked, dim=1).values
        ranks = num_items - torch.searchsorted(ascending, scores, right=False)
    last = torch.full_like(ranks, num_items + 1)
    return torch.where(targets.mask & torch.isfinite(scores), ranks, last)


def top_items(masked: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """Return the `num` best items of each user, best first, ties by item row (also where the list ends within a tie).

    Args:
        masked: (B, M) from `mask_scores`.
        num: length of the list, at least 1; shorter lists are filled with item -1 and score -inf.

    Returns:
        (B, num) int64 items and (B, num) scores.
    """
    width = min(num, masked.shape[1])
    scores, items = torch.topk(masked, width, dim=1)
    cut = ((masked >= scores[:, -1:]).sum(dim=1) > width).nonzero()[:, 0]
    if len(cut):  # of a tie that the list ends within, any may be in it by now
        scores[cut], items[cut] = (
            part[:, :width] for part in torch.sort(masked[cut], dim=1, descending=True, stable=True)
        )
    items, order = torch.sort(items, dim=1)
    scores, order = torch.sort(scores.gather(1, order), dim=1, descending=True, stable=True)
    items = items.gather(1, order)
    items = torch.where(torch.isneginf(scores), -1, items)
    fill = num - width
    if fill:
        items = torch.nn.functional.pad(items, (0, fill), value=-1)
        scores = torch.nn.functional.pad(scores, (0, fill), value=-torch.inf)
    return items, scores


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
