"""Sums of squares that come out the same to the last bit in whatever order, and however far padded, they are taken."""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from fedrec.compiled import OPTIONS

MOST_BITS = 26
"""Sums are exact up to 2^26 numbers a user."""

_LANES = 64
"""Numbers that are worked on side by side: what the compiler turns into wide instructions."""

_EXACT = {**OPTIONS, "fastmath": False}
"""What is added below must be added as it is written."""


@njit(**_EXACT)
def sums_of_squares(start: int, stop: int, values: np.ndarray, mask: np.ndarray, sums: np.ndarray) -> None:
    """Sum the squares of the rows that count of users start..stop.

    Numbers are divided by a power of two, so that the largest is between 1/2 and 1. Each square is cut into multiples
    of 2^-26, of 2^-53 and of 2^-80, and each kind is added up on its own: no addition of up to 2^26 of them rounds, so
    that none depends on the order. What is left of a square, at most 2^-81, is dropped.

    Args:
        start: first user.
        stop: one past the last.
        values: (B, m, d), float32 or float64.
        mask: (B, m) bool, the rows that count.
        sums: (B,) float64 result, within 2^-50 of the sum, relatively, unless that is below 1e-290; infinity where a
            number is not finite, or the sum is too large.

    Source:
        Demmel & Nguyen, Parallel Reproducible Summation, 2015.
    """
    largest, spoilt = np.empty(_LANES), np.empty(_LANES)
    coarse, middle, fine = np.empty(_LANES), np.empty(_LANES), np.empty(_LANES)
    above, within, below = 1.5 * 2.0**MOST_BITS, 1.5 * 2.0 ** (MOST_BITS - 27), 1.5 * 2.0 ** (MOST_BITS - 54)
    for user in range(start, stop):
        largest[:], spoilt[:] = 0.0, 0.0
        for k in range(values.shape[1]):
            if mask[user, k]:
                for first in range(0, values.shape[2], _LANES):
                    part = values[user, k, first : first + _LANES]
                    for j in range(len(part)):
                        number = np.float64(part[j])
                        spoilt[j] += number - number  # not a number where this one is not finite
                        size = abs(number)
                        largest[j] = size if size > largest[j] else largest[j]
        if spoilt.sum() != 0.0:
            sums[user] = math.inf
            continue
        exponent = math.frexp(largest.max())[1]
        half = exponent // 2  # 2^-exponent itself may be too large a number
        down, further = math.ldexp(1.0, -half), math.ldexp(1.0, half - exponent)
        coarse[:], middle[:], fine[:] = 0.0, 0.0, 0.0
        for k in range(values.shape[1]):
            if mask[user, k]:
                for first in range(0, values.shape[2], _LANES):
                    part = values[user, k, first : first + _LANES]
                    for j in range(len(part)):
                        number = np.float64(part[j]) * down * further
                        square = number * number
                        cut = (square + above) - above
                        coarse[j] += cut
                        square -= cut
                        cut = (square + within) - within
                        middle[j] += cut
                        square -= cut
                        fine[j] += (square + below) - below
        sums[user] = math.ldexp(coarse.sum() + (middle.sum() + fine.sum()), 2 * exponent)
