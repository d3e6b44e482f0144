"""SLIT against a ridge regression written out, position by position."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedrec.compiled import reference
from fedrec.data.batches import make_batch
from fedrec.data.catalogue import Catalogue
from fedrec.data.interactions import Interactions
from fedrec.errors import ConfigError
from fedrec.models import ease
from fedrec.models.registry import build_model
from fedrec.randomness import Key
from tests.training import train
from tests.worlds import make, random_world

SETTINGS = {"regularization": 2.5, "decay": 3.0, "floor": 0.1, "length_discount": 0.5}
TABLE = {"name": "slit", **SETTINGS}


def weight(age: np.ndarray) -> np.ndarray:
    return np.exp(-age / 3.0) + 0.1


def weights_of(interactions: Interactions, num_rounds: int = 1, micro_batch: int = 2**17) -> np.ndarray:
    catalogue = Catalogue(interactions.item_ids)
    state = train(build_model(TABLE, None), catalogue, interactions, num_rounds, micro_batch=micro_batch)
    return state.shared["weights"].double().numpy()


def solved(interactions: Interactions) -> np.ndarray:
    num_items, rows, targets, discounts = interactions.num_items, [], [], []
    for user in range(interactions.num_users):
        history = interactions.items[interactions.users == user]
        for t in range(1, len(history)):
            row = np.zeros(num_items)
            for s in range(t):
                row[history[s]] += weight(np.array(t - 1 - s))
            rows.append(row)
            targets.append(np.eye(num_items)[history[t]])
            discounts.append(len(history) ** -0.5)
    past, following, scale = np.array(rows), np.array(targets), np.array(discounts)[:, None]
    return np.linalg.solve(past.T @ (scale * past) + 2.5 * np.eye(num_items), past.T @ (scale * following))


REPEATED = make([(0, item % 3) for item in range(17)] + [(1, 2), (2, 0), (2, 0), (2, 4)], 4, 6)


@pytest.mark.parametrize("interactions", [random_world(40, 12), REPEATED], ids=["random", "repeated"])
@pytest.mark.usefixtures("form")
def test_weights_solve_the_ridge_regression_of_every_next_item_on_its_past(interactions: Interactions) -> None:
    np.testing.assert_allclose(weights_of(interactions), solved(interactions), atol=2e-6)


def test_batches_and_further_rounds_change_nothing() -> None:
    interactions = random_world(30, 10)
    first = weights_of(interactions)
    np.testing.assert_array_equal(weights_of(interactions, num_rounds=3), first)
    np.testing.assert_allclose(weights_of(interactions, micro_batch=7), first, atol=1e-6)
    with reference():
        np.testing.assert_allclose(weights_of(interactions), first, atol=1e-6)


@pytest.mark.parametrize("ranking_decay", [None, 1.5])
def test_score_is_the_weighted_past_times_the_weights(ranking_decay: float | None) -> None:
    interactions = make([(0, 3), (0, 1), (0, 3), (0, 4), (1, 2)], 3, 5)
    weights = torch.randn(5, 5, generator=torch.Generator().manual_seed(0))
    batch = make_batch(interactions, np.arange(3))
    scores = build_model({**TABLE, "ranking_decay": ranking_decay}, None).score({"weights": weights}, {}, batch)
    recency = np.exp(-np.arange(4) / (ranking_decay or 3.0)) + 0.1
    expected = sum((recency[age] * weights[item] for age, item in enumerate([4, 3, 1, 3])), torch.zeros(5))
    torch.testing.assert_close(scores[0], expected.to(torch.float32))
    torch.testing.assert_close(scores[1], (weights[2] * recency[0]).to(torch.float32))
    assert not scores[2].any()


def test_what_comes_next_is_learned_in_its_order() -> None:
    interactions = make([(user, (user + step) % 6) for user in range(30) for step in range(5)], 30, 6)
    weights = weights_of(interactions)
    assert (weights.argmax(axis=1) == (np.arange(6) + 1) % 6).all()


def test_large_catalogue_and_privacy_plan_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ease, "MAX_ITEMS", 9)
    with pytest.raises(ConfigError, match="'slit' keeps a table of 10 x 10 items, allowed are 9"):
        build_model(TABLE, None).init(Catalogue(make([], 1, 10).item_ids), Key.from_seed(0))
    with pytest.raises(ConfigError, match="'slit' does not run under a privacy plan"):
        build_model(TABLE, 1.0)
