"""Epsilon: an upper bound, within 2% of a second library, and never below the truth."""

from __future__ import annotations

import math
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from dp_accounting import GaussianDpEvent, SelfComposedDpEvent
from dp_accounting.pld import PLDAccountant, privacy_loss_distribution
from dp_accounting.rdp import RdpAccountant
from hypothesis import given
from hypothesis import strategies as st
from mpmath import mp, mpf
from scipy.stats import norm

from fedrec.errors import PrivacyError
from fedrec.privacy import accounting, composition
from fedrec.privacy.accounting import account, epsilon, gaussian_delta
from fedrec.privacy.zcdp import zcdp, zcdp_epsilon

Event = tuple[float, float, int]


def pld_epsilons(events: list[Event], delta: float, mesh: float) -> tuple[float, float]:
    """Return epsilon for removing and for adding one user, from dp_accounting's privacy loss distributions.

    Both are upper bounds, about rounds x mesh^2 above the truth: at epsilon .07 and 10^4 rounds the default mesh of
    1e-4 is 2% high. So what is never below them is never below the truth.
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


@pytest.mark.parametrize(("events", "delta"), random_plans(7, 200), ids=str)
def test_random_plans_are_never_below_and_at_most_two_percent_above_pld(events: list[Event], delta: float) -> None:
    found = epsilon(events, delta)
    # the closed form is only 1e-6 above the truth, the numerical composition 5e-3: it needs no mesh as fine
    points = 20_000 if all(probability == 1 for _, probability, _ in events) else 5_000
    removing, adding = pld_epsilons(events, delta, mesh=min(2 / points, found / points))
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


@pytest.mark.parametrize(("noise", "probability"), [(0.1, 1.0), (0.5, 1 - 1e-9), (0.8, 0.3), (2.0, 1e-4), (1e3, 0.01)])
@pytest.mark.parametrize("direction", ["remove", "add"])
def test_privacy_loss_is_accurate_where_float64_would_cancel(noise: float, probability: float, direction: str) -> None:
    """Compare the mean and, for adding, the far tail of the privacy loss with 30 digits."""
    from opacus.accountants.analysis.prv import PoissonSubsampledGaussianPRV

    kind = PoissonSubsampledGaussianPRV if direction == "remove" else composition.AddingPRV
    low, high = -30.0, 31.0
    with mp.workdps(30), np.errstate(all="ignore"):
        q, z = mpf(probability), mpf(noise)

        def loss(x: mpf) -> mpf:
            return mp.log(1 - q + q * mp.exp((2 * x - 1) / (2 * z**2))) * (1 if direction == "remove" else -1)

        def density(x: mpf) -> mpf:
            without = (1 - q) if direction == "remove" else 1
            return without * mp.npdf(x, 0, z) + (q * mp.npdf(x, 1, z) if direction == "remove" else 0)

        ends = [high, low] if direction == "add" else [low, high]
        ratios = [(mp.exp(end if direction == "remove" else -end) - 1 + q) / q for end in ends]
        start, end = [min(max(z**2 * mp.log(r) + 0.5, -15 * z), 1 + 15 * z) if r > 0 else -15 * z for r in ratios]
        pieces = [start + (end - start) * i / 32 for i in range(33)]
        mass = mp.quad(density, pieces, maxdegree=4)
        mean = mp.quad(lambda x: density(x) * loss(x), pieces, maxdegree=4) / mass
        found = composition._mean(kind(probability, noise), low, high)
        assert found == pytest.approx(float(mean), rel=1e-9)
        if direction == "add":
            for t in (1e-3, 1.0, 20.0, 40.0, 60.0):
                inner = (mp.exp(-t) - 1 + q) / q
                tail = mp.ncdf(z * mp.log(inner) + 1 / (2 * z)) if inner > 0 else mpf(0)
                assert 1 - kind(probability, noise).cdf(t) == pytest.approx(float(tail), rel=1e-6, abs=3e-16)


@pytest.mark.parametrize(("noise", "probability"), [(0.8, 0.3), (2.0, 0.01), (5.0, 1.0)])
def test_discretisation_is_the_one_of_opacus(noise: float, probability: float) -> None:
    from opacus.accountants.analysis.prv import (
        Domain,
        PoissonSubsampledGaussianPRV,
        TruncatedPrivacyRandomVariable,
        discretize,
    )

    domain, loss = Domain.create_aligned(-8, 8, 1e-3), PoissonSubsampledGaussianPRV(probability, noise)
    with np.errstate(all="ignore"):
        found = composition._discretise(loss, domain)
        expected = discretize(TruncatedPrivacyRandomVariable(loss, domain.t_min, domain.t_max), domain)
    assert found.pmf == pytest.approx(expected.pmf, abs=1e-12)
    assert found.domain.shifts == pytest.approx(expected.domain.shifts, abs=1e-9)


def test_coarse_grid_would_be_below_the_truth() -> None:
    from opacus.accountants.analysis.prv import Domain, PoissonSubsampledGaussianPRV

    events, delta = [(1 / 17.9635, 1.0, 1), (0.55346, 0.031808, 7103)], 6e-6
    truth = max(pld_epsilons(events, delta, mesh=1e-3))
    assert truth <= epsilon(events, delta) <= truth * 1.02
    losses, counts = [PoissonSubsampledGaussianPRV(q, z) for z, q, _ in events], [count for _, _, count in events]
    for error, sound in [(composition.MAX_ERROR, True), (30.0, False)]:
        domain = Domain.create_aligned(-345.6, 345.6, error / 275.8)
        upper = composition._epsilon_of(losses, counts, domain, delta, error)
        assert (upper >= truth) == sound, "why the error is capped"


@pytest.mark.parametrize("noise", [0.1, 0.2, 1.0, 8.0])
def test_adding_and_removing_are_the_same_without_sampling(noise: float) -> None:
    """A loss of adding that is cut off at 36, where 1 + exp(-36) is 1 in float64, would be far below the truth."""
    from opacus.accountants.analysis.prv import PoissonSubsampledGaussianPRV

    points = np.linspace(0, 0.5 / noise**2 + 8 / noise, 50)
    with np.errstate(all="ignore"):
        removing = PoissonSubsampledGaussianPRV(1.0, noise).cdf(points)
    assert composition.AddingPRV(1.0, noise).cdf(points) == pytest.approx(removing, abs=1e-13)


def test_tiny_epsilon_and_ten_thousand_rounds() -> None:
    for events, delta in [([(5.0, 0.01, 3)], 1e-5), ([(20.0, 0.01, 10_000)], 1e-6), ([(1.0, 0.01, 10_000)], 1e-6)]:
        found = epsilon(events, delta)
        truth = max(pld_epsilons(events, delta, mesh=min(1e-4, found / 50_000)))
        assert truth <= found <= 1.02 * truth


@pytest.mark.parametrize("noise", [0.03, 0.2, 1.0, 20.0, 1e7])
def test_sampling_never_adds_to_the_renyi_bound(noise: float) -> None:
    everybody = epsilon([(noise, 1.0, 3)], 1e-5, "rdp")
    sampled = [epsilon([(noise, probability, 3)], 1e-5, "rdp") for probability in (1e-4, 0.1, 0.9, 1 - 1e-9)]
    assert [0.0, *sampled] == sorted([0.0, *sampled]) and sampled[-1] <= everybody


def test_epsilon_is_zero_exactly_where_the_total_variation_is_within_delta() -> None:
    for noise, probability, count in [(1.0, 1e-6, 10), (1e8, 0.3, 1), (0.2, 1e-300, 1000)]:
        total = count * probability * math.erf(1 / noise / math.sqrt(8))  # of all rounds together: at most the sum
        assert epsilon([(noise, probability, count)], total * 1.001 + 1e-320) == 0
    assert epsilon([(1.0, 0.1, 1)], 1e-2) > 0


def test_rdp_is_an_upper_bound_on_request_only() -> None:
    events, delta = [(1.0, 0.01, 1000)], 1e-6
    tight, rdp = account(events, delta), account(events, delta, accountant="rdp")
    assert (tight.accountant, rdp.accountant) == ("opacus-prv", "rdp")
    assert tight.epsilon < rdp.epsilon < 1.3 * tight.epsilon


@pytest.mark.parametrize(
    ("noise", "probability", "count", "delta"),
    [
        (18.5, 5.1602e-9, 10**15, 9.8e-5),
        (1.0, 1e-6, 10**11, 1e-3),
        (3.0, 1e-5, 10**9, 1e-6),
        (50.0, 1e-7, 10**13, 1e-3),
    ],
)
def test_rounding_that_counts_in_every_round_is_on_the_safe_side(
    noise: float, probability: float, count: int, delta: float
) -> None:
    """So many rounds are one Gaussian, with mu = q sqrt(count (exp(1 / z^2) - 1)) (Bu et al. 2020)."""
    truth = accounting.exact_epsilon(probability * math.sqrt(count * math.expm1(noise**-2)), delta)
    for accountant in ("auto", "rdp"):
        assert 0 < truth * (1 - 1e-4) <= epsilon([(noise, probability, count)], delta, accountant)


@pytest.mark.parametrize(
    ("noise", "probability"), [(0.37, 8.6e-4), (0.32, 1.5e-5), (18.5, 5.1602e-9), (1359.0, 1.2e-11), (542.8, 0.913)]
)
def test_renyi_curve_is_never_below_the_one_of_forty_digits(noise: float, probability: float) -> None:
    found = dict(zip(composition.RDP_ORDERS, composition._rdp_curve(noise, probability), strict=True))
    with mp.workdps(40):
        q, z = mpf(probability), mpf(noise)
        for order in (1.2, 1.5, 2.5, 2.0, 3.0, 63.0, 256.0, 1024.0):
            a, k = mpf(order), int(order)
            if order == k:
                terms = [
                    mp.binomial(k, i) * q**i * (1 - q) ** (k - i) * mp.expm1(i * (i - 1) / (2 * z**2))
                    for i in range(k + 1)
                ]
                moment = mp.fsum(terms)
            else:
                ends = [z * (i - 14) + a * mpf(i) / 28 for i in range(29)]
                moment = mp.quad(
                    lambda x, a=a: mp.npdf(x, 0, z) * ((1 - q + q * mp.exp((2 * x - 1) / (2 * z**2))) ** a - 1),
                    ends,
                    maxdegree=4,
                )
            truth = mp.log1p(moment) / (a - 1)
            assert truth <= found[order] <= truth * (1 + mpf(1e-10)) + 2 * composition.SERIES_ERROR / (a - 1)


def test_accountant_names_say_who_vouches() -> None:
    assert account([(1.0, 1.0, 3), (2.0, 1.0, 1)], 1e-5).accountant == "gaussian-exact"
    assert account([(1.0, 1.0, 3), (2.0, 0.5, 1)], 1e-5).accountant == "opacus-prv"
    assert account([(1.0, 0.5, 10_000)], 1e-13).accountant == "rdp", "float64 cannot resolve this delta"
    assert account([(0.02, 0.5, 10)], 1e-5).accountant == "rdp", "beyond the grid"


def test_no_events_spend_nothing_and_no_noise_spends_everything() -> None:
    assert epsilon([], 1e-5) == 0 == epsilon([(1.0, 0.1, 0), (0.0, 1.0, 0)], 1e-5) == epsilon([], 1e-5, "rdp")
    assert epsilon([(0.0, 1.0, 1)], 1e-5) == math.inf == epsilon([(1.0, 0.1, 5), (0.0, 0.1, 1)], 1e-5)
    assert epsilon([(1e-200, 1.0, 1)], 1e-5) == math.inf == epsilon([(1e-200, 0.5, 1)], 1e-5), "as good as none"


def regrouped(events: list[Event], generator: np.random.Generator) -> list[Event]:
    """Split every group of rounds at random, and shuffle what comes out."""
    pieces = []
    for noise, probability, count in events:
        cuts = sorted(int(cut) for cut in generator.integers(0, count + 1, int(generator.integers(0, 4))))
        for start, end in pairwise([0, *cuts, count]):
            pieces.append((noise, probability, end - start))
    return [pieces[i] for i in generator.permutation(len(pieces))]


@pytest.mark.parametrize(("events", "delta"), random_plans(11, 12), ids=str)
def test_order_and_grouping_of_unequal_rounds_do_not_matter(events: list[Event], delta: float) -> None:
    generator = np.random.default_rng(0)
    found = account(events, delta)
    assert account(regrouped(events, generator), delta) == found
    for _ in range(20):
        assert epsilon(regrouped(events, generator), delta, "rdp") == epsilon(events, delta, "rdp")


@given(
    st.lists(st.tuples(st.floats(0.1, 50), st.just(1.0), st.integers(0, 1000)), max_size=5),
    st.integers(0, 2**32),
)
def test_order_and_grouping_do_not_matter_without_sampling(events: list[Event], seed: int) -> None:
    shuffled = regrouped(events, np.random.default_rng(seed))
    assert epsilon(shuffled, 1e-6) == epsilon(events, 1e-6)
    assert zcdp(shuffled) == zcdp(events) and epsilon(shuffled, 1e-6, "zcdp") == epsilon(events, 1e-6, "zcdp")


@pytest.mark.parametrize("probability", [1.0, 0.2])
def test_more_rounds_never_spend_less(probability: float) -> None:
    spent = [epsilon([(3.0, 0.1, 50), (2.0, probability, count)], 1e-6) for count in (0, 1, 3, 10, 100)]
    assert spent == sorted(spent) and len(set(spent)) == 5


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
        ([(1.0, 1.0, 10**400)], 1e-5, "auto", "count=1000000"),
        ([(1.0, 1.0, 1)], 0.0, "auto", r"delta=0.0 is not in \(0, 1\)"),
        ([(1.0, 1.0, 1)], 1.0, "auto", "delta=1.0"),
        ([(1.0, 1.0, 1)], math.nan, "auto", "delta=nan"),
        ([(1.0, 1.0, 1)], 1e-5, "gdp", "accountant='gdp'"),
    ],
)
def test_values_out_of_range_are_refused(events: list[Event], delta: float, accountant: str, message: str) -> None:
    with pytest.raises(PrivacyError, match=message):
        epsilon(events, delta, accountant)


@pytest.mark.parametrize("delta", [0.1, 1e-3, 1e-6, 1e-12, 1e-300])
@pytest.mark.parametrize("rho", [1e-8, 1e-4, 0.01, 0.2, 1.0, 30.0, 1e4])
def test_zcdp_is_above_the_closed_form_and_below_the_simple_conversion(rho: float, delta: float) -> None:
    found = zcdp_epsilon(rho, delta)
    assert accounting.exact_epsilon(math.sqrt(2 * rho), delta) <= found
    assert found <= (rho + 2 * math.sqrt(rho * math.log(1 / delta))) * (1 + 2e-6), "Bun & Steinke 2016, Proposition 1.3"


@pytest.mark.parametrize("delta", [1e-2, 1e-5, 1e-8])
@pytest.mark.parametrize(("noise", "count"), [(1.0, 1), (0.5, 3), (5.0, 10), (20.0, 1), (300.0, 1000)])
def test_zcdp_agrees_with_a_second_library(noise: float, count: int, delta: float) -> None:
    accountant = RdpAccountant(orders=1 + np.geomspace(1e-3, 1e6, 20_000))
    accountant.compose(SelfComposedDpEvent(GaussianDpEvent(noise), count))
    reference = accountant.get_epsilon(delta)
    assert epsilon([(noise, 1.0, count)], delta, "zcdp") == pytest.approx(reference, rel=3e-6)


@given(st.floats(5e-324, 1.7e308), st.floats(5e-324, 1 - 1e-16))
def test_zcdp_converts_every_rho(rho: float, delta: float) -> None:
    assert zcdp_epsilon(rho, delta) >= 0


def test_zcdp_gives_rho_and_refuses_sampling() -> None:
    assert zcdp([(5.0, 1.0, 10)]) == pytest.approx(0.2) and zcdp([(5.0, 1.0, 10), (1.0, 1.0, 2)]) == pytest.approx(1.2)
    assert zcdp([]) == 0 == zcdp([(1.0, 0.5, 0)]) and zcdp([(0.0, 1.0, 1)]) == math.inf == zcdp([(1e-200, 1.0, 1)])
    assert account([], 1e-5, "zcdp") == (0, "zcdp") and account([(0.0, 1.0, 1)], 1e-5, "zcdp") == (math.inf, "zcdp")
    with pytest.raises(PrivacyError, match=r"sampling_probability=0\.5 can't be accounted by 'zcdp'"):
        account([(1.0, 1.0, 3), (2.0, 0.5, 1)], 1e-5, "zcdp")


def test_accounting_imports_neither_torch_nor_opacus() -> None:
    code = "import sys, fedrec.privacy.plan; sys.exit(bool({'torch', 'opacus', 'scipy', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
