"""Audit statistics: what an attack that was really carried out says about epsilon; pure functions of counts and scores.

    steinke_lower_bound   a bound: with the stated confidence, the mechanism is not (epsilon, delta)-private below it
    one_shot_estimate     an estimate, not a bound: what epsilon two fitted normal distributions would have
    area_limit            the AUC that no attack on a mechanism of some epsilon can exceed

Unit and adjacency are those of the canaries: whatever one fair coin puts in or leaves out. Sensitivity: none is used, a
bound holds against any mechanism, however broken. Released: nothing; scores come from runs that were made to be
attacked.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from fedrec.errors import PrivacyError

GUESS_SHARES = tuple((share, out) for share in (0.45, 1 / 4, 1 / 8, 1 / 16, 1 / 32) for out in (share, 0.0))
"""Shares of the canaries that are guessed to be in (the highest scores) and out (the lowest), fixed in advance; the
attacker abstains on the rest, and on a tenth at least, for coins do not fall evenly. The second of each pair guesses
"in" only, for canaries that show only if they are drawn."""

MIN_CANARIES = 20
"""With fewer canaries even a perfect attack shows next to nothing."""


class LowerBound(NamedTuple):
    """A lower bound on epsilon and what it follows from.

    Args:
        epsilon: at delta; 0 where nothing was shown.
        num_canaries: coin flips.
        num_guesses: guesses made, the attacker abstained on the rest.
        num_correct: guesses that were right.
    """

    epsilon: float
    num_canaries: int
    num_guesses: int
    num_correct: int


class OneShot(NamedTuple):
    """An estimate of epsilon from the cosines of canaries with what was released.

    Args:
        epsilon: at delta.
        low: lower end of the interval of the estimate: the spread of the cosines' mean and variance only.
        high: upper end of it.
        mean: of the cosines.
        std: of the cosines.
        null_std: of the cosine of a direction that nobody sent, 1 / sqrt(dim).

    Privacy:
        Unit and adjacency: add or remove one canary. No bound.
    """

    epsilon: float
    low: float
    high: float
    mean: float
    std: float
    null_std: float


def steinke_p_value(num_canaries: int, num_guesses: int, num_correct: int, epsilon: float, delta: float) -> float:
    """Bound the probability of at least `num_correct` right guesses against an (epsilon, delta)-private mechanism.

        p = f(v) + 2 m delta max_{1 <= i <= v} (f(v - i) - f(v)) / i,    f(v) = P[Binomial(r, e^eps / (1 + e^eps)) >= v]

    for m canaries, each in with probability 1/2, r guesses and v right ones.

    Args:
        num_canaries: m.
        num_guesses: r, fixed before the coins were looked at.
        num_correct: v.
        epsilon: at least 0.
        delta: in [0, 1].

    Raises:
        PrivacyError: unless 0 <= num_correct <= num_guesses <= num_canaries.

    Privacy:
        Holds for every mechanism that is (epsilon, delta)-private when one canary is added or removed.

    Source:
        Steinke, Nasr & Jagielski, Privacy Auditing with One (1) Training Run, 2023, Theorem 5.2.
    """
    from scipy.special import betainc, expit

    if not 0 <= num_correct <= num_guesses <= num_canaries:
        raise PrivacyError(
            f"{num_correct} right of {num_guesses} guesses about {num_canaries} canaries is not possible; "
            "guess at most once for each canary"
        )
    if num_correct == 0:
        return 1.0
    right = np.arange(1, num_correct + 1)
    tails = betainc(right, num_guesses - right + 1, float(expit(epsilon)))  # P[Binomial >= 1], ..., P[Binomial >= v]
    at_least = float(tails[-1])
    gains = np.append(tails[-2::-1], 1.0) - at_least
    return min(1.0, at_least + 2 * num_canaries * delta * float((gains / right).max()))


def steinke_lower_bound(
    num_canaries: int, num_guesses: int, num_correct: int, delta: float, confidence: float
) -> float:
    """Return the largest epsilon that the number of right guesses refutes.

    Args:
        num_canaries: coin flips, each in with probability 1/2.
        num_guesses: guesses made; their number must not depend on the coins.
        num_correct: guesses that were right.
        delta: of the claim.
        confidence: in (0, 1).

    Returns:
        An epsilon: for each mechanism that is (epsilon0, delta)-private, it exceeds epsilon0 with probability at most
        1 - confidence. 0 where nothing is refuted.

    Raises:
        PrivacyError: where the numbers are not possible or the confidence is not in (0, 1).

    Privacy:
        Unit and adjacency: add or remove one canary.

    Example:
        >>> round(steinke_lower_bound(100, 100, 100, delta=0.0, confidence=0.95), 3)  # e^x = a / (1 - a), a = .05^.01
        3.493
        >>> steinke_lower_bound(100, 100, 55, delta=1e-5, confidence=0.95)
        0.0
    """
    if not 0 < confidence < 1:
        raise PrivacyError(f"confidence={confidence} is not in (0, 1); 0.95 is usual")

    def refuted(epsilon: float) -> bool:
        return steinke_p_value(num_canaries, num_guesses, num_correct, epsilon, delta) < 1 - confidence

    return _largest(refuted, 0.0)


def _largest(refuted: Callable[[float], bool], start: float) -> float:
    """Return the largest epsilon that is refuted, by bisection and never above it; `start` where that is not."""
    if not refuted(start):
        return start
    low, high = start, start + 1.0
    while refuted(high):
        low, high = high, 2 * high
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low


def best_lower_bound(
    scores: np.ndarray, included: np.ndarray, delta: float, confidence: float, num_audits: int = 1
) -> LowerBound:
    """Return the best lower bound over the fixed choices of `GUESS_SHARES`, corrected for having several.

    Choosing the number of guesses by the result would be cheating; here every choice, and every one of `num_audits`
    audits, gets an equal part of 1 - confidence (Bonferroni), so all bounds hold together with the stated confidence.

    Args:
        scores: (num_canaries,) higher means "in"; ties are broken by position, which must not depend on the coins.
        included: (num_canaries,) bool, the coins.
        delta: of the claim.
        confidence: of all audits together.
        num_audits: audits whose best bound is reported.

    Returns:
        The bound and the guesses behind it.

    Privacy:
        Unit and adjacency: add or remove one canary.
    """
    num_canaries, order = len(scores), np.argsort(-scores, kind="stable")
    level = 1 - (1 - confidence) / (num_audits * len(GUESS_SHARES))
    best: LowerBound | None = None
    for share_in, share_out in GUESS_SHARES:
        num_in, num_out = int(share_in * num_canaries), int(share_out * num_canaries)
        right = int(included[order[:num_in]].sum()) + int((~included[order[num_canaries - num_out :]]).sum())
        numbers = (num_canaries, num_in + num_out, right)
        if best is None or steinke_p_value(*numbers, best.epsilon, delta) < 1 - level:
            best = LowerBound(steinke_lower_bound(*numbers, delta, level), *numbers)
    return best if best is not None else LowerBound(0.0, num_canaries, 0, 0)


def highest_lower_bound(num_canaries: int, delta: float, confidence: float, num_audits: int = 1) -> float:
    """Return the bound that a perfect attack would show: what the number of canaries allows at best.

    Privacy:
        None: a pure function of public numbers.
    """
    scores = np.arange(num_canaries, dtype=np.float64)
    return best_lower_bound(scores, scores >= num_canaries / 2, delta, confidence, num_audits).epsilon


def sampled_gaussian_scores(values: np.ndarray, noise_multiplier: float, sampling_probability: float) -> np.ndarray:
    """Return the log likelihood ratio of "in" against "out" for one round, the optimal score of a single canary.

        log(1 - q + q exp((2 y - 1) / (2 z^2))),    y ~ N(0, z^2) when out, N(1, z^2) with probability q when in

    Args:
        values: (n,) what was released along each canary, over its clipped norm.
        noise_multiplier: z, as claimed.
        sampling_probability: q, as claimed.

    Returns:
        (n,) scores; add them up over rounds.

    Privacy:
        None: a score. Bounds made of it hold whatever the mechanism really does.
    """
    exponents = (2 * values - 1) / (2 * noise_multiplier**2)
    if sampling_probability == 1:
        return exponents
    return np.logaddexp(math.log1p(-sampling_probability), math.log(sampling_probability) + exponents)


def two_gaussians_epsilon(means: tuple[float, float], stds: tuple[float, float], delta: float) -> float:
    """Return the epsilon at delta of telling N(m0, s0^2) from N(m1, s1^2), the larger of both directions.

    delta(epsilon) = P(A) - e^epsilon Q(A) on A = {x: log p(x) / q(x) > epsilon}; the log ratio is a quadratic, so A is
    a half-line, an interval or the outside of one, and both probabilities are values of the normal distribution.

    Args:
        means: of the two.
        stds: of the two, positive.
        delta: in (0, 1).

    Raises:
        PrivacyError: where a number is out of range.

    Privacy:
        Exact, up to 1e-9 relative, for a mechanism whose output has these two distributions.

    Example:
        >>> round(two_gaussians_epsilon((0.0, 1.0), (1.0, 1.0), 1e-5), 3)  # the Gaussian mechanism, mu = 1
        4.377
    """
    if not (0 < delta < 1 and min(stds) > 0 and all(math.isfinite(x) for x in (*means, *stds))):
        raise PrivacyError(f"means={means}, stds={stds}, delta={delta}: stds must be positive, delta in (0, 1)")
    ratio, shift = stds[1] / stds[0], (means[1] - means[0]) / stds[0]

    def too_small(epsilon: float) -> bool:
        return max(_delta(epsilon, shift, ratio), _delta(epsilon, -shift / ratio, 1 / ratio)) > delta

    return _largest(too_small, 0.0)


def _delta(epsilon: float, mean: float, std: float) -> float:
    """Return P(A) - e^epsilon Q(A) for P = N(0, 1), Q = N(mean, std^2), A = {x: log p(x) / q(x) > epsilon}."""
    square, slope = (std**-2 - 1) / 2, -mean / std**2
    constant = math.log(std) + (mean / std) ** 2 / 2 - epsilon
    if square == 0:
        root = -constant / slope if slope else math.inf
        return _difference(epsilon, mean, std, *((root, math.inf) if slope > 0 else (-math.inf, root)), outside=False)
    discriminant = slope**2 - 4 * square * constant
    if discriminant <= 0:  # the ratio passes epsilon nowhere or everywhere, and then 1 - e^epsilon is not positive
        return 0.0
    stable = -(slope + math.copysign(math.sqrt(discriminant), slope)) / 2
    low, high = sorted((stable / square, constant / stable))
    return _difference(epsilon, mean, std, low, high, outside=square > 0)


def _difference(epsilon: float, mean: float, std: float, low: float, high: float, outside: bool) -> float:
    """Return P(A) - e^epsilon Q(A) for A between `low` and `high`, or outside of them."""
    from scipy.special import log_ndtr

    def log_mass(start: float, end: float) -> float:
        if start + end > 0:  # the smaller tail keeps its digits
            start, end = -end, -start
        above, below = float(log_ndtr(end)), float(log_ndtr(start))
        return above + math.log1p(-math.exp(below - above)) if above > below else -math.inf

    parts = [(-math.inf, low), (high, math.inf)] if outside else [(low, high)]
    total = 0.0
    for start, end in parts:
        other = log_mass((start - mean) / std, (end - mean) / std)
        total += math.exp(log_mass(start, end)) - math.exp(min(epsilon + other, 700.0))
    return total


def one_shot_estimate(
    cosines: np.ndarray, dim: int, delta: float, confidence: float, generator: np.random.Generator
) -> OneShot:
    """Estimate epsilon from the cosines of canaries that took part with what was released.

    Canaries are random unit directions, so the cosine of one that did not take part is N(0, 1 / dim) to high accuracy.
    Those that did are fitted by N(mean, std^2), and epsilon is that of telling the two apart.

    Args:
        cosines: (num_canaries,) at least 2.
        dim: number of coordinates.
        delta: of the claim.
        confidence: of the interval around the estimate.
        generator: for the interval, a parametric bootstrap of mean and std.

    Returns:
        An **estimate, not a bound**: it is right for the Gaussian mechanism and may be wrong either way for others, and
        its interval holds only what sampling the canaries adds.

    Raises:
        PrivacyError: with fewer than 2 canaries.

    Privacy:
        Unit and adjacency: add or remove one canary.

    Source:
        Andrew et al., One-shot Empirical Privacy Estimation for Federated Learning, 2023, algorithm 2.
    """
    num = len(cosines)
    if num < 2:
        raise PrivacyError(f"{num} canaries have no spread; give at least 2")
    mean, std, null = float(np.mean(cosines)), max(float(np.std(cosines, ddof=1)), 1e-300), dim**-0.5
    means = generator.normal(mean, std / math.sqrt(num), 200)
    stds = std * np.sqrt(generator.chisquare(num - 1, 200) / (num - 1))
    draws = [two_gaussians_epsilon((0.0, m), (null, s), delta) for m, s in zip(means, stds, strict=True)]
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return OneShot(two_gaussians_epsilon((0.0, mean), (null, std), delta), float(low), float(high), mean, std, null)


def area_limit(epsilon: float, delta: float) -> float:
    """Return the largest AUC that any attack can have against an (epsilon, delta)-private mechanism.

    The best ROC curve runs through (0, delta) and ((1 - delta) / (1 + e^eps), 1 - the same), and is mirrored there.

    Privacy:
        Holds for telling in from out of whatever the adjacency adds or removes.

    Source:
        Kairouz, Oh & Viswanath, The Composition Theorem for Differential Privacy, 2015, section 2.
    """
    from scipy.special import expit

    return 1 - (1 - delta) ** 2 * float(expit(-epsilon))
