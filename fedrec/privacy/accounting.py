"""Accounting: the epsilon that a list of noisy rounds spends, computed from the rounds alone.

Unit: whatever the sensitivity is stated for. Adjacency: add or remove one unit, both directions; without sampling also
any other, as replacing one, for only the sensitivity enters. Sensitivity: an event is a Gaussian mechanism with noise
std = noise_multiplier x L2 sensitivity on a Poisson sample of the units, `count` times. Released: nothing, these are
pure functions of public numbers. Every epsilon is an upper bound, from one of four accountants:

    gaussian-exact   every unit in every round: the closed form of Balle & Wang, exact, rounded up by a relative 1e-6
    opacus-prv       sampled units: Opacus' numerical composition (PRV), its upper bound with error 0.005 x epsilon
    rdp              Renyi accounting, about 11% high: on request, and where float64 is too coarse for the numerical one
    zcdp             zero-concentrated accounting, on request and without sampling only: for statements that give rho
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from fedrec.errors import PrivacyError

Event = tuple[float, float, int]  # (noise_multiplier, sampling_probability, count)
ACCOUNTANTS = ("auto", "rdp", "zcdp")
MAX_COUNT = 10**15
NO_NOISE = 1e-150  # its inverse would overflow when squared
ROUND_UP = 1 + 1e-6


class Spent(NamedTuple):
    """An epsilon and the accountant that proves it."""

    epsilon: float
    accountant: str


def epsilon(events: Sequence[Event], delta: float, accountant: str = "auto") -> float:
    """Return the epsilon of all events together, an upper bound for adding or removing one unit; see `account`.

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
        accountant: "auto" for the tightest sound one, or "rdp", or "zcdp" where every sampling_probability is 1.

    Returns:
        Epsilon (0 for no event, inf for an event without noise) and the accountant's name.

    Raises:
        PrivacyError: where a number or the accountant is out of range.

    Privacy:
        An upper bound for adding or removing one unit. A release may depend on earlier ones; the events may not, they
        are those of a plan fixed in advance.
    """
    check(events, delta)
    if accountant not in ACCOUNTANTS:
        allowed = ", ".join(map(repr, ACCOUNTANTS))
        raise PrivacyError(f"accountant={accountant!r} is not one of {allowed}; leave it out for the tightest one")
    if accountant == "zcdp":
        from fedrec.privacy.zcdp import zcdp, zcdp_epsilon

        return Spent(zcdp_epsilon(zcdp(events), delta), "zcdp")
    no_noise = any(noise < NO_NOISE and count for noise, _, count in events)
    merged = [] if no_noise else _merge(events)
    if not merged:
        return Spent(math.inf if no_noise else 0.0, "gaussian-exact" if accountant == "auto" else "rdp")
    if accountant == "auto" and all(probability == 1 for _, probability, _ in merged):
        return Spent(exact_epsilon(1 / merged[0][0], delta), "gaussian-exact")
    from fedrec.privacy.composition import prv_epsilon, rdp_epsilon

    bound = rdp_epsilon(merged, delta)
    tighter = prv_epsilon(merged, delta, bound) if accountant == "auto" else None
    return Spent(bound, "rdp") if tighter is None or tighter >= bound else Spent(tighter, "opacus-prv")


def gaussian_delta(mu: float, epsilon: float) -> float:
    """Return delta(epsilon) = Phi(mu/2 - epsilon/mu) - exp(epsilon) Phi(-mu/2 - epsilon/mu) of the Gaussian mechanism.

    Args:
        mu: sensitivity / noise std, positive; composed: mu^2 = sum of 1 / noise_multiplier^2.
        epsilon: at least 0.

    Privacy:
        Exact for one unit, without sampling.

    Source:
        Balle & Wang, Improving the Gaussian Mechanism for Differential Privacy, 2018, Theorem 8.
    """
    return math.exp(_log_gaussian_delta(epsilon / mu - mu / 2, mu))


def check(events: Sequence[Event], delta: float) -> None:
    """Refuse events or a delta out of range.

    Raises:
        PrivacyError: with what was found and what is allowed.

    Privacy:
        None: looks at public numbers only.
    """
    if not 0 < delta < 1:
        raise PrivacyError(f"delta={delta} is not in (0, 1); choose it well below 1 / population_size")
    check_events(events)


def check_events(events: Sequence[Event]) -> None:
    """Refuse events out of range.

    Raises:
        PrivacyError: with what was found and what is allowed.

    Privacy:
        None: looks at public numbers only.
    """
    for noise, probability, count in events:
        if not 0 <= noise < math.inf:
            raise PrivacyError(f"noise_multiplier={noise} is not a finite number >= 0; it is noise std / sensitivity")
        if not 0 < probability <= 1:
            raise PrivacyError(f"sampling_probability={probability} is not in (0, 1]; it is cohort / population_size")
        if not 0 <= count <= MAX_COUNT or count != int(count):
            raise PrivacyError(f"count={count} is not a whole number from 0 to {MAX_COUNT}; it is the number of rounds")


def _merge(events: Sequence[Event]) -> list[Event]:
    """Merge equal events; the rounds with every unit are together one Gaussian with mu^2 = sum count / noise^2."""
    merged: dict[tuple[float, float], int] = {}
    for noise, probability, count in events:
        if count:
            merged[noise, probability] = merged.get((noise, probability), 0) + int(count)
    mu = math.hypot(*[math.sqrt(count) / noise for (noise, q), count in sorted(merged.items()) if q == 1])
    sampled = [(noise, q, count) for (noise, q), count in sorted(merged.items()) if q < 1]
    return [(1 / mu, 1.0, 1), *sampled] if mu else sampled


def _log_gaussian_delta(near: float, mu: float) -> float:
    """Return log delta at epsilon = mu (near + mu / 2), by tails Phi(-x) = erfcx(x / sqrt 2) exp(-x^2 / 2) / 2."""
    from scipy.special import erfcx, ndtr

    # both terms of the closed form carry the same factor exp(-near^2 / 2), so nothing over- or underflows
    scaled, root = near / math.sqrt(2), math.sqrt(2 / math.pi)
    if mu < 1e-6:  # the difference would cancel; the tail is convex, so its tangent times mu is an upper bound
        return float(math.log(mu * (root - near * erfcx(scaled)) / 2) - near**2 / 2)
    far = erfcx((near + mu) / math.sqrt(2))
    if near > 0:
        return float(math.log((erfcx(scaled) - far) / 2) - near**2 / 2)
    return float(math.log(ndtr(-near) - math.exp(-(near**2) / 2) * far / 2))


def exact_epsilon(mu: float, delta: float) -> float:
    """Solve delta(epsilon) = delta for the Gaussian mechanism, rounded up by a relative 1e-6.

    Privacy:
        Exact for one Gaussian release of sensitivity / noise std = mu, or for several with mu^2 = sum of theirs.
    """
    from scipy.optimize import brentq

    if math.isinf(mu * mu) or math.erf(mu / math.sqrt(8)) <= delta:  # the erf is delta at epsilon 0
        return math.inf if math.isinf(mu * mu) else 0.0
    high = math.sqrt(-2 * math.log(delta)) + 1e-9  # delta(epsilon) <= Phi(-near) <= exp(-near^2 / 2); Phi(40) = 1
    near = brentq(
        lambda x: _log_gaussian_delta(x, mu) - math.log(delta), max(-mu / 2, -40.0), high, xtol=1e-13, rtol=1e-13
    )
    return max(0.0, float(mu * (near + mu / 2)) * ROUND_UP)
