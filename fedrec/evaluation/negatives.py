"""Sampled negatives, for comparison with published tables only: which items a user is asked to tell the target from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedrec.compiled import compiled_for, over_rows
from fedrec.data.interactions import Interactions
from fedrec.randomness import Key

_AMPLE = 16  # draws per negative wanted: enough even where only a quarter of the items is unmet
_USUAL = 2  # draws per negative wanted that nearly always do


@dataclass(frozen=True, eq=False)
class Met:
    """The items that B users may not draw as negatives.

    Args:
        items: (B, L) int64 items met in any part of the data, in any order, repeated or not; 0 where padded.
        mask: (B, L) bool.
        outside: (M,) bool, items that nobody may draw.
    """

    items: Tensor
    mask: Tensor
    outside: Tensor

    @classmethod
    def of(cls, parts: Sequence[Interactions], rows: np.ndarray, candidates: Tensor | None = None) -> Met:
        """Gather what some users met in any of the parts; candidates: (M,) bool, None for all items."""
        items, masks = zip(*(_padded(part, rows) for part in parts), strict=True)
        num_items = parts[0].num_items
        outside = torch.zeros(num_items, dtype=torch.bool) if candidates is None else ~candidates.cpu()
        return cls(torch.from_numpy(np.hstack(items)), torch.from_numpy(np.hstack(masks)), outside)

    def of_users(self, index: np.ndarray) -> Met:
        """Return the rows of a boolean mask or index array."""
        chosen = torch.from_numpy(index)
        return Met(self.items[chosen], self.mask[chosen], self.outside)

    def table(self) -> Tensor:
        """Return (B, M) bool: True for what the user may not draw."""
        num_items = len(self.outside)
        table = torch.zeros(len(self.items), num_items + 1, dtype=torch.bool)
        table.scatter_(1, torch.where(self.mask, self.items, num_items), True)
        return table[:, :-1] | self.outside


def _padded(interactions: Interactions, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (B, L) int64 items and (B, L) bool."""
    lengths = interactions.lengths[rows]
    positions = np.arange(int(lengths.max(initial=0)))
    mask = positions < lengths[:, None]
    items = np.zeros(mask.shape, dtype=np.int64)
    items[mask] = interactions.items[(interactions.indptr[rows][:, None] + positions)[mask]]
    return items, mask


def draw_negatives(met: Met, user_keys: np.ndarray, key: Key, num_negatives: int = 99) -> Tensor:
    """Draw distinct items that each user has never met, uniformly and for every model the same.

    Candidates are drawn with replacement, and the first `num_negatives` that are new and unmet are kept: that is
    uniform sampling without replacement. Users who have met nearly everything get the items of the smallest draws.

    Args:
        met: what B users may not draw.
        user_keys: (B,) uint64.
        key: a user's draws depend on nothing but this key and the user's own.
        num_negatives: how many; all there are where a user has fewer.

    Returns:
        (B, num_negatives) int64, -1 where there are no more.
    """
    num_items = len(met.outside)
    fewest = max(4 * num_negatives, num_items // 4)
    if compiled_for(met.items):
        negatives, scarce = _draw_compiled(met, user_keys, key, num_negatives, fewest)
    else:
        negatives, scarce = _draw_plain(met, user_keys, key, num_negatives, fewest)
    rows = np.flatnonzero(scarce)
    if len(rows):
        draws = torch.from_numpy(key.fold("all").user_uniforms(user_keys[rows], num_items))
        draws = draws.masked_fill_(met.of_users(rows).table(), torch.inf)
        values, items = torch.topk(draws, min(num_negatives, num_items), dim=1, largest=False)
        negatives[rows, : items.shape[1]] = torch.where(torch.isfinite(values), items, -1)
    return negatives


def _draw_compiled(
    met: Met, user_keys: np.ndarray, key: Key, num_negatives: int, fewest: int
) -> tuple[Tensor, np.ndarray]:
    """Return what `_draw_plain` does, with as few draws as do."""
    from fedrec.evaluation.kernels import draw_rows

    negatives = np.empty((len(user_keys), num_negatives), dtype=np.int64)
    found = np.empty(len(user_keys), dtype=np.int64)

    def draw(rows: np.ndarray, num_draws: int) -> None:
        some, kept, num = met.of_users(rows), negatives[rows], found[rows]
        given = (part.contiguous().numpy() for part in (some.items, some.mask, some.outside))
        uniforms = key.user_uniforms(user_keys[rows], num_draws)
        over_rows(draw_rows, len(rows), *given, fewest, uniforms, kept, num)
        negatives[rows], found[rows] = kept, num

    draw(np.arange(len(user_keys)), _USUAL * num_negatives)
    unfinished = np.flatnonzero((found >= 0) & (found < num_negatives))
    if len(unfinished):
        draw(unfinished, _AMPLE * num_negatives)
    return torch.from_numpy(negatives), found < 0


def _draw_plain(
    met: Met, user_keys: np.ndarray, key: Key, num_negatives: int, fewest: int
) -> tuple[Tensor, np.ndarray]:
    """Return (B, num_negatives) int64, -1 where there are none, and (B,) bool: users with too few items to draw so."""
    table = met.table()
    num_items = table.shape[1]
    negatives = torch.full((len(table), num_negatives), -1, dtype=torch.int64)
    scarce = (num_items - table.sum(dim=1) < fewest).numpy()
    rows = np.flatnonzero(~scarce)
    if len(rows):
        drawn = key.user_uniforms(user_keys[rows], _AMPLE * num_negatives)
        items = torch.from_numpy((drawn * num_items).astype(np.int64))
        negatives[rows] = _first_new(items, table[rows], num_negatives)
    return negatives, scarce


def _first_new(items: Tensor, met: Tensor, num: int) -> Tensor:
    """Return the first `num` distinct unmet items of each row of (B, K) draws; K is ample, see the caller."""
    ordered, order = torch.sort(items, dim=1, stable=True)
    repeated = torch.zeros_like(ordered, dtype=torch.bool)
    repeated[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    usable = torch.zeros_like(repeated).scatter_(1, order, ~repeated) & ~met.gather(1, items)
    position = torch.where(usable, torch.arange(items.shape[1]), items.shape[1])
    first = torch.topk(position, num, dim=1, largest=False, sorted=True).values
    return torch.where(first < items.shape[1], items.gather(1, first.clamp(max=items.shape[1] - 1)), -1)
