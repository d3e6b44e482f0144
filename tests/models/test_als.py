"""ALS against formulas written out densely, user by user."""

from __future__ import annotations

import math

import numpy as np
import torch

from fedrec.data.batches import make_batch
from fedrec.data.catalogue import Catalogue
from fedrec.data.interactions import Interactions
from fedrec.models.registry import build_model
from fedrec.privacy.mechanism import Release
from fedrec.randomness import Key
from tests.training import train
from tests.worlds import random_world

DIM, A0, LAM = 5, 0.3, 0.02
TABLE = {"name": "als", "dim": DIM, "unobserved_weight": A0, "regularization": LAM}


def user_vectors(interactions: Interactions, items: np.ndarray, weight: float = 0.0, decay: float = 3.0) -> np.ndarray:
    """Solve for every user by a dense loop, float64."""
    vectors = np.zeros((interactions.num_users, DIM))
    for user in range(interactions.num_users):
        own = interactions.items[interactions.indptr[user] : interactions.indptr[user + 1]]
        weights = 1 + weight * np.exp(-np.arange(len(own))[::-1] / decay)
        matrix = A0 * items.T @ items + LAM * (len(own) + A0 * len(items)) * np.eye(DIM)
        matrix += (items[own] * weights[:, None]).T @ items[own]
        vectors[user] = np.linalg.solve(matrix, (items[own] * weights[:, None]).sum(axis=0))
    return vectors


def item_vectors(interactions: Interactions, users: np.ndarray) -> np.ndarray:
    """Solve for every item by a dense loop, float64."""
    vectors = np.zeros((interactions.num_items, DIM))
    for item in range(interactions.num_items):
        fans = users[interactions.users[interactions.items == item]]
        matrix = A0 * users.T @ users + fans.T @ fans + LAM * (len(fans) + A0 * len(users)) * np.eye(DIM)
        vectors[item] = np.linalg.solve(matrix, fans.sum(axis=0))
    return vectors


def test_rounds_equal_alternating_least_squares_written_out() -> None:
    interactions = random_world(25, 15)
    model = build_model(TABLE, None)
    items = model.init(Catalogue(interactions.item_ids), Key.from_seed(0).fold("init")).shared["items"].double().numpy()
    for _ in range(3):
        items = item_vectors(interactions, user_vectors(interactions, items))
    state = train(model, Catalogue(interactions.item_ids), interactions, 3)
    np.testing.assert_allclose(state.shared["items"].numpy(), items, rtol=2e-3, atol=2e-4)


def test_recency_weights_the_newest_interactions_at_ranking_only() -> None:
    interactions = random_world(10, 15)
    items = torch.randn(15, DIM, generator=Key.from_seed(2).torch_generator())
    model = build_model({**TABLE, "recency_weight": 20.0, "recency_decay": 3.0}, None)
    batch = make_batch(interactions, np.arange(10))
    ranking = model.fit_users({"items": items}, batch)["vectors"]
    training = model.fit_users({"items": items}, batch, ranking=False)["vectors"]
    expected = user_vectors(interactions, items.double().numpy(), weight=20.0)
    np.testing.assert_allclose(ranking.numpy(), expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(
        training.numpy(), user_vectors(interactions, items.double().numpy()), rtol=1e-3, atol=1e-4
    )


def test_recency_is_off_where_the_data_has_no_times() -> None:
    timeless = random_world(10, 15)
    object.__setattr__(timeless, "times", None)
    items = torch.randn(15, DIM, generator=Key.from_seed(2).torch_generator())
    model = build_model({**TABLE, "recency_weight": 20.0}, None)
    vectors = model.fit_users({"items": items}, make_batch(timeless, np.arange(10)))["vectors"]
    np.testing.assert_allclose(vectors.numpy(), user_vectors(timeless, items.double().numpy()), rtol=1e-3, atol=1e-4)


def test_bounded_update_solves_the_formula_of_its_docstring() -> None:
    model = build_model({**TABLE, "shrinkage": False, "history_scale": 4.0, "item_share": 0.8, "gram_share": 0.1}, 1.0)
    rng = np.random.default_rng(0)
    vectors, counts = rng.normal(size=(15, DIM)) * 0.1, rng.uniform(0, 0.5, size=(15, 1))
    unit = rng.normal(size=(200, DIM))
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    gram = unit.T @ unit / 200
    upper = np.triu_indices(DIM)
    packed = gram[upper] * np.where(upper[0] == upper[1], 1.0, math.sqrt(2))
    beta, gamma, kappa = math.sqrt(0.8), math.sqrt(0.1), math.sqrt(0.1)
    blocks = {
        "items": torch.from_numpy(beta * vectors),
        "gram": torch.from_numpy(gamma * packed),
        "counts": torch.from_numpy(kappa * counts),
    }
    server = model.init(Catalogue(random_world(3, 15).item_ids), Key.from_seed(0))
    state = model.update(server, Release(blocks, dict.fromkeys(blocks, 0.0), 200.0))
    for item in range(15):
        count = 4.0 * counts[item, 0]
        matrix = (A0 + count) * gram + LAM * (count + A0) * np.eye(DIM)
        expected = np.linalg.solve(matrix, 4.0 * vectors[item])
        np.testing.assert_allclose(state.shared["items"][item].numpy(), expected, rtol=1e-4, atol=1e-6)


def test_bounded_update_survives_nothing_but_noise() -> None:
    model = build_model(TABLE, 1.0)
    server = model.init(Catalogue(random_world(3, 15).item_ids), Key.from_seed(0))
    totals = model.totals(server.shared)
    noise = {name: torch.randn(total.shape, dtype=total.dtype) * 10 for name, total in totals.items()}
    state = model.update(server, Release(noise, dict.fromkeys(noise, 10.0), 1.0))
    assert torch.isfinite(state.shared["items"]).all()
