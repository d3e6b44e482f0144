"""Released noise has the claimed distribution: block by block, coordinate by coordinate, over many releases.

For every model that runs under a plan, and its own blocks, in simulations and deployments, under central and local
trust: (release x divisor - sum) / claimed std is an independent standard normal. Tested are

    each block, all its values      Kolmogorov-Smirnov; chi-squared of the sum of squares against `noise_std`
    each coordinate, each release   Kolmogorov-Smirnov
    each pair of coordinates        correlation over the releases: so blocks are independent, too
    each pair of releases           correlation over the coordinates: so rounds and keys are independent
    successive coordinates, rounds  correlation over all values

Every p-value is exact for independent normals. Each of the n tests of a case has level 1e-6 / (n x cases), so a right
sampler fails this file, all cases and tests together, with probability at most 1e-6 (for keys other than the fixed
ones here; with these it always gives the same answer).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chi2, kstwo, norm
from scipy.stats import t as student

from fedrec.data.batches import user_batches
from fedrec.data.catalogue import Catalogue
from fedrec.federated.cohort import sum_contributions
from fedrec.models.registry import build_model, model_names, settings_type
from fedrec.privacy.clipping import BoundedSum
from fedrec.privacy.mechanism import Release, add_noise_to_users, publish_noisy, release
from fedrec.privacy.plan import PrivacyEvent, PrivacyPlan
from fedrec.randomness import Key, user_keys
from tests.worlds import random_world

NUM_USERS, NUM_ITEMS, DIM = 8, 20, 3
CLIPPING_NORM = 0.25
NUM_KEYS, NUM_ROUNDS = 20, 10
FAILURE_PROBABILITY = 1e-6

INTERACTIONS = random_world(NUM_USERS, NUM_ITEMS)
EVENTS = PrivacyEvent(1.5, 1.0, 4), PrivacyEvent(0.6, 1.0, NUM_ROUNDS - 4)
CENTRAL = PrivacyPlan(EVENTS, delta=1e-5, clipping_norm=CLIPPING_NORM, population_size=NUM_USERS)
LOCAL = replace(CENTRAL, trust_model="local", neighboring_relation="replace one user")
SYSTEM = Key(bytes(range(32)), from_system=True)  # fixed bytes, so that the tests are the same every time

Mechanism = Callable[[BoundedSum, int, Key], Release]


def central(total: BoundedSum, round_number: int, key: Key) -> Release:
    return release(total, CENTRAL, round_number, key)


def local(total: BoundedSum, round_number: int, key: Key) -> Release:
    noisy = add_noise_to_users(total, LOCAL, round_number, user_keys(INTERACTIONS.user_ids.ids), key)
    return publish_noisy(noisy, LOCAL, round_number, num_nodes=1)


MODELS = sorted(model_names("user"))
TABLES: dict[str, dict[str, Any]] = {"two_tower": {"dim": 2, "history": {"name": "decayed"}}}
MECHANISMS: dict[str, Mechanism] = {"central": central, "local": local}
KEYS = {"simulation": Key.from_seed(12), "deployment": SYSTEM}
NUM_CASES = len(MODELS) * len(MECHANISMS) * len(KEYS)


@cache
def bounded_sum(model: str) -> BoundedSum:
    """Return the sum that the users of a small world add up to."""
    sized = {"dim": DIM} if "dim" in settings_type(model, "user").model_fields else {}
    built = build_model({"name": model, **sized, **TABLES.get(model, {})}, CLIPPING_NORM)
    halves = np.arange(INTERACTIONS.num_items)[:, None] % 2 == np.arange(2)
    catalogue = Catalogue(INTERACTIONS.item_ids, categories=halves, category_names=("even", "odd"))
    shared = built.init(catalogue, Key.from_seed(1)).shared
    batches = user_batches(INTERACTIONS, keys=user_keys(INTERACTIONS.user_ids.ids))
    return sum_contributions(built, shared, batches, CLIPPING_NORM, Key.from_seed(1))[0]


@dataclass(frozen=True)
class Noise:
    """What many releases added to a sum, in claimed stds: block -> (releases, coordinates)."""

    blocks: dict[str, np.ndarray]

    @property
    def together(self) -> np.ndarray:
        return np.concatenate([self.blocks[name] for name in sorted(self.blocks)], axis=1)


def draw(model: str, mechanism: Mechanism, key: Key) -> Noise:
    """Release the same sum with every key in every round."""
    total, found = bounded_sum(model), {name: list[np.ndarray]() for name in bounded_sum(model).totals}
    for number in range(NUM_KEYS):
        for round_number in range(1, NUM_ROUNDS + 1):
            released = mechanism(total, round_number, key.fold("run", number))
            for name, values in released.blocks.items():
                noise = values * released.divisor - total.totals[name]
                found[name].append((noise / (released.noise_std[name] * released.divisor)).flatten().numpy())
    return Noise({name: np.stack(rows) for name, rows in found.items()})


def kolmogorov_smirnov(rows: np.ndarray) -> np.ndarray:
    """Return the p-value of the two-sided test of each row against the standard normal, exact for its length."""
    num = rows.shape[1]
    below = norm.cdf(np.sort(rows, axis=1))
    steps = np.arange(num + 1) / num
    return kstwo.sf(np.maximum(steps[1:] - below, below - steps[:-1]).max(axis=1), num)


def spread(values: np.ndarray) -> np.ndarray:
    """Return the two-sided p-value of the sum of squares: chi-squared, exact."""
    squares = np.square(values).sum()
    return 2 * np.minimum(chi2.cdf(squares, values.size), chi2.sf(squares, values.size))


def correlation(rows: np.ndarray) -> np.ndarray:
    """Return the p-value of the correlation of every two rows: Student's t, exact for independent normals."""
    freedom = rows.shape[1] - 2
    with np.errstate(invalid="ignore"):  # a row that never changes is as bad as two that are the same
        r = np.nan_to_num(np.corrcoef(rows), nan=1.0)[np.triu_indices(len(rows), 1)]
    squared = np.minimum(r**2, 1 - 1e-15)
    return 2 * student.sf(np.sqrt(squared * freedom / (1 - squared)), freedom)


def p_values(noise: Noise) -> dict[str, np.ndarray]:
    """Return all p-values of one case, by kind of test."""
    whole, blocks = noise.together, noise.blocks.values()
    return {
        "blocks": np.concatenate([kolmogorov_smirnov(block.reshape(1, -1)) for block in blocks]),
        "spread of blocks": np.array([spread(block) for block in blocks]),
        "coordinates": kolmogorov_smirnov(whole.T),
        "releases": kolmogorov_smirnov(whole),
        "pairs of coordinates": correlation(whole.T),
        "pairs of releases": correlation(whole),
        "successive coordinates": correlation(np.stack([whole[:, 1:].ravel(), whole[:, :-1].ravel()])),
        "successive releases": correlation(np.stack([whole[1:].ravel(), whole[:-1].ravel()])),
    }


def check_distribution(noise: Noise) -> None:
    """Fail where the noise is not standard normal, or not independent."""
    found = p_values(noise)
    level = FAILURE_PROBABILITY / NUM_CASES / sum(len(values) for values in found.values())
    worst = {name: values.min() for name, values in found.items() if values.min() <= level}
    assert not worst, f"p-values below {level:.1e}: {worst}"


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("trust", MECHANISMS)
@pytest.mark.parametrize("model", MODELS)
def test_noise_of_every_block_is_gaussian_independent_and_of_the_stated_std(model: str, trust: str, key: str) -> None:
    check_distribution(draw(model, MECHANISMS[trust], KEYS[key]))


@pytest.mark.parametrize("round_number", [1, NUM_ROUNDS])
@pytest.mark.parametrize("model", MODELS)
def test_stated_std_follows_from_the_plan_alone(model: str, round_number: int) -> None:
    """Central: z C over the cohort. Local: sensitivity 2 C, one draw for each user of the declared population."""
    noise_multiplier, total = CENTRAL.event_for_round(round_number).noise_multiplier, bounded_sum(model)
    for mechanism, std in ((central, 1.0), (local, 2 * math.sqrt(NUM_USERS))):
        released = mechanism(total, round_number, SYSTEM)
        expected = noise_multiplier * CLIPPING_NORM * std / NUM_USERS
        assert released.divisor == NUM_USERS and released.noise_std.keys() == total.totals.keys()
        assert all(stated == pytest.approx(expected, rel=1e-12) for stated in released.noise_std.values())


def with_noise(released: Release, total: BoundedSum, noise: dict[str, torch.Tensor]) -> Release:
    """Return the release with other noise on some blocks."""
    changed = {name: (total.totals[name] + values) / released.divisor for name, values in noise.items()}
    return replace(released, blocks={**released.blocks, **changed})


def noise_of(released: Release, total: BoundedSum, name: str) -> torch.Tensor:
    return released.blocks[name] * released.divisor - total.totals[name]


def forgotten_in_one_block(total: BoundedSum, round_number: int, key: Key) -> Release:
    name = min(total.totals)
    return with_noise(central(total, round_number, key), total, {name: torch.zeros_like(total.totals[name])})


def forgotten_in_one_row(total: BoundedSum, round_number: int, key: Key) -> Release:
    released, name = central(total, round_number, key), max(total.totals)
    noise = noise_of(released, total, name)
    noise[-1] = 0
    return with_noise(released, total, {name: noise})


def not_scaled_by_the_clipping_norm(total: BoundedSum, round_number: int, key: Key) -> Release:
    released = central(total, round_number, key)
    noise = {name: noise_of(released, total, name) / CLIPPING_NORM for name in total.totals}
    return with_noise(released, total, noise)


def a_fifth_too_small(total: BoundedSum, round_number: int, key: Key) -> Release:
    released = central(total, round_number, key)
    return with_noise(released, total, {name: 0.8 * noise_of(released, total, name) for name in total.totals})


def same_in_two_blocks(total: BoundedSum, round_number: int, key: Key) -> Release:
    released, (first, *_, last) = central(total, round_number, key), sorted(total.totals)
    noise, size = noise_of(released, total, last).flatten(), total.totals[first].numel()
    repeated = noise.repeat(math.ceil(size / len(noise)))[:size]
    return with_noise(released, total, {first: repeated.reshape(total.totals[first].shape)})


def same_in_two_rows(total: BoundedSum, round_number: int, key: Key) -> Release:
    released, name = central(total, round_number, key), max(total.totals)
    noise = noise_of(released, total, name)
    noise[0] = noise[-1]
    return with_noise(released, total, {name: noise})


def same_in_two_rounds(total: BoundedSum, round_number: int, key: Key) -> Release:
    return central(total, round_number - 1 if round_number == 2 else round_number, key)


def same_for_all_keys(total: BoundedSum, round_number: int, key: Key) -> Release:
    return central(total, round_number, Key(SYSTEM.secret, key.from_system))


def std_of_another_round(total: BoundedSum, round_number: int, key: Key) -> Release:
    return replace(central(total, round_number, key), noise_std=central(total, 1, key).noise_std)


def std_without_the_division(total: BoundedSum, round_number: int, key: Key) -> Release:
    released = central(total, round_number, key)
    return replace(released, noise_std={name: std * NUM_USERS for name, std in released.noise_std.items()})


def flat_instead_of_gaussian(total: BoundedSum, round_number: int, key: Key) -> Release:
    released, draws = central(total, round_number, key), np.random.default_rng([*key.secret, round_number])
    width = math.sqrt(3) * CENTRAL.event_for_round(round_number).noise_multiplier * CLIPPING_NORM
    noise = {name: torch.from_numpy(draws.uniform(-width, width, t.shape)) for name, t in total.totals.items()}
    return with_noise(released, total, noise)


MUTATIONS: list[Mechanism] = [
    *(forgotten_in_one_block, forgotten_in_one_row, not_scaled_by_the_clipping_norm, a_fifth_too_small),
    *(same_in_two_blocks, same_in_two_rows, same_in_two_rounds, same_for_all_keys),
    *(std_of_another_round, std_without_the_division, flat_instead_of_gaussian),
]


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_the_check_sees_wrong_noise(mutation: Mechanism, model: str, key: str) -> None:
    if mutation is same_in_two_blocks and len(bounded_sum(model).totals) == 1:
        pytest.skip(f"{model} has one block")
    with pytest.raises(AssertionError, match="p-values below"):
        check_distribution(draw(model, mutation, KEYS[key]))


def test_the_check_accepts_the_normals_of_another_generator() -> None:
    """The levels are right: p-values of a right sampler are uniform."""
    draws, seen = np.random.default_rng(8), dict[str, list[np.ndarray]]()
    for _ in range(20):
        noise = Noise({"a": draws.standard_normal((40, 20)), "b": draws.standard_normal((40, 5))})
        check_distribution(noise)
        for name, values in p_values(noise).items():
            seen.setdefault(name, []).append(values)
    for name, values in seen.items():
        everything = np.concatenate(values)
        for level in (0.1, 0.5):
            allowed = 6 * math.sqrt(level * (1 - level) / len(everything)) * (3 if "pairs" in name else 1)
            assert abs((everything < level).mean() - level) < allowed, f"{name}: pairs share rows, so they vary more"
