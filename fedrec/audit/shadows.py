"""Calibration by shadow runs: what a statistic of the same user is usually like with that user in, and out.

Runs with coins of their own show, for each user, the mean of a statistic when in (m1) and when out (m0), and its
variance v. A run under attack is then judged by the log likelihood ratio of two normal distributions,

    score = ((x - m0)^2 - (x - m1)^2) / (2 v)

With few shadows the shift m1 - m0 of a single user is mostly noise, above all under a plan; so it is drawn towards the
mean shift of all users, by the empirical Bayes factor, and v halfway to the common variance.

Source: Carlini et al., Membership Inference Attacks From First Principles, 2022 (LiRA, with a common variance).
"""

from __future__ import annotations

import numpy as np


def calibrated_scores(observed: np.ndarray, shadows: np.ndarray, coins: np.ndarray) -> np.ndarray:
    """Return the log likelihood ratio of "in" against "out" for each user of a run under attack.

    Args:
        observed: (n,) the statistic in that run.
        shadows: (num_shadows, n) the statistic in other runs.
        coins: (num_shadows, n) bool, who was in there.

    Returns:
        (n,) float64.
    """
    num_in, num_out = coins.sum(axis=0), (~coins).sum(axis=0)
    mean_in = (shadows * coins).sum(axis=0) / np.maximum(num_in, 1)
    mean_out = (shadows * ~coins).sum(axis=0) / np.maximum(num_out, 1)
    squares = np.square(shadows - np.where(coins, mean_in, mean_out)).sum(axis=0)
    variance = squares / np.maximum(len(shadows) - 2, 1)
    std = np.sqrt((variance + variance.mean()) / 2) + 1e-12
    known = (num_in > 0) & (num_out > 0)
    shift = (mean_in - mean_out)[known] / std[known]
    error = 1 / num_in[known] + 1 / num_out[known]
    common = float(shift.mean()) if len(shift) else 0.0
    spread = max(float(np.var(shift) - error.mean()), 0.0) if len(shift) else 0.0
    shifts = np.full(len(observed), common)
    shifts[known] += spread / (spread + error) * (shift - common)
    middle = (shadows / std - coins * shifts).mean(axis=0)
    return np.asarray(shifts * (observed / std - middle) - shifts**2 / 2)
