"""Lower bounds: below the claim on the correct mechanism, above it on deliberately broken ones, over 5 seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
from torch import Tensor

from fedrec.audit.canaries import attack_contributions, attack_users
from fedrec.audit.one_shot import estimate_one_shot
from fedrec.audit.subject import Subject
from fedrec.errors import PrivacyError
from fedrec.federated import cohort
from fedrec.models.blocks import RowSparse
from fedrec.privacy import clipping, mechanism
from fedrec.privacy.audit_bounds import best_lower_bound
from fedrec.privacy.clipping import BoundedSum, ClippableBlock
from fedrec.privacy.mechanism import Release
from fedrec.privacy.plan import PrivacyPlan
from fedrec.randomness import Key
from tests.audit.subjects import subject

SEEDS = range(5)
CONFIDENCE = 0.95


def bounds(target: Subject, seed: int, users: int = 200) -> dict[str, float]:
    """Audit with canaries of both kinds and return the lower bound of each audit."""
    assert target.plan is not None
    key = Key.from_seed(seed)
    audits = attack_contributions(target, 1000, key.fold("contributions"))
    audits += attack_users(target, users, key.fold("users"))
    return {
        f"{one.kind} {one.block}".strip(): best_lower_bound(
            one.scores, one.included, target.plan.delta, CONFIDENCE, len(audits)
        ).epsilon
        for one in audits
    }


@pytest.mark.parametrize("sampling, num_rounds", [(1.0, 2), (0.05, 20)])
@pytest.mark.parametrize("model", ["als", "mf", "popularity"])
def test_correct_mechanism_is_not_refuted(model: str, sampling: float, num_rounds: int) -> None:
    target = subject(model, 1.0, sampling, num_rounds)
    assert target.plan is not None and 0.99 < target.plan.epsilon <= 1.0
    for seed in SEEDS:
        assert max(bounds(target, seed).values()) <= target.plan.epsilon, seed


def test_bound_is_not_trivial_where_epsilon_is_large() -> None:
    found = bounds(subject("als", 8.0), 0)
    assert 1.5 < max(found.values()) < 8.0
    assert found["users"] > 0.5


def no_clipping(contributions: Mapping[str, ClippableBlock], clipping_norm: float) -> Tensor:
    return torch.ones(len(next(iter(contributions.values())).finite()), dtype=torch.float64)


@pytest.mark.parametrize("model", ["als", "mf", "popularity"])
def test_missing_clipping_is_refuted(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clipping, "clip_scales", no_clipping)
    target = subject(model, 1.0)
    for seed in SEEDS:
        assert max(bounds(target, seed).values()) > 1.0, seed


def noise_forgotten_in(block: str) -> Callable[[BoundedSum, PrivacyPlan, int, Key], Release]:
    correct = mechanism.release

    def release(bounded_sum: BoundedSum, plan: PrivacyPlan, round: int, key: Key) -> Release:
        released = correct(bounded_sum, plan, round, key)
        return Release(
            {**released.blocks, block: bounded_sum.totals[block] / released.divisor},
            released.noise_std,
            released.divisor,
        )

    return release


@pytest.mark.parametrize("block", ["items", "gram", "counts"])
def test_noise_forgotten_in_one_block_is_refuted_and_the_block_is_named(
    block: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mechanism, "release", noise_forgotten_in(block))
    target = subject("als", 1.0)
    for seed in SEEDS:
        found = bounds(target, seed)
        assert found[f"contributions {block}"] > 1.0, seed
        others = {"items", "gram", "counts"} - {block}
        assert all(found[f"contributions {other}"] <= 1.0 for other in others)


@pytest.mark.parametrize("num_rounds", [2, 20])
@pytest.mark.parametrize("model", ["als", "mf", "popularity"])
def test_sampling_claimed_but_not_done_is_refuted(model: str, num_rounds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cohort, "draw_cohort", lambda user_keys, probability, key: np.arange(len(user_keys)))
    target = subject(model, 1.0, 0.05, num_rounds)
    for seed in SEEDS:
        assert max(bounds(target, seed).values()) > 1.0, seed


def test_norms_taken_before_duplicates_are_coalesced_are_refuted(monkeypatch: pytest.MonkeyPatch) -> None:
    def squared_norms(block: RowSparse) -> Tensor:
        return block.values.to(torch.float64).square().sum(dim=(1, 2))

    monkeypatch.setattr(RowSparse, "squared_norms", squared_norms)
    target = subject("mf", 1.0)
    for seed in SEEDS:
        assert max(bounds(target, seed).values()) > 1.0, seed


def test_too_little_noise_is_refuted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise of the right shape and a tenth of its size."""
    correct = mechanism.release

    def release(bounded_sum: BoundedSum, plan: PrivacyPlan, round: int, key: Key) -> Release:
        released = correct(bounded_sum, plan, round, key)
        exact = {name: total / released.divisor for name, total in bounded_sum.totals.items()}
        blocks = {name: exact[name] + (block - exact[name]) / 10 for name, block in released.blocks.items()}
        return Release(blocks, released.noise_std, released.divisor)

    monkeypatch.setattr(mechanism, "release", release)
    for model in ("als", "popularity"):
        target = subject(model, 1.0)
        assert all(max(bounds(target, seed).values()) > 1.0 for seed in SEEDS)


@pytest.mark.parametrize("epsilon", [1.0, 8.0])
def test_one_shot_estimate_is_near_the_claim_of_the_correct_mechanism(epsilon: float) -> None:
    knows, releases_only = estimate_one_shot(subject("als", epsilon), 600, 0.99, Key.from_seed(0))
    assert knows.knows_others and not releases_only.knows_others
    assert knows.estimate.low <= 1.3 * epsilon and knows.estimate.high >= 0.7 * epsilon
    assert knows.dim == NUM_COORDINATES and knows.num_canaries == 600


NUM_COORDINATES = 160 * 8 + 8 * 9 // 2 + 160


def test_one_shot_estimate_explodes_where_clipping_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clipping, "clip_scales", no_clipping)
    knows, _ = estimate_one_shot(subject("als", 1.0), 100, 0.95, Key.from_seed(0))
    assert knows.estimate.low > 10.0


def test_canaries_need_a_claim() -> None:
    with pytest.raises(PrivacyError, match=r"\[privacy\]"):
        attack_contributions(subject("als"), 100, Key.from_seed(0))


def test_coins_of_canaries_follow_the_key_and_are_fair() -> None:
    target = subject("popularity", 1.0)
    first, again, other = (attack_contributions(target, 150, Key.from_seed(seed))[0] for seed in (0, 0, 1))
    assert np.array_equal(first.included, again.included) and np.array_equal(first.scores, again.scores)
    assert not np.array_equal(first.included, other.included)
    assert 50 < first.included.sum() < 100


def test_real_users_are_taken_off_exactly() -> None:
    """Canaries that are out score as pure noise: nothing of the real users is left in their coordinates."""
    target = subject("popularity", 1.0, num_rounds=1)
    scores = np.concatenate(
        [one.scores[~one.included] for one in (attack_contributions(target, 150, Key.from_seed(s))[0] for s in SEEDS)]
    )
    noise = target.noise_multiplier(1)
    values = scores * noise**2 + 0.5
    assert abs(values.mean()) < 4 * noise / len(values) ** 0.5
    assert values.std() == pytest.approx(noise, rel=0.15)
