"""Numerical composition: a bound on the epsilon of Poisson-sampled Gaussian rounds, from Opacus' PRV building blocks.

Unit: as in `fedrec.privacy.accounting`. Adjacency: add or remove one unit. Opacus composes the privacy loss of
*removing* a unit only; here the loss of *adding* one is composed too, by the same code, and the larger epsilon counts.
The grid is sized for the FFT and for memory. Released: nothing; a pure function of public numbers.

Source: Gopi, Lee & Wutschitz, Numerical Composition of Differential Privacy, 2021.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from scipy.special import ndtr

MAX_GRID = 2**24
MAX_EPSILON = 500.0
MAX_ERROR = 0.5  # the grid's reach is proven for an error under 1 only; a test shows what goes wrong above
LEAST_SAMPLED_NOISE, MOST_NOISE = 1e-4, 1e6  # far below and above Opacus' series take minutes, or overflow
SERIES_ERROR = 1e-12  # of Opacus' series for the log moment: cut off at exp(-30), and rounded; measured with 40 digits
RDP_ORDERS = [1 + x / 10 for x in range(1, 100)] + [
    float(x) for x in (*range(11, 64), 80, 96, 128, 192, 256, 512, 1024)
]

Event = tuple[float, float, int]
"""(noise_multiplier > 0, sampling_probability in (0, 1], count >= 1)."""


@dataclass(frozen=True)
class AddingPRV:
    """The privacy loss of adding a unit: Y = log Q(x) / P(x), x ~ Q = N(0, z^2), P = (1 - q) Q + q N(1, z^2).

    The mirror of Opacus' `PoissonSubsampledGaussianPRV`, which is log P(x) / Q(x) with x ~ P.
    """

    sample_rate: float
    noise_multiplier: float

    def cdf(self, t: Any) -> Any:
        """Return P(Y <= t): 1 from -log(1 - q) on; below, P(x >= z^2 w + 1/2) with w = log((exp(-t) + q - 1) / q)."""
        inner = _scaled_ratio(-np.asarray(t), self.sample_rate)
        shift = np.log(np.where(inner > 0, inner, 1.0) / self.sample_rate)
        return np.where(inner > 0, ndtr(-(self.noise_multiplier * shift + 0.5 / self.noise_multiplier)), 1.0)


def _scaled_ratio(loss: Any, q: float) -> Any:
    """Return exp(loss) - (1 - q) = q N(x; 1) / N(x; 0), without cancellation where it is small or q is near 1."""
    return np.where(abs(loss) < 0.5, np.expm1(loss) + q, np.exp(loss) - (1 - q))


def prv_epsilon(events: Sequence[Event], delta: float, bound: float) -> float | None:
    """Tighten a bound on epsilon by numerical composition, in three passes with an ever finer error.

    Args:
        events: at least one; all distinct.
        delta: in (0, 1).
        bound: an epsilon that holds already, as from `rdp_epsilon`.

    Returns:
        An epsilon at most 0.0055 above the truth, relative, and never below it; coarser for an epsilon under about 0.01
        over thousands of rounds, where the grid would pass `MAX_GRID` points. None where float64 cannot resolve it.

    Privacy:
        An upper bound: the estimate at delta - delta / 1000 - rounding, plus the discretisation error. `rounding` is
        what the rounding of probabilities in float64 may hide; it is measured against the closed form, not proven.
    """
    if sum(count * q * math.erf(1 / z / math.sqrt(8)) for z, q, count in events) < delta * (1 - 1e-9):
        return 0.0  # the total variation of all rounds together, which is delta at epsilon 0, is at most that sum
    rounding = 1e-13 + 1e-15 * sum(count for _, _, count in events)
    if not 0 < bound < MAX_EPSILON or rounding > delta / 10:
        return None
    tighter = None
    for fraction in (0.1, 0.05, 0.005):
        try:
            bound, finest = _upper_bound(events, delta, rounding, min(fraction * bound, MAX_ERROR))
        except (RuntimeError, ValueError):  # Opacus, where its grid does not carry the loss: the bound so far stands
            break
        tighter = bound  # never the smaller of two passes: the finer grid is right
        if bound == 0 or finest:
            break
    return tighter


def rdp_epsilon(events: Sequence[Event], delta: float) -> float:
    """Bound epsilon by Renyi differential privacy.

    Privacy:
        An upper bound for adding or removing one unit.

    Source:
        Mironov, Talwar & Zhang, Renyi Differential Privacy of the Sampled Gaussian Mechanism, 2019; conversion: Balle
        et al., Hypothesis Testing Interpretations and Renyi Differential Privacy, 2020, Theorem 21.
    """
    from opacus.accountants.analysis.rdp import get_privacy_spent

    curve = sum(count * _rdp_curve(noise, probability) for noise, probability, count in events)
    with warnings.catch_warnings():  # Opacus warns where the best order is the largest: still a bound
        warnings.simplefilter("ignore")
        return max(0.0, float(get_privacy_spent(orders=RDP_ORDERS, rdp=curve, delta=delta)[0]))


@lru_cache(maxsize=256)
def _rdp_curve(noise: float, probability: float) -> Any:
    """Return the Renyi epsilon of one round at each of `RDP_ORDERS`: sampling never adds any, nor does more noise.

    Rounded up by the error of the log moment, which is (order - 1) x this and counts as often as there are rounds.
    """
    from opacus.accountants.analysis.rdp import compute_rdp

    orders = np.array(RDP_ORDERS)
    everybody = orders / 2 / noise / noise
    if probability == 1 or noise < LEAST_SAMPLED_NOISE:
        return everybody
    sampled = compute_rdp(q=probability, noise_multiplier=min(noise, MOST_NOISE), steps=1, orders=RDP_ORDERS)
    rounded_up = np.maximum(sampled, 0) * (1 + SERIES_ERROR) + SERIES_ERROR / (orders - 1)
    return np.fmin(rounded_up, everybody)


def _upper_bound(events: Sequence[Event], delta: float, rounding: float, error: float) -> tuple[float, bool]:
    """Bound epsilon from above by its estimate + `error`, for adding and for removing one unit.

    Returns:
        The bound, and whether the grid is as fine as it may be, so that its error is larger than the one asked for.
    """
    from opacus.accountants.analysis.prv import Domain, PoissonSubsampledGaussianPRV
    from scipy.fft import next_fast_len

    rounds, delta_error = sum(count for _, _, count in events), delta / 1000
    single = max(rdp_epsilon([(z, q, 1)], delta_error / (8 * rounds)) for z, q, _ in events)
    reach = max(rdp_epsilon(events, delta_error / 4), single, error) + 3  # remark 5.6 of the paper, as Opacus has it
    spread = math.sqrt(rounds * math.log(12 / delta_error) / 2)  # discretisation error / mesh size
    half = min(next_fast_len(math.ceil(reach * spread / error) + 2, real=True), MAX_GRID // 2)
    mesh = reach / (half - 1.5)  # the domain then has 2 x half points
    domain = Domain.create_aligned(-reach, reach, mesh)
    upper = max(
        _epsilon_of(
            [kind(q, min(z, MOST_NOISE)) for z, q, _ in events],
            [count for _, _, count in events],
            domain,
            delta - rounding,
            max(error, mesh * spread),
        )
        for kind in (PoissonSubsampledGaussianPRV, AddingPRV)
    )
    return upper, half == MAX_GRID // 2


def _epsilon_of(losses: list[Any], counts: list[int], domain: Any, delta: float, error: float) -> float:
    """Compose privacy losses on a grid and read off the upper bound."""
    from opacus.accountants.analysis.prv import compose_heterogeneous

    with np.errstate(all="ignore"), warnings.catch_warnings():  # exp and log at the far ends; the result is checked
        warnings.simplefilter("ignore")
        discrete = [_discretise(loss, domain) for loss in losses]
        composed = compose_heterogeneous(dprvs=discrete, num_self_compositions=counts)
        upper = float(composed.compute_epsilon(delta, delta / 1000, error)[2])
    if not math.isfinite(upper):
        raise RuntimeError(f"the numerical composition of {counts} rounds gave epsilon {upper}")
    return max(0.0, upper)


def _discretise(loss: Any, domain: Any) -> Any:
    """Truncate a privacy loss to the grid, round it to grid points, and shift them so that its mean stays.

    What Opacus' `discretize` does, with each probability evaluated once and a mean that is accurate to float64: an
    error of the mean counts as often as there are rounds.
    """
    from opacus.accountants.analysis.prv import DiscretePRV

    points = domain.ts
    edges = np.append(points - domain.dt / 2, domain.t_max + domain.dt / 2)
    below = loss.cdf(np.clip(edges, domain.t_min, domain.t_max))
    masses = np.diff(below) / (below[-1] - below[0])
    shift = _mean(loss, domain.t_min, domain.t_max) - float(points @ masses)
    if not abs(shift) < domain.dt / 2:
        raise RuntimeError("the discrete mean is too far from the mean; the grid is too coarse")
    return DiscretePRV(pmf=masses, domain=domain.shift_right(shift))


def _mean(loss: Any, low: float, high: float) -> float:
    """Return E[Y | low < Y < high] by Gauss-Legendre quadrature over the noisy value x, in which Y is smooth."""
    q, z, adding = loss.sample_rate, loss.noise_multiplier, isinstance(loss, AddingPRV)
    ratios = _scaled_ratio(np.array([-high, -low] if adding else [low, high]), q)
    ends = z**2 * np.log(np.maximum(ratios, 0) / q) + 0.5
    start, end = np.clip(ends, -40 * z, 1 + 40 * z)
    panels = np.linspace(start, end, math.ceil((end - start) / min(z, z**2)) + 1)
    nodes, weights = np.polynomial.legendre.leggauss(24)
    x = (panels[:-1, None] + panels[1:, None]) / 2 + np.diff(panels)[:, None] / 2 * nodes
    without, having = np.exp(-(x**2) / (2 * z**2)), np.exp(-((x - 1) ** 2) / (2 * z**2))
    density = weights * (without if adding else (1 - q) * without + q * having)
    shift = (2 * x - 1) / (2 * z**2)
    y = np.logaddexp(np.log1p(-q), np.log(q) + shift)
    y = np.where(abs(y) < 0.5, np.log1p(q * np.expm1(shift)), y)  # the same, without cancellation near 0
    return float((density * (-y if adding else y)).sum() / density.sum())
