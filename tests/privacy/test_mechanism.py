"""The mechanism: the right noise on every coordinate, the same for the same round, on nothing but a bounded sum."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from fedrec.errors import PrivacyError
from fedrec.privacy.clipping import BoundedSum
from fedrec.privacy.mechanism import Release, publish_exact, release
from fedrec.privacy.noise import GRID_BITS, noisy
from fedrec.privacy.plan import PrivacyEvent, PrivacyPlan
from fedrec.randomness import Key

PLAN = PrivacyPlan(
    (PrivacyEvent(3.0, 0.5, 2), PrivacyEvent(5.0, 0.25, 2)), delta=1e-5, clipping_norm=2.0, population_size=40
)
SIMULATION = Key.from_seed(11)
DEPLOYMENT = Key(bytes(range(32)), from_system=True)  # fixed bytes, so that the tests are the same every time
KEYS = pytest.mark.parametrize("key", [SIMULATION, DEPLOYMENT], ids=["simulation", "deployment"])


def bounded(**totals: torch.Tensor) -> BoundedSum:
    return BoundedSum(dict(totals), 2.0)


def zeros(*shape: int) -> torch.Tensor:
    return torch.zeros(*shape, dtype=torch.float64)


def equal(first: Release, second: Release) -> bool:
    return first.digest() == second.digest() and all(
        torch.equal(first.blocks[n], second.blocks[n]) for n in first.blocks
    )


@KEYS
def test_noise_is_gaussian_with_the_accounted_std_on_every_block(key: Key) -> None:
    """Kolmogorov-Smirnov at level 1e-6: with another key, a right sampler fails it once in a million."""
    released = release(bounded(items=zeros(100, 200), gram=zeros(20_000)), PLAN, 3, key)
    assert released.divisor == 0.25 * 40 and released.noise_std == {"items": 1.0, "gram": 1.0}
    for block in released.blocks.values():
        assert kstest(block.flatten().numpy(), "norm").pvalue > 1e-6
        assert abs(block.std().item() - 1) < 5 / math.sqrt(2 * 20_000)


@KEYS
def test_noise_is_independent_between_blocks_rounds_and_coordinates(key: Key) -> None:
    """Correlations of 20,000 pairs stay within 5 standard errors: each fails once in 1.7 million for another key."""
    first, second = (release(bounded(a=zeros(20_000), b=zeros(20_000)), PLAN, r, key).blocks for r in (1, 2))
    columns = [first["a"], first["b"], second["a"], second["b"], first["a"].roll(1), first["b"].roll(1)]
    correlations = np.corrcoef(torch.stack(columns).numpy())
    assert np.abs(correlations - np.eye(6)).max() < 5 / math.sqrt(20_000)


@KEYS
def test_a_retry_of_a_round_is_the_same_release(key: Key) -> None:
    total = torch.arange(6, dtype=torch.float64).reshape(2, 3)
    first, again = (release(bounded(items=total), PLAN, 1, key) for _ in range(2))
    assert equal(first, again)
    assert not equal(first, release(bounded(items=total), PLAN, 2, key))
    assert not equal(first, release(bounded(items=total), PLAN, 1, key.fold("other run")))


@KEYS
def test_order_and_company_of_blocks_do_not_matter(key: Key) -> None:
    one, two = zeros(4), zeros(3) + 1
    first, second = release(bounded(a=one, b=two), PLAN, 1, key), release(bounded(b=two, a=one), PLAN, 1, key)
    assert equal(first, second) and list(first.blocks) == list(second.blocks)
    assert torch.equal(release(bounded(a=one), PLAN, 1, key).blocks["a"], first.blocks["a"])


@KEYS
def test_the_sum_is_left_as_it_is(key: Key) -> None:
    total = torch.ones(3, dtype=torch.float64)
    release(bounded(a=total), PLAN, 1, key)
    assert torch.equal(total, torch.ones(3, dtype=torch.float64)) and not hasattr(total, "_processed")


@KEYS
def test_release_is_the_sum_plus_noise_over_the_public_cohort_size(key: Key) -> None:
    total = torch.tensor([4e6, -8e6], dtype=torch.float64)
    released = release(bounded(a=total), PLAN, 1, key)
    assert released.divisor == 20.0 and released.noise_std["a"] == 3.0 * 2.0 / 20.0
    assert (released.blocks["a"] - total / 20).abs().max() < 10 * released.noise_std["a"]
    assert released.blocks["a"].dtype == torch.float64


@KEYS
def test_an_empty_cohort_is_still_a_noisy_release(key: Key) -> None:
    released = release(bounded(a=zeros(50)), PLAN, 1, key)
    assert (released.blocks["a"] != 0).all() and released.noise_std["a"] == 0.3


def test_simulated_noise_is_what_opacus_draws_with_that_generator() -> None:
    from opacus.optimizers.optimizer import _generate_noise

    total = torch.linspace(-3, 3, 60, dtype=torch.float64).reshape(20, 3)
    generator = SIMULATION.fold("noise", 2, "items").noise_generator()
    expected = total + _generate_noise(std=3.0 * 2.0, reference=total, generator=generator)
    found = release(bounded(items=total), PLAN, 2, SIMULATION).blocks["items"] * 20
    torch.testing.assert_close(found, expected, rtol=0, atol=6.0 * 2.0**-GRID_BITS)


@pytest.mark.parametrize("num_bits", [32, 63, 255])
def test_simulated_noise_of_keys_that_differ_late_is_independent(num_bits: int) -> None:
    """Correlation of 20,000 pairs within 5 standard errors: fails once in 1.7 million for other keys."""
    secret = int.from_bytes(range(32), "little")
    keys = [Key(secret.to_bytes(32, "little")), Key((secret ^ 1 << num_bits).to_bytes(32, "little"))]
    first, second, again = (noisy(zeros(20_000), 1.0, key).numpy() for key in (*keys, keys[0]))
    assert np.array_equal(first, again) and (first == second).sum() < 5
    assert abs(np.corrcoef(first, second)[0, 1]) < 5 / math.sqrt(20_000)


def test_deployment_never_uses_the_same_noise_for_two_sums() -> None:
    zero, one = zeros(1000), torch.zeros(1000, dtype=torch.float64).index_fill(0, torch.tensor([0]), 1.0)
    first, second = (release(bounded(a=total), PLAN, 1, DEPLOYMENT).blocks["a"] for total in (zero, one))
    assert (first == second).sum() == 0
    assert abs(np.corrcoef(first.numpy(), second.numpy())[0, 1]) < 5 / math.sqrt(1000)


@KEYS
def test_noisy_sums_lie_on_a_grid_far_finer_than_the_noise(key: Key) -> None:
    released = release(bounded(a=zeros(1000) + math.pi), PLAN, 1, key)
    spacing = 2.0 ** (math.floor(math.log2(6.0)) - GRID_BITS)
    steps = released.blocks["a"] * released.divisor / spacing
    assert (steps - steps.round()).abs().max() < 1e-6, "up to the rounding of the division"
    assert spacing < 6.0 * 1e-6


@pytest.mark.parametrize(
    ("bounded_sum", "round_number", "message"),
    [
        (BoundedSum({"a": zeros(2)}, 1.0), 1, "clipped to 1.0, the plan's noise is for clipping_norm=2.0"),
        (BoundedSum({"a": zeros(2)}, math.inf), 1, "clipped to inf"),
        (BoundedSum({"a": zeros(2)}, math.nan), 1, "clipped to nan"),
        (BoundedSum({"a": torch.zeros(2)}, 2.0), 1, "must be torch.float64"),
        (BoundedSum({"a": zeros(2), "b": zeros(2) * math.nan}, 2.0), 1, "block 'b' is not finite"),
        (BoundedSum({"a": zeros(2) + math.inf}, 2.0), 1, "is not finite"),
        (BoundedSum({"a": zeros(2)}, 2.0), 0, "allowed are 1 to 4"),
        (BoundedSum({"a": zeros(2)}, 2.0), 5, "allowed are 1 to 4"),
    ],
)
def test_what_the_noise_is_not_calibrated_to_is_refused(
    bounded_sum: BoundedSum, round_number: int, message: str
) -> None:
    with pytest.raises(PrivacyError, match=message):
        release(bounded_sum, PLAN, round_number, SIMULATION)


def test_exact_publication_adds_nothing_and_says_so() -> None:
    published = publish_exact(BoundedSum({"a": zeros(2) + 6}, math.inf), 3.0)
    assert torch.equal(published.blocks["a"], zeros(2) + 2) and published.noise_std == {"a": 0.0}
    for divisor in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(PrivacyError, match="divisor"):
            publish_exact(BoundedSum({"a": zeros(2)}, math.inf), divisor)


CHANGES: list[Callable[[], Release]] = [
    lambda: Release({"a": zeros(2, 3)}, {"a": 1.0}, 2.0),
    lambda: Release({"a": zeros(3, 2)}, {"a": 1.0}, 2.0),
    lambda: Release({"b": zeros(2, 3)}, {"b": 1.0}, 2.0),
    lambda: Release({"a": zeros(2, 3) + 1}, {"a": 1.0}, 2.0),
    lambda: Release({"a": zeros(2, 3)}, {"a": 2.0}, 2.0),
    lambda: Release({"a": zeros(2, 3)}, {"a": 1.0}, 3.0),
]


def test_digest_tells_releases_apart() -> None:
    assert len({make().digest() for make in CHANGES}) == len(CHANGES)
    assert CHANGES[0]().digest() == CHANGES[0]().digest()
