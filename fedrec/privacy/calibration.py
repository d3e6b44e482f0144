"""Calibration: the least noise whose accounted epsilon is at most the target, never more.

Unit, adjacency and sensitivity are those of `fedrec.privacy.accounting`, which every answer is evaluated by. Released:
nothing; a pure function of public numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from fedrec.errors import PrivacyError
from fedrec.privacy import accounting

TARGETS = (1e-6, 1e6)


def calibrate_noise(
    target_epsilon: float, delta: float, sampling_probability: float, count: int, rel_tol: float = 1e-3
) -> float:
    """Return the smallest noise multiplier with which `count` equal rounds spend at most `target_epsilon`.

    Args:
        target_epsilon: in [1e-6, 1e6].
        delta: in (0, 1).
        sampling_probability: of each unit in each round, in (0, 1].
        count: number of rounds, at least 1.
        rel_tol: how far below the target the epsilon of the answer may lie, relative.

    Returns:
        A noise multiplier z with (1 - rel_tol) target <= epsilon(z) <= target: never less privacy than asked. For
        sampled units and a target beyond about 300, where the accountants change, epsilon(z) may lie further below.

    Raises:
        PrivacyError: where an argument is out of range, or delta so large that every noise keeps to the target.

    Privacy:
        `account` of the answer is at most `target_epsilon`, by evaluation and not by interpolation.
    """
    accounting.check([(1.0, sampling_probability, count)], delta)
    if not TARGETS[0] <= target_epsilon <= TARGETS[1]:
        raise PrivacyError(
            f"target_epsilon={target_epsilon:g} is not in [{TARGETS[0]:g}, {TARGETS[1]:g}]; give the epsilon not to "
            "exceed, usually between 0.1 and 10"
        )
    if count < 1 or not 0 < rel_tol < 1:
        raise PrivacyError(
            f"count={count}, rel_tol={rel_tol}: allowed are at least one round and a tolerance in (0, 1)"
        )

    if sampling_probability < 1 and -math.expm1(count * math.log1p(-sampling_probability)) <= delta:
        raise PrivacyError(
            f"delta={delta:g} is at least the probability that a given unit is ever drawn, so every noise would do, "
            "even none; choose delta well below 1 / population_size"
        )

    def spend(noise: float) -> float:
        return accounting.epsilon([(noise, sampling_probability, count)], delta)

    def sampled_as_gaussian(noise: float) -> float:  # the limit of many rounds (Bu et al. 2020): a guess, no bound
        variance = count * sampling_probability**2 * math.expm1(min(noise**-2.0, 500.0))
        return accounting.exact_epsilon(math.sqrt(variance), delta)

    if sampling_probability == 1:
        return _smallest(spend, target_epsilon, math.sqrt(count), min(rel_tol, 1e-6))  # exact and cheap: waste nothing
    start = _smallest(sampled_as_gaussian, target_epsilon, math.sqrt(count), 1e-3)
    return _smallest(spend, target_epsilon, start, rel_tol)


def _smallest(spend: Callable[[float], float], target: float, start: float, rel_tol: float) -> float:
    """Return a z with (1 - rel_tol) target <= spend(z) <= target, for a falling `spend`; false position in log-log."""
    bracket: dict[bool, tuple[float, float]] = {}  # spends too much -> (log z, log of spend / aim)
    point, stride = math.log(start), 0.0
    for step in range(200):
        value = spend(math.exp(point))
        if (1 - rel_tol) * target <= value <= target:
            return math.exp(point)
        excess = math.log(min(max(value / target, 1e-9), 1e9) / (1 - rel_tol / 2))
        bracket[value > target] = (point, excess)
        if len(bracket) < 2:
            stride = max(2 * stride, min(1.1 * abs(excess), 0.5))  # the slope is about -1, or steeper
            point += stride if value > target else -stride
            continue
        (low, above), (high, below) = bracket[True], bracket[False]
        if high - low < 1e-12:  # a jump between two accountants
            break
        point = low + (high - low) * (0.5 if step % 3 == 2 else above / (above - below))
    return math.exp(bracket[False][0])
