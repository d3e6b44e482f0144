"""Compiled forms of ranking and of drawing negatives: one user at a time, over one row of scratch a thread.

Each stands behind a function of `ranking` or `negatives` that says what is computed and holds the plain form.
"""

from __future__ import annotations

import numpy as np
from numba import njit

_BLOCK = 64  # scores looked at together; nearly all blocks hold nothing for the list and are passed over


@njit(cache=True, nogil=True)
def _mask_row(scores, allowed, lowest, row):  # type: ignore[no-untyped-def]
    """Write a user's scores to `row`: NaN and -inf as the lowest number, +inf as the highest; -inf if not allowed."""
    for item in range(len(row)):
        score = scores[item]
        score = score if score >= lowest else lowest
        score = score if score <= -lowest else -lowest
        row[item] = score if allowed[item] else -np.inf


@njit(cache=True, nogil=True)
def _at_least(row, score):  # type: ignore[no-untyped-def]
    """Return how many entries of `row` are at least `score`."""
    num = 0
    for item in range(len(row)):
        num += row[item] >= score
    return num


@njit(cache=True, nogil=True)
def _sink(items, values, position, length):  # type: ignore[no-untyped-def]
    """Restore the heap, whose root is the worst entry: lowest value, of equal ones the highest item."""
    item, value = items[position], values[position]
    while True:
        child = 2 * position + 1
        if child >= length:
            break
        other = child + 1
        if other < length and (
            values[other] < values[child] or (values[other] == values[child] and items[other] > items[child])
        ):
            child = other
        if value < values[child] or (value == values[child] and item > items[child]):
            break
        items[position], values[position] = items[child], values[child]
        position = child
    items[position], values[position] = item, value


@njit(cache=True, nogil=True)
def _best_of_row(row, items, values):  # type: ignore[no-untyped-def]
    """Write the best entries of `row` to `items` and `values`, best first, ties by item; -1 and -inf where too few."""
    length = len(items)
    items[:] = -1
    values[:] = -np.inf
    if length == 0:
        return
    for start in range(0, len(row), _BLOCK):
        stop = min(start + _BLOCK, len(row))
        better = False
        for item in range(start, stop):
            better |= row[item] > values[0]
        if better:
            for item in range(start, stop):
                if row[item] > values[0]:
                    items[0], values[0] = item, row[item]
                    _sink(items, values, 0, length)
    for last in range(length - 1, 0, -1):
        items[0], items[last] = items[last], items[0]
        values[0], values[last] = values[last], values[0]
        _sink(items, values, 0, last)


@njit(cache=True, nogil=True)
def rank_rows(  # type: ignore[no-untyped-def]
    start, stop, scores, seen, seen_mask, allowed, targets, target_mask, negatives, ranks, sampled, items, values
):
    """Rank the items of users `start..stop`; see `ranking.rank`.

    Args:
        start: first user.
        stop: one after the last user.
        scores: (B, M) float32.
        seen: (B, L) int64.
        seen_mask: (B, L) bool.
        allowed: (M,) bool.
        targets: (B, T) int64.
        target_mask: (B, T) bool.
        negatives: (B, D, N) int64, -1 where there are none; D is 0 where none are ranked.
        ranks: (B, T) int64, written.
        sampled: (B, D) int64, written.
        items: (B, num) int64, written.
        values: (B, num) float32, written.
    """
    num_items = scores.shape[1]
    lowest = np.float32(np.finfo(np.float32).min)
    row = np.empty(num_items, dtype=np.float32)
    for user in range(start, stop):
        _mask_row(scores[user], allowed, lowest, row)
        for position in range(seen.shape[1]):
            if seen_mask[user, position]:
                row[seen[user, position]] = -np.inf
        for position in range(targets.shape[1]):
            ranks[user, position] = num_items + 1
            if target_mask[user, position] and row[targets[user, position]] >= lowest:
                ranks[user, position] = _at_least(row, row[targets[user, position]])
        for draw in range(negatives.shape[1]):
            score, rank = row[targets[user, 0]], 1
            for item in negatives[user, draw]:
                rank += item >= 0 and row[item] >= score
            sampled[user, draw] = rank
        _best_of_row(row, items[user], values[user])


@njit(cache=True, nogil=True)
def draw_rows(start, stop, met, met_mask, outside, fewest, uniforms, negatives, found):  # type: ignore[no-untyped-def]
    """Keep the first new, unmet items among the draws of users `start..stop`; see `negatives.draw_negatives`.

    Args:
        start: first user.
        stop: one after the last user.
        met: (B, L) int64.
        met_mask: (B, L) bool.
        outside: (M,) bool, items that nobody may draw.
        fewest: a user with fewer unmet items than this is left to another way of drawing.
        uniforms: (B, K) float64 in [0, 1).
        negatives: (B, num) int64, written.
        found: (B,) int64, written: how many were kept; -1 for a user with fewer than `fewest` unmet items.
    """
    num_items, num = len(outside), negatives.shape[1]
    taken = outside.copy()
    num_allowed = num_items
    for item in range(num_items):
        num_allowed -= outside[item]
    for user in range(start, stop):
        unmet = num_allowed
        for position in range(met.shape[1]):
            if met_mask[user, position]:
                unmet -= not taken[met[user, position]]
                taken[met[user, position]] = True
        kept = 0 if unmet >= fewest else -1
        negatives[user] = -1
        if kept == 0:
            for position in range(uniforms.shape[1]):
                if kept == num:
                    break
                item = int(uniforms[user, position] * num_items)
                if not taken[item]:
                    taken[item] = True
                    negatives[user, kept] = item
                    kept += 1
        found[user] = kept
        for position in range(kept):
            taken[negatives[user, position]] = outside[negatives[user, position]]
        for position in range(met.shape[1]):
            if met_mask[user, position]:
                taken[met[user, position]] = outside[met[user, position]]
