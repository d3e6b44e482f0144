"""How well an attack did: area under the curve, true positives at few false ones, and the interval over repeats."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fedrec.errors import DataError

Interval = tuple[float, float | None, float | None]
"""Mean, and the ends of its interval; None where they are not known."""


def area_under_curve(scores: np.ndarray, included: np.ndarray) -> float:
    """Return the probability that a member scores higher than somebody else, ties counting half (AUC).

    Args:
        scores: (n,) finite.
        included: (n,) bool.

    Raises:
        DataError: where all are members, or none.

    Example:
        >>> area_under_curve(np.array([3.0, 2.0, 1.0]), np.array([True, False, True]))
        0.5
    """
    from scipy.stats import rankdata

    num_in, num_out = int(included.sum()), int((~included).sum())
    if not num_in or not num_out:
        raise DataError(
            f"{num_in} of {len(included)} coins fell on 'in': an attack needs members and others; give more data"
        )
    ranks = float(rankdata(scores)[included].sum())
    return (ranks - num_in * (num_in + 1) / 2) / (num_in * num_out)


def true_positive_rate(scores: np.ndarray, included: np.ndarray, false_positive_rate: float) -> float:
    """Return the share of members above the score that at most `false_positive_rate` of the others exceed."""
    others = np.sort(scores[~included])[::-1]
    return float((scores[included] > others[int(false_positive_rate * len(others))]).mean())


def mean_interval(values: Sequence[float], confidence: float) -> Interval:
    """Return the mean of some shares and the ends of its t interval, within [0, 1]; no ends for a single one."""
    from scipy.stats import t

    array = np.asarray(values, dtype=np.float64)
    mean = float(array.mean())
    if len(array) < 2:
        return mean, None, None
    half = float(t.ppf((1 + confidence) / 2, len(array) - 1)) * float(array.std(ddof=1)) / math.sqrt(len(array))
    return mean, max(mean - half, 0.0), min(mean + half, 1.0)
