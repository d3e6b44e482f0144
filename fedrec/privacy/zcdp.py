"""Zero-concentrated accounting: the rho that rounds without sampling spend, and the epsilon that follows from it.

Unit, adjacency and sensitivity are those of `fedrec.privacy.accounting`. Rhos add up, over rounds and over runs on the
same units, which is why statements give them; the epsilon that follows is above that of the closed form. Released:
nothing; pure functions of public numbers.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from fedrec.errors import PrivacyError
from fedrec.privacy.accounting import NO_NOISE, ROUND_UP, Event, check_events

_LEAST, _MOST = 1e-290, 1e290  # rho is rounded up to 1e-290 if it is not 0, and above 1e290 to inf


def zcdp(events: Sequence[Event]) -> float:
    """Return rho = sum of count / (2 noise_multiplier^2).

    Args:
        events: (noise_multiplier >= 0, sampling_probability = 1, count >= 0) each; order does not matter.

    Returns:
        rho; 0 for no event, inf for an event without noise.

    Raises:
        PrivacyError: where units are sampled, which zero-concentrated privacy has no useful amplification for.

    Privacy:
        All events together are rho-zero-concentrated differentially private.

    Example:
        >>> round(zcdp([(5.0, 1.0, 10)]), 9)
        0.2

    Source:
        Bun & Steinke, Concentrated Differential Privacy, 2016, Proposition 1.6 and Lemma 1.7.
    """
    check_events(events)
    for _, probability, count in events:
        if count and probability != 1:
            raise PrivacyError(
                f"sampling_probability={probability} can't be accounted by 'zcdp', which amplifies nothing by "
                "sampling; use the accountant 'auto' or 'rdp'"
            )
    counts: Counter[float] = Counter()
    for noise, _, count in events:
        if count:
            counts[noise] += int(count)
    if any(noise < NO_NOISE for noise in counts):
        return math.inf
    return max(math.fsum(count / (2 * noise * noise) for noise, count in counts.items()), _LEAST) if counts else 0.0


def zcdp_epsilon(rho: float, delta: float) -> float:
    """Convert rho to epsilon: the least over alpha > 1 of Proposition 12, rounded up by a relative 1e-6.

    delta = exp((alpha - 1) (alpha rho - epsilon)) / (alpha - 1) x (1 - 1 / alpha)^alpha, solved for epsilon.

    Args:
        rho: at least 0.
        delta: in (0, 1).

    Privacy:
        An upper bound for everything that is rho-zCDP, at any alpha; so the search can't make it unsound.

    Source:
        Canonne, Kamath & Steinke, The Discrete Gaussian for Differential Privacy, 2020, Proposition 12.
    """
    from scipy.optimize import brentq

    if rho == 0 or rho > _MOST:
        return math.inf if rho else 0.0
    rho, log = max(rho, _LEAST), -math.log(delta)
    # the derivative by x = alpha - 1 is rho - (log - log(1 + x)) / x^2; it has one zero, for log(1 + x) is in (0, x)
    low, high = 2 * log / (1 + math.sqrt(1 + 4 * rho * log)), math.sqrt(log / rho)
    x = math.exp(
        brentq(
            lambda y: rho * math.exp(y) * math.exp(y) + math.log1p(math.exp(y)) - log,
            math.log(low or math.ulp(0)) - 0.1,
            math.log(high) + 0.1,
        )
    )
    return max(0.0, ((1 + x) * rho - math.log1p(1 / x) + (log - math.log1p(x)) / x) * ROUND_UP)
