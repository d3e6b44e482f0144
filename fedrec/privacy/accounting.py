"""Accounting: the epsilon that a list of noisy rounds spends, computed from the rounds alone.

Unit: a user. Adjacency: add or remove one user, both directions. Sensitivity: each event is a Gaussian mechanism whose noise std
is noise_multiplier x the L2 sensitivity, on a Poisson sample of the users, `count` times. Released: nothing, these are pure
functions of public numbers. Every epsilon is an upper bound, from one of three accountants:

    gaussian-exact   all users in every round: the closed form of Balle & Wang, exact, rounded up by a relative 1e-6
    opacus-prv       sampled users: Opacus' numerical composition (PRV), its upper bound with error 0.005 x epsilon
    rdp              Renyi accounting, about 11% high: on request, and where float64 is too coarse for the numerical one
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from fedrec.errors import PrivacyError

Event = tuple[float, float, int]
"""(noise_multiplier, sampling_probability, count)."""

ROUND_UP = 1 + 1e-6
MAX_GRID = 2**24
MAX_NUMERICAL_EPSILON = 500.0
RDP_ORDERS = [1 + x / 10 for x in range(1, 100)] + [float(x) for x in (*range(11, 64), 80, 96, 128, 192, 256, 512, 1024)]


class Spent(NamedTuple):
    """An epsilon and the accountant that proves it."""

    epsilon: float
    accountant: str


def epsilon(events: Sequence[Event], delta: float, accountant: str = "auto") -> float:
    """Return the epsilon of all events together; see `account`.

    Privacy:
        An upper bound for adding or removing one user.

    Example:
        >>> round(epsilon([(5.0, 1.0, 10)], delta=1e-5), 3)
        2.594
    """
    return account(events, delta, accountant).epsilon


def account(events: Sequence[Event], delta: float, accountant: str = "auto") -> Spent:
    """Compose the events and name the accountant that bounds them.

    Args:
        events: (noise_multiplier >= 0, sampling_probability in (0, 1], count >= 0) each; order does not matter.
        delta: in (0, 1).
        accountant: "auto" for the tightest sound one, or "rdp".

    Returns:
        Epsilon (0 for no event, inf for an event without noise) and the accountant's name.

    Raises:
        PrivacyError: where a number or the accountant is out of range.

    Privacy:
        An upper bound for adding or removing one user; the events may be chosen adaptively from earlier releases.
    """
    _check(events, delta)
    if accountant not in ("auto", "rdp"):
        raise PrivacyError(f"accountant={accountant!r} is not one of 'auto', 'rdp'; leave it out for the tightest one")
    if any(noise == 0 and count for noise, _, count in events):
        return Spent(math.inf, "gaussian-exact" if accountant == "auto" else "rdp")
    merged = _merge(events)
    if accountant == "auto" and all(probability == 1 for _, probability, _ in merged):
        return Spent(_exact_epsilon(1 / merged[0][0], delta) if merged else 0.0, "gaussian-exact")
    bound = _rdp_epsilon(merged, delta)
    if accountant == "rdp" or not 0 < bound < MAX_NUMERICAL_EPSILON or _float64_floor(merged) > delta / 10:
        return Spent(bound, "rdp")
    return _numerical_epsilon(merged, delta, bound)


def calibrate_noise(
    target_epsilon: float, delta: float, sampling_probability: float, count: int, rel_tol: float = 1e-3
) -> float:
    """Return the smallest noise multiplier with which `count` equal rounds spend at most `target_epsilon`.

    Args:
        target_epsilon: positive.
        delta: in (0, 1).
        sampling_probability: of each user in each round, in (0, 1].
        count: number of rounds, at least 1.
        rel_tol: how far below the target the epsilon of the answer may lie, relative.

    Returns:
        A noise multiplier z with (1 - rel_tol) target <= epsilon(z) <= target: never less privacy than asked.

    Raises:
        PrivacyError: where an argument is out of range.

    Privacy:
        `account` of the answer is at most `target_epsilon`, by evaluation and not by interpolation.
    """
    _check([(1.0, sampling_probability, count)], delta)
    if not (0 < target_epsilon < math.inf and count >= 1 and 0 < rel_tol < 1):
        raise PrivacyError(
            f"target_epsilon={target_epsilon}, count={count}, rel_tol={rel_tol}: allowed are a positive finite "
            "target_epsilon, at least one round and a tolerance in (0, 1)"
        )

    def spend(noise: float, accountant: str = "auto") -> float:
        return epsilon([(noise, sampling_probability, count)], delta, accountant)

    start = math.sqrt(count)
    if sampling_probability < 1:  # the Renyi bound is cheap and a little high: a start just above the answer
        start = _smallest(lambda noise: spend(noise, "rdp"), target_epsilon, sampling_probability * start, 0.02)
    return _smallest(spend, target_epsilon, start, rel_tol)


def gaussian_delta(mu: float, epsilon: float) -> float:
    """Return delta(epsilon) = Phi(mu/2 - epsilon/mu) - exp(epsilon) Phi(-mu/2 - epsilon/mu) of the Gaussian mechanism.

    Args:
        mu: sensitivity / noise std, positive; composed: mu^2 = sum of 1 / noise_multiplier^2.
        epsilon: at least 0.

    Privacy:
        Exact for adding or removing one user, without sampling.

    Source:
        Balle & Wang, Improving the Gaussian Mechanism for Differential Privacy, 2018, Theorem 8.
    """
    return math.exp(_log_gaussian_delta(epsilon / mu - mu / 2, mu))


def _check(events: Sequence[Event], delta: float) -> None:
    """Raise where a number is out of range."""
    if not 0 < delta < 1:
        raise PrivacyError(f"delta={delta} is not in (0, 1); choose it well below 1 / population_size")
    for noise, probability, count in events:
        if not 0 <= noise < math.inf:
            raise PrivacyError(f"noise_multiplier={noise} is not a finite number >= 0; it is noise std / clipping_norm")
        if not 0 < probability <= 1:
            raise PrivacyError(
                f"sampling_probability={probability} is not in (0, 1]; it is expected_cohort_size / population_size"
            )
        if not count >= 0 or count != int(count):
            raise PrivacyError(f"count={count} is not a whole number >= 0; it is the number of rounds")


def _merge(events: Sequence[Event]) -> list[Event]:
    """Merge equal events; the rounds with every user compose exactly to one Gaussian with mu^2 = sum count / noise^2."""
    merged: dict[tuple[float, float], int] = {}
    for noise, probability, count in events:
        if count:
            merged[noise, probability] = merged.get((noise, probability), 0) + int(count)
    mu = math.hypot(*[math.sqrt(count) / noise for (noise, q), count in sorted(merged.items()) if q == 1])
    sampled = [(noise, q, count) for (noise, q), count in sorted(merged.items()) if q < 1]
    return [(1 / mu, 1.0, 1), *sampled] if mu else sampled


def _log_gaussian_delta(near: float, mu: float) -> float:
    """Return log delta at epsilon = mu (near + mu / 2), by scaled tails: Phi(-x) = erfcx(x / sqrt 2) exp(-x^2 / 2) / 2.

    Both terms of the closed form carry the same factor exp(-near^2 / 2), so nothing over- or underflows.
    """
    from scipy.special import erfcx, ndtr

    scaled, root = near / math.sqrt(2), math.sqrt(2 / math.pi)
    if mu < 1e-6:  # the difference would cancel; the tail is convex, so its tangent times mu is an upper bound
        return float(math.log(mu * (root - near * erfcx(scaled)) / 2) - near**2 / 2)
    far = erfcx((near + mu) / math.sqrt(2))
    if near > 0:
        return float(math.log((erfcx(scaled) - far) / 2) - near**2 / 2)
    return float(math.log(ndtr(-near) - math.exp(-(near**2) / 2) * far / 2))


def _exact_epsilon(mu: float, delta: float) -> float:
    """Solve delta(epsilon) = delta for the Gaussian mechanism, rounded up."""
    from scipy.optimize import brentq

    if math.isinf(mu * mu) or math.erf(mu / math.sqrt(8)) <= delta:  # delta(0) = erf(mu / sqrt 8)
        return math.inf if math.isinf(mu * mu) else 0.0
    high = math.sqrt(2 * math.log(1 / delta)) + 1e-9  # delta(epsilon) <= Phi(-near) <= exp(-near^2 / 2)
    near = brentq(lambda x: _log_gaussian_delta(x, mu) - math.log(delta), -mu / 2, high, xtol=1e-13, rtol=1e-13)
    return max(0.0, float(mu * (near + mu / 2)) * ROUND_UP)


def _rdp_epsilon(events: Sequence[Event], delta: float) -> float:
    """Bound epsilon by Renyi differential privacy (Mironov, Talwar & Zhang 2019; conversion of Balle et al. 2020, Theorem 21)."""
    from opacus.accountants.analysis.rdp import compute_rdp, get_privacy_spent

    with warnings.catch_warnings():  # Opacus warns where the best order is the largest: still a bound
        warnings.simplefilter("ignore")
        curve = sum(compute_rdp(q=q, noise_multiplier=z, steps=count, orders=RDP_ORDERS) for z, q, count in events)
        return max(0.0, float(get_privacy_spent(orders=RDP_ORDERS, rdp=curve, delta=delta)[0]))


def _float64_floor(events: Sequence[Event]) -> float:
    """Return how much of delta the rounding of cumulative probabilities in float64 may hide, over all rounds."""
    return 1e-13 + 1e-15 * sum(count for _, _, count in events)


def _numerical_epsilon(events: Sequence[Event], delta: float, bound: float) -> Spent:
    """Tighten a bound in three passes, each with a finer error; where Opacus gives up, the bound itself stands."""
    name = "rdp"
    for fraction in (0.1, 0.05, 0.005):
        try:
            tighter = max(_prv_upper_bound(events, delta, fraction * bound, removal) for removal in (True, False))
        except (RuntimeError, ValueError):
            break
        if not 0 <= tighter < bound:
            break
        bound, name = tighter, "opacus-prv"
    return Spent(bound, name)
