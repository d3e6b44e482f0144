"""Calibration: never less privacy than asked, and hardly more noise than that takes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedrec.errors import PrivacyError
from fedrec.privacy.accounting import epsilon
from fedrec.privacy.calibration import calibrate_noise
from fedrec.privacy.plan import PrivacyPlan


def random_targets(seed: int, num: int) -> list[tuple[float, float, float, int]]:
    """Draw (target_epsilon, delta, sampling_probability, count), targets from .1 to 30."""
    generator, drawn = np.random.default_rng(seed), []
    for _ in range(num):
        target = math.exp(generator.uniform(math.log(0.1), math.log(30)))
        probability = math.exp(generator.uniform(math.log(1e-3), 0))
        drawn.append((target, float(10 ** generator.uniform(-9, -3)), probability, int(generator.integers(1, 1000))))
    return drawn


@pytest.mark.parametrize(
    ("target", "delta", "probability", "count"),
    [
        (2.0, 1e-6, 0.01, 1000),
        (8.0, 1e-6, 0.1, 100),
        (0.5, 1e-5, 0.05, 2),
        (4.0, 1e-7, 0.5, 20),
        (600.0, 1e-5, 0.2, 10),
        (8.0, 1e-13, 0.5, 1000),
        *random_targets(5, 10),
    ],
)
def test_sampled_rounds_never_spend_more_than_asked(
    target: float, delta: float, probability: float, count: int
) -> None:
    noise = calibrate_noise(target, delta, probability, count)
    assert (1 - 1e-3) * target <= epsilon([(noise, probability, count)], delta) <= target


@given(st.floats(1e-6, 1e6), st.floats(1e-300, 0.9), st.integers(1, 10**15))
def test_full_participation_spends_what_was_asked(target: float, delta: float, count: int) -> None:
    noise = calibrate_noise(target, delta, 1.0, count)
    assert (1 - 1e-6) * target <= epsilon([(noise, 1.0, count)], delta) <= target


def test_less_noise_would_be_too_little() -> None:
    for probability in (1.0, 0.1):
        noise = calibrate_noise(2.0, 1e-5, probability, 50)
        assert epsilon([(0.998 * noise, probability, 50)], 1e-5) > 2.0


def test_more_asked_takes_more_noise() -> None:
    for probability in (1.0, 0.05):
        by_target = [calibrate_noise(target, 1e-5, probability, 10) for target in (0.5, 1.0, 8.0)]
        by_rounds = [calibrate_noise(1.0, 1e-5, probability, count) for count in (1, 10, 100)]
        assert by_target == sorted(by_target, reverse=True) and by_rounds == sorted(by_rounds)


@pytest.mark.parametrize("trust_model", ["central", "local"])
def test_calibrated_plan_spends_what_was_asked_under_every_trust_model(trust_model: str) -> None:
    plan = PrivacyPlan.calibrate(
        target_epsilon=3.0,
        delta=1e-6,
        num_rounds=7,
        sampling_probability=1.0,
        clipping_norm=2.0,
        population_size=1000,
        trust_model=trust_model,
    )
    assert 3.0 * (1 - 1e-6) <= plan.epsilon <= 3.0


@pytest.mark.parametrize("target", [0.0, -1.0, math.nan, math.inf, 1e-30, 1e30])
@pytest.mark.parametrize("probability", [1.0, 0.5])
def test_impossible_target_is_refused(target: float, probability: float) -> None:
    with pytest.raises(PrivacyError, match=r"target_epsilon=.* is not in \[1e-06, 1e\+06\]"):
        calibrate_noise(target, 1e-5, probability, 1)


def test_delta_that_needs_no_noise_is_refused() -> None:
    """Where whoever is drawn may be published outright, no noise is called for: a mistake, and never what was meant."""
    with pytest.raises(PrivacyError, match=r"delta=0\.001 is at least the probability that a given unit is ever drawn"):
        calibrate_noise(1.0, 1e-3, 1e-5, 100)


def test_impossible_rounds_and_tolerances_are_refused() -> None:
    with pytest.raises(PrivacyError, match="at least one round"):
        calibrate_noise(1.0, 1e-5, 1.0, 0)
    with pytest.raises(PrivacyError, match="rel_tol=0"):
        calibrate_noise(1.0, 1e-5, 1.0, 1, rel_tol=0.0)
