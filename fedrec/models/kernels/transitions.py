"""Sums over all positions of histories, of what was met before against itself and against what came next."""

from __future__ import annotations

import numpy as np
from numba import njit

from fedrec.compiled import OPTIONS


@njit(**OPTIONS)
def add_next(total: np.ndarray, ids: np.ndarray, lengths: np.ndarray, scale: np.ndarray, recency: np.ndarray) -> None:
    """Add what came next: total[item s, item t] += scale x recency[t - 1 - s] for all positions s < t of each user.

    Args:
        total: (M, M), changed in place.
        ids: (B, L) items, oldest first.
        lengths: (B,) of each history.
        scale: (B,) of each user.
        recency: (at least L,) weight of an interaction by age.
    """
    for user in range(len(ids)):
        history = ids[user, : lengths[user]]
        for t in range(1, len(history)):
            for s in range(t):
                total[history[s], history[t]] += scale[user] * recency[t - 1 - s]


@njit(**OPTIONS)
def add_past(
    total: np.ndarray, ids: np.ndarray, lengths: np.ndarray, scale: np.ndarray, decay: float, floor: float
) -> None:
    """Add the second moments of what was met before: x x' of every position but the first, x the weights of the past.

    The weight of age a is decay^a + floor, so that the sum over the K positions after both of a pair d apart is

        decay^d sum_k decay^2k + floor (decay^d + 1) sum_k decay^k + K floor^2,    k = 0..K - 1

    Args:
        total: (M, M), changed in place.
        ids: (B, L) items, oldest first.
        lengths: (B,) of each history.
        scale: (B,) of each user.
        decay: factor by which an interaction weighs less for each newer one.
        floor: weight that is left to the oldest.
    """
    width = ids.shape[1]
    powers, once, twice = np.empty(width + 1), np.zeros(width + 1), np.zeros(width + 1)
    powers[0] = 1.0
    for k in range(width):
        powers[k + 1] = powers[k] * decay
        once[k + 1] = once[k] + powers[k]
        twice[k + 1] = twice[k] + powers[k] * powers[k]
    for user in range(len(ids)):
        num = lengths[user]
        for j in range(num - 1):
            left = num - 1 - j
            for i in range(j + 1):
                power = powers[j - i]
                value = power * twice[left] + floor * (power + 1.0) * once[left] + left * floor * floor
                value *= scale[user]
                total[ids[user, i], ids[user, j]] += value
                if i != j:
                    total[ids[user, j], ids[user, i]] += value
