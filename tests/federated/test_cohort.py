"""The cohort engine: who is drawn, and that the sum is the plain sum where nothing is clipped."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fedrec.data.batches import user_batches
from fedrec.data.catalogue import Catalogue
from fedrec.errors import PrivacyError
from fedrec.federated.cohort import draw_cohort, sum_contributions
from fedrec.models.registry import build_model
from fedrec.randomness import Key, user_keys
from tests.worlds import random_world

KEY = Key.from_seed(3)


def test_everybody_is_drawn_at_probability_one() -> None:
    assert draw_cohort(user_keys(np.arange(50)), 1.0, KEY).tolist() == list(range(50))


def test_draws_do_not_depend_on_who_shares_the_node() -> None:
    ids = np.arange(1000)
    drawn = set(draw_cohort(user_keys(ids), 0.3, KEY).tolist())
    spread = set()
    for node in range(7):
        own = ids[node::7]
        spread |= set(own[draw_cohort(user_keys(own), 0.3, KEY)].tolist())
    assert spread == drawn


def test_draws_are_independent_coins_of_the_given_probability() -> None:
    keys = user_keys(np.arange(20_000))
    first, second = (np.isin(np.arange(20_000), draw_cohort(keys, 0.3, KEY.fold(r))) for r in (1, 2))
    spread = math.sqrt(0.3 * 0.7 / 20_000)
    assert abs(first.mean() - 0.3) < 5 * spread and abs(second.mean() - 0.3) < 5 * spread
    assert abs((first & second).mean() - 0.09) < 5 * math.sqrt(0.09 * 0.91 / 20_000), "rounds are independent"
    assert len(set(np.flatnonzero(first)) ^ set(np.flatnonzero(second))) > 0


@pytest.mark.parametrize("probability", [0.0, -0.1, 1.0001, math.nan])
def test_impossible_probability_is_refused(probability: float) -> None:
    with pytest.raises(PrivacyError, match=r"not in \(0, 1\]"):
        draw_cohort(user_keys(np.arange(3)), probability, KEY)


def test_exact_statistics_are_refused_under_a_clipping_norm() -> None:
    interactions = random_world(5, 9)
    model = build_model({"name": "als", "dim": 3}, None)
    shared = model.init(Catalogue(interactions.item_ids), KEY).shared
    with pytest.raises(PrivacyError, match="no bounded form"):
        sum_contributions(model, shared, user_batches(interactions), 1.0, KEY)


def test_without_clipping_the_sum_is_the_plain_sum_of_users() -> None:
    interactions = random_world(12, 9)
    model = build_model({"name": "als", "dim": 3}, 1.0)
    shared = model.init(Catalogue(interactions.item_ids), KEY).shared
    whole, _ = sum_contributions(model, shared, user_batches(interactions), math.inf, KEY)
    plain = {name: torch.zeros_like(total) for name, total in whole.totals.items()}
    for user in range(12):
        alone, _ = sum_contributions(model, shared, user_batches(interactions, np.array([user])), math.inf, KEY)
        for name, total in alone.totals.items():
            plain[name] += total
    for name, total in whole.totals.items():
        torch.testing.assert_close(total, plain[name], rtol=1e-5, atol=1e-6)


def test_private_state_of_every_drawn_user_is_kept() -> None:
    interactions = random_world(12, 9)
    model = build_model({"name": "als", "dim": 3}, 1.0)
    shared = model.init(Catalogue(interactions.item_ids), KEY).shared
    kept: dict[int, torch.Tensor] = {}
    cohort = np.array([1, 4, 7])
    sum_contributions(
        model,
        shared,
        user_batches(interactions, cohort),
        1.0,
        KEY,
        keep=lambda rows, state: kept.update(zip(rows.tolist(), state["vectors"], strict=True)),
    )
    assert sorted(kept) == [1, 4, 7]
