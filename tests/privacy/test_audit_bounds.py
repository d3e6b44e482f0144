"""Audit statistics: bounds that hold as often as they say, estimates that are right where they must be, by hand."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest

from fedrec.errors import PrivacyError
from fedrec.privacy.accounting import exact_epsilon
from fedrec.privacy.audit_bounds import (
    GUESS_SHARES,
    area_limit,
    best_lower_bound,
    highest_lower_bound,
    one_shot_estimate,
    sampled_gaussian_scores,
    steinke_lower_bound,
    steinke_p_value,
    two_gaussians_epsilon,
)

bound = cache(steinke_lower_bound)


def test_p_value_by_hand() -> None:
    delta = 0.01
    assert steinke_p_value(1, 1, 1, 0.0, delta) == pytest.approx(0.5 + 2 * delta * 0.5)
    assert steinke_p_value(2, 2, 2, 0.0, delta) == pytest.approx(0.25 + 4 * delta * 0.5)  # max(.5 / 1, .75 / 2)
    assert steinke_p_value(3, 2, 2, math.log(3), delta) == pytest.approx(0.75**2 + 6 * delta * 0.375)
    assert steinke_p_value(5, 4, 0, 1.0, 1e-5) == 1.0


def test_perfect_guesses_by_hand() -> None:
    """All of r right refutes every epsilon whose accuracy to the r-th power is below 1 - confidence."""
    for num in (20, 100, 1000):
        accuracy = 0.05 ** (1 / num)
        assert steinke_lower_bound(num, num, num, 0.0, 0.95) == pytest.approx(math.log(accuracy / (1 - accuracy)))
    assert steinke_lower_bound(1000, 1000, 1000, 1e-5, 0.95) == pytest.approx(5.782283, abs=1e-5)


def test_more_delta_more_confidence_or_fewer_right_never_raise_the_bound() -> None:
    best = bound(200, 100, 90, 1e-5, 0.95)
    assert best > 1
    for worse in ((200, 100, 90, 1e-3, 0.95), (200, 100, 90, 1e-5, 0.99), (200, 100, 80, 1e-5, 0.95)):
        assert bound(*worse) < best
    assert bound(400, 100, 90, 1e-5, 0.95) <= best


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 3.0])
def test_bound_is_sound_and_nearly_tight_against_randomised_response(epsilon: float) -> None:
    """Every coin is told truthfully with probability e^eps / (1 + e^eps): exactly (eps, 0)-private."""
    rng, num, trials = np.random.default_rng(0), 300, 4000
    right = rng.binomial(num, 1 / (1 + math.exp(-epsilon)), size=trials)
    exceeded = np.mean([bound(num, num, int(v), 0.0, 0.95) > epsilon for v in right])
    assert 0.01 < exceeded <= 0.05 + 2 * math.sqrt(0.05 / trials)


def test_bound_is_sound_where_delta_is_really_used() -> None:
    """With probability delta all coins are published, else randomised response: (eps, delta)-private."""
    rng, num, trials, epsilon, delta = np.random.default_rng(1), 200, 4000, 1.0, 0.02
    right = rng.binomial(num, 1 / (1 + math.exp(-epsilon)), size=trials)
    right[rng.random(trials) < delta] = num
    exceeded = np.mean([bound(num, num, int(v), delta, 0.95) > epsilon for v in right])
    assert exceeded <= 0.05
    assert np.mean([bound(num, num, int(v), 0.0, 0.95) > epsilon for v in right]) > exceeded


@pytest.mark.parametrize("mu", [0.3, 1.0, 4.0])
def test_choosing_among_fixed_guesses_stays_sound_against_the_gaussian_mechanism(mu: float) -> None:
    rng, delta = np.random.default_rng(2), 1e-5
    truth = exact_epsilon(mu, delta)
    found = []
    for _ in range(60):
        included = rng.random(400) < 0.5
        scores = sampled_gaussian_scores(included + rng.normal(size=400) / mu, 1 / mu, 1.0)
        found.append(best_lower_bound(scores, included, delta, 0.95).epsilon)
    assert np.mean([epsilon > truth for epsilon in found]) <= 0.05
    assert np.median(found) >= {0.3: 0.0, 1.0: 0.3, 4.0: 2.5}[mu]


def test_sampled_canaries_are_found_by_guessing_in_only() -> None:
    """Each canary shows with probability .2 if it is in, and then without any noise."""
    rng = np.random.default_rng(3)
    included = rng.random(1000) < 0.5
    values = (included & (rng.random(1000) < 0.2)).astype(float)
    found = best_lower_bound(sampled_gaussian_scores(values, 5.0, 0.2), included, 1e-5, 0.95)
    assert found.epsilon > 2 and found.num_correct == found.num_guesses < 125


def test_scores_of_a_sampled_round_are_its_log_likelihood_ratio() -> None:
    values, noise, q = np.array([-1.0, 0.0, 0.7, 2.0]), 1.3, 0.3
    out = np.exp(-(values**2) / (2 * noise**2))
    shifted = np.exp(-((values - 1) ** 2) / (2 * noise**2))
    expected = np.log(((1 - q) * out + q * shifted) / out)
    assert sampled_gaussian_scores(values, noise, q) == pytest.approx(expected)


def test_highest_bound_is_what_a_perfect_attack_shows() -> None:
    included = np.random.default_rng(4).random(500) < 0.5
    perfect = best_lower_bound(included.astype(float), included, 1e-5, 0.95, num_audits=3).epsilon
    assert perfect <= highest_lower_bound(500, 1e-5, 0.95, num_audits=3)
    assert perfect > 0.9 * highest_lower_bound(500, 1e-5, 0.95, num_audits=3)
    assert highest_lower_bound(500, 1e-5, 0.95, num_audits=30) < highest_lower_bound(500, 1e-5, 0.95)


def test_guess_shares_never_guess_twice() -> None:
    assert all(share_in + share_out <= 1 for share_in, share_out in GUESS_SHARES)


@pytest.mark.parametrize("mu", [0.05, 0.5, 1.0, 3.0, 8.0])
def test_two_gaussians_of_one_variance_are_the_gaussian_mechanism(mu: float) -> None:
    assert two_gaussians_epsilon((0.0, 1.0), (1 / mu, 1 / mu), 1e-5) == pytest.approx(exact_epsilon(mu, 1e-5), rel=1e-5)


@pytest.mark.parametrize("mean, std", [(0.3, 1.2), (0.3, 0.7), (0.0, 1.1), (0.0, 0.9), (4.0, 1.5), (-0.5, 1.0)])
@pytest.mark.parametrize("delta", [1e-2, 1e-5])
def test_two_gaussians_of_different_variance_against_integration(mean: float, std: float, delta: float) -> None:
    x = np.linspace(-40, 40, 800_001)
    p = np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    q = np.exp(-(((x - mean) / std) ** 2) / 2) / (std * math.sqrt(2 * math.pi))
    epsilon = two_gaussians_epsilon((0.0, mean), (1.0, std), delta)
    deltas = [float(np.clip(a - math.exp(epsilon) * b, 0, None).sum() * (x[1] - x[0])) for a, b in ((p, q), (q, p))]
    assert max(deltas) == pytest.approx(delta, rel=1e-4)


def test_equal_distributions_have_epsilon_zero_and_far_ones_a_huge_one() -> None:
    assert two_gaussians_epsilon((1.0, 1.0), (2.0, 2.0), 1e-5) == 0.0
    assert two_gaussians_epsilon((0.0, 1.0), (1e-3, 1e-6), 1e-5) > 1e6


@pytest.mark.parametrize("mu", [1.0, 3.0])
def test_one_shot_estimate_is_right_for_the_gaussian_mechanism(mu: float) -> None:
    """Random directions added up, noise on the sum, cosines with it: the true epsilon lies within the interval."""
    rng, dim, num = np.random.default_rng(5), 20_000, 400
    canaries = rng.normal(size=(num, dim))
    canaries /= np.linalg.norm(canaries, axis=1, keepdims=True)
    release = canaries.sum(axis=0) + rng.normal(size=dim) / mu
    found = one_shot_estimate(canaries @ (release / np.linalg.norm(release)), dim, 1e-5, 0.99, rng)
    assert found.low < exact_epsilon(mu, 1e-5) < found.high
    assert found.low < found.epsilon < found.high


def test_area_limit_is_met_by_randomised_response_and_leaves_the_gaussian_mechanism_room() -> None:
    assert area_limit(0.0, 0.0) == 0.5
    accuracy = math.e / (1 + math.e)
    assert area_limit(1.0, 0.0) == pytest.approx(accuracy)  # its ROC curve has one corner: AUC = accuracy
    assert 0.5 * math.erfc(-1.0 / 2) < area_limit(exact_epsilon(1.0, 1e-5), 1e-5) < 1  # Phi(mu / sqrt 2)


def test_impossible_numbers_are_refused() -> None:
    for numbers in ((10, 11, 5), (10, 5, 6), (10, 5, -1)):
        with pytest.raises(PrivacyError, match="not possible"):
            steinke_p_value(*numbers, 1.0, 1e-5)
    with pytest.raises(PrivacyError, match="confidence"):
        steinke_lower_bound(10, 10, 10, 1e-5, 1.0)
    with pytest.raises(PrivacyError, match="positive"):
        two_gaussians_epsilon((0.0, 0.0), (1.0, 0.0), 1e-5)
    with pytest.raises(PrivacyError, match="at least 2"):
        one_shot_estimate(np.zeros(1), 10, 1e-5, 0.95, np.random.default_rng(0))
