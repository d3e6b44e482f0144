"""Epsilon: an upper bound, within 2% of a second library, and never below the truth."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
from dp_accounting import GaussianDpEvent, SelfComposedDpEvent
from dp_accounting.pld import PLDAccountant, privacy_loss_distribution
from hypothesis import given
from hypothesis import strategies as st
from mpmath import mp, mpf
from scipy.stats import norm

from fedrec.errors import PrivacyError
from fedrec.privacy import accounting, composition
from fedrec.privacy.accounting import account, epsilon, gaussian_delta
from fedrec.privacy.calibration import calibrate_noise

Event = tuple[float, float, int]


def pld_epsilons(events: list[Event], delta: float, mesh: float) -> tuple[float, float]:
    """Return epsilon for removing and for adding one user, from dp_accounting's privacy loss distributions.

    Its bounds are pessimistic by about rounds x mesh^2: at epsilon .07 and 10^4 rounds the default of 1e-4 is 2% high.
    """
    total = None
    for noise, probability, count in events:
        one = privacy_loss_distribution.from_gaussian_mechanism(
            noise, sampling_prob=probability, value_discretization_interval=mesh
        ).self_compose(count)
        total = one if total is None else total.compose(one)
    assert total is not None
    return total._pmf_remove.get_epsilon_for_delta(delta), total._pmf_add.get_epsilon_for_delta(delta)


def random_plans(seed: int, num: int) -> list[tuple[list[Event], float]]:
    """Draw plans of one to three groups of rounds, q = 1 and q < 1 mixed, epsilon between about .02 and 100."""
    generator, plans = np.random.default_rng(seed), []
    while len(plans) < num:
        events = []
        for _ in range(int(generator.choice([1, 1, 2, 3]))):
            probability = float(generator.choice([1.0, math.exp(generator.uniform(math.log(1e-3), 0))]))
            events.append((math.exp(generator.uniform(-0.7, 3)), probability, int(math.exp(generator.uniform(0, 7)))))
        if 1e-3 < sum(count * (q / z) ** 2 for z, q, count in events) < 100:
            plans.append((events, float(10 ** generator.uniform(-8, -3))))
    return plans


@pytest.mark.parametrize(("events", "delta"), random_plans(7, 30), ids=str)
def test_random_plans_are_never_below_and_at_most_two_percent_above_pld(events: list[Event], delta: float) -> None:
    found = epsilon(events, delta)
    removing, adding = pld_epsilons(events, delta, mesh=min(1e-4, found / 20_000))
    assert max(removing, adding) <= found <= 1.02 * max(removing, adding)


@pytest.mark.parametrize("delta", [1e-2, 1e-5, 1e-8])
@pytest.mark.parametrize(("noise", "count"), [(1.0, 1), (0.5, 1), (5.0, 10), (3.0, 2), (20.0, 1), (1000.0, 10_000)])
def test_full_participation_is_never_below_pld_at_its_default_mesh(noise: float, count: int, delta: float) -> None:
    accountant = PLDAccountant()
    accountant.compose(SelfComposedDpEvent(GaussianDpEvent(noise), count))
    reference = accountant.get_epsilon(delta)
    assert reference * (1 - 2e-7) <= epsilon([(noise, 1.0, count)], delta) <= reference * 1.0001


def exact_delta(mu: float, value: float) -> mpf:
    """Evaluate Balle & Wang's Theorem 8 with 60 digits."""
    with mp.workdps(60):
        half, part = mpf(mu) / 2, mpf(value) / mpf(mu)
        return mp.ncdf(half - part) - mp.exp(mpf(value)) * mp.ncdf(-half - part)


@pytest.mark.parametrize("mu", [1e-4, 3e-3, 0.1, 0.7, 3.0, 30.0, 1e3])
@pytest.mark.parametrize("delta", [0.3, 1e-3, 1e-6, 1e-12, 1e-40])
def test_closed_form_is_exact_and_rounded_up(mu: float, delta: float) -> None:
    found = epsilon([(1 / mu, 1.0, 1)], delta)
    assert math.isfinite(found)
    if found == 0:
        assert exact_delta(mu, 0) <= delta
    else:
        assert exact_delta(mu, found) <= delta < exact_delta(mu, found * (1 - 2e-6))


@given(st.floats(1e-12, 1e150), st.floats(1e-300, 1 - 1e-9))
def test_closed_form_is_a_number_for_every_mu(mu: float, delta: float) -> None:
    found = accounting.exact_epsilon(mu, delta)
    assert 0 <= found < math.inf


def test_gaussian_delta_is_the_formula() -> None:
    expected = norm.cdf(0.5 - 1.0) - math.e * norm.cdf(-0.5 - 1.0)
    assert gaussian_delta(1.0, 1.0) == pytest.approx(expected, rel=1e-12)


def test_sampling_nearly_everybody_agrees_with_the_closed_form() -> None:
    for rounds, delta in [(1, 1e-6), (100, 1e-9), (10_000, 1e-9)]:
        noise = math.sqrt(rounds)
        exact = epsilon([(noise, 1.0, rounds)], delta)
        numerical = composition.prv_epsilon([(noise, 1.0, rounds)], delta, 2 * exact)
        assert numerical is not None
        assert exact <= numerical <= 1.006 * exact, "the float64 rounding that is set aside covers what it must"


@pytest.mark.parametrize("direction", ["remove", "add"])
def test_privacy_loss_of_adding_is_the_mirror_of_removing(direction: str) -> None:
    """Compare the cumulative probabilities with draws; each fails with probability under 1e-6 for another seed."""
    from opacus.accountants.analysis.prv import PoissonSubsampledGaussianPRV

    q, z, generator = 0.3, 0.8, np.random.default_rng(0)
    x = generator.normal(0, z, 200_000)
    if direction == "remove":
        x = x + (generator.random(len(x)) < q)
    ratio = np.log(1 - q + q * np.exp((2 * x - 1) / (2 * z**2)))
    prv, loss = (PoissonSubsampledGaussianPRV, ratio) if direction == "remove" else (composition.AddingPRV, -ratio)
    points = np.linspace(-2, 2, 41)
    empirical = (loss[:, None] <= points).mean(axis=0)
    # Dvoretzky-Kiefer-Wolfowitz: 2 exp(-2 n t^2) = 1e-6
    assert np.abs(empirical - prv(q, z).cdf(points)).max() < math.sqrt(math.log(2e6) / (2 * len(x)))


def test_coarse_grid_would_be_below_the_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    events = [(1 / 17.9635, 1.0, 1), (0.55346, 0.031808, 7103)]
    truth = max(pld_epsilons(events, 6e-6, mesh=1e-3))
    assert truth <= epsilon(events, 6e-6) * (1 + 1e-3)
    monkeypatch.setattr(composition, "MAX_ERROR", 100.0)
    assert composition._upper_bound(events, 6e-6, 1e-11, 30.0) < 0.9 * truth, "why the error is capped"


def test_tiny_epsilon_and_ten_thousand_rounds() -> None:
    for events, delta in [([(5.0, 0.01, 3)], 1e-5), ([(20.0, 0.01, 10_000)], 1e-6), ([(1.0, 0.01, 10_000)], 1e-6)]:
        found = epsilon(events, delta)
        truth = max(pld_epsilons(events, delta, mesh=min(1e-4, found / 50_000)))
        assert truth <= found <= 1.02 * truth


def test_rdp_is_an_upper_bound_on_request_only() -> None:
    events, delta = [(1.0, 0.01, 1000)], 1e-6
    tight, rdp = account(events, delta), account(events, delta, accountant="rdp")
    assert (tight.accountant, rdp.accountant) == ("opacus-prv", "rdp")
    assert tight.epsilon < rdp.epsilon < 1.3 * tight.epsilon


def test_accountant_names_say_who_vouches() -> None:
    assert account([(1.0, 1.0, 3), (2.0, 1.0, 1)], 1e-5).accountant == "gaussian-exact"
    assert account([(1.0, 1.0, 3), (2.0, 0.5, 1)], 1e-5).accountant == "opacus-prv"
    assert account([(1.0, 0.5, 10_000)], 1e-13).accountant == "rdp", "float64 cannot resolve this delta"
    assert account([(0.02, 0.5, 10)], 1e-5).accountant == "rdp", "beyond the grid"


def test_no_events_spend_nothing_and_no_noise_spends_everything() -> None:
    assert epsilon([], 1e-5) == 0 == epsilon([(1.0, 0.1, 0), (0.0, 1.0, 0)], 1e-5) == epsilon([], 1e-5, "rdp")
    assert epsilon([(0.0, 1.0, 1)], 1e-5) == math.inf == epsilon([(1.0, 0.1, 5), (0.0, 0.1, 1)], 1e-5)


def test_order_and_grouping_do_not_matter() -> None:
    split = [(2.0, 0.1, 3), (4.0, 1.0, 1), (2.0, 0.1, 4), (4.0, 1.0, 2)]
    assert epsilon(split, 1e-5) == epsilon([(4.0, 1.0, 3), (2.0, 0.1, 7)], 1e-5)


def test_unequal_full_rounds_compose_by_their_squared_noise() -> None:
    assert epsilon([(3.0, 1.0, 1), (4.0, 1.0, 1)], 1e-6) == pytest.approx(epsilon([(2.4, 1.0, 1)], 1e-6), rel=1e-12)


@pytest.mark.parametrize(
    ("events", "delta", "accountant", "message"),
    [
        ([(1.0, 1.4, 1)], 1e-5, "auto", r"sampling_probability=1.4 is not in \(0, 1\]"),
        ([(1.0, 0.0, 1)], 1e-5, "auto", "sampling_probability=0.0"),
        ([(1.0, math.nan, 1)], 1e-5, "auto", "sampling_probability=nan"),
        ([(-1.0, 1.0, 1)], 1e-5, "auto", "noise_multiplier=-1.0"),
        ([(math.nan, 1.0, 1)], 1e-5, "auto", "noise_multiplier=nan"),
        ([(math.inf, 1.0, 1)], 1e-5, "auto", "noise_multiplier=inf"),
        ([(1.0, 1.0, -1)], 1e-5, "auto", "count=-1"),
        ([(1.0, 1.0, 1.5)], 1e-5, "auto", "count=1.5"),
        ([(1.0, 1.0, math.inf)], 1e-5, "auto", "count=inf"),
        ([(1.0, 1.0, 1)], 0.0, "auto", r"delta=0.0 is not in \(0, 1\)"),
        ([(1.0, 1.0, 1)], 1.0, "auto", "delta=1.0"),
        ([(1.0, 1.0, 1)], math.nan, "auto", "delta=nan"),
        ([(1.0, 1.0, 1)], 1e-5, "gdp", "accountant='gdp'"),
    ],
)
def test_values_out_of_range_are_refused(events: list[Event], delta: float, accountant: str, message: str) -> None:
    with pytest.raises(PrivacyError, match=message):
        epsilon(events, delta, accountant)


@pytest.mark.parametrize(
    ("target", "delta", "probability", "count"),
    [
        (8.0, 1e-6, 1.0, 1),
        (1.0, 1e-5, 1.0, 10),
        (0.005, 1e-6, 1.0, 100),
        (100.0, 1e-6, 1.0, 20),
        (2.0, 1e-6, 0.01, 1000),
        (8.0, 1e-6, 0.1, 100),
        (0.5, 1e-5, 0.05, 2),
        (4.0, 1e-7, 0.5, 20),
        (600.0, 1e-5, 0.2, 10),
    ],
)
def test_calibration_never_gives_less_privacy_than_asked(
    target: float, delta: float, probability: float, count: int
) -> None:
    noise = calibrate_noise(target, delta, probability, count)
    assert (1 - 1e-3) * target <= epsilon([(noise, probability, count)], delta) <= target


@pytest.mark.parametrize("target", [0.0, -1.0, math.nan, math.inf])
def test_impossible_target_is_refused(target: float) -> None:
    with pytest.raises(PrivacyError, match="target_epsilon"):
        calibrate_noise(target, 1e-5, 1.0, 1)
    with pytest.raises(PrivacyError, match="at least one round"):
        calibrate_noise(1.0, 1e-5, 1.0, 0)


def test_accounting_imports_neither_torch_nor_opacus() -> None:
    code = "import sys, fedrec.privacy.plan; sys.exit(bool({'torch', 'opacus', 'scipy', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
