"""The factorisation machine against its definition: all pairs of active features, written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fedrec.data.batches import make_batch, user_batches
from fedrec.data.catalogue import Catalogue
from fedrec.evaluation.counts import Cutoffs, summarise
from fedrec.evaluation.nodes import evaluate_users
from fedrec.federated.cohort import sum_contributions
from fedrec.models.registry import build_model
from fedrec.randomness import Key, user_keys
from tests.training import train
from tests.worlds import checkerboard, make, random_world

TABLE = {"name": "fm", "dim": 6, "window": 4, "recency_decay": 2.0, "init_std": 0.5, "crop_probability": 0.0}


def catalogue_of(num_items: int, categories: bool = True) -> Catalogue:
    table = np.random.default_rng(0).random((num_items, 3)) < 0.5 if categories else None
    return Catalogue(make([], 1, num_items).item_ids, categories=table)


def pairs_written_out(shared: dict[str, torch.Tensor], item: int, history: list[int]) -> float:
    """Return the terms of eq. 1 that depend on the item; features are (weight, linear weight, vector)."""
    active = [(1.0, float(shared["biases"][item, 0]), shared["items"][item])]
    for place, weight in enumerate(shared["features"][item].tolist()):
        active.append((weight, float(shared["category_biases"][place, 0]), shared["categories"][place]))
    ages = np.arange(len(history))[::-1]
    weights = np.exp(-ages / 2.0)
    recent = [(float(w), shared["recent"][j]) for w, j in zip(weights / weights.sum(), history, strict=True)]
    total = sum(x * w for x, w, _ in active)
    for place, (x, _, v) in enumerate(active):
        total += sum(x * y * float(v @ other) for y, _, other in active[place + 1 :])
        total += sum(x * y * float(v @ other) for y, other in recent)
    return total


def test_score_is_the_sum_over_all_pairs_of_features_that_depend_on_the_item() -> None:
    interactions = make([(0, 3), (0, 1), (0, 4), (0, 2), (0, 7), (0, 5)], 1, 8)
    model = build_model(TABLE, None)
    shared = dict(model.init(catalogue_of(8), Key.from_seed(0)).shared)
    for name in ("biases", "category_biases"):
        shared[name] = torch.randn(shared[name].shape, generator=torch.Generator().manual_seed(1))
    batch = make_batch(interactions, np.array([0]))
    scores = model.score(shared, model.fit_users(shared, batch), batch)[0]
    expected = [pairs_written_out(shared, item, [4, 2, 7, 5]) for item in range(8)]
    np.testing.assert_allclose(scores.numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("categories", [True, False])
def test_user_adds_minus_the_gradient_of_its_mean_cross_entropy(categories: bool) -> None:
    interactions = random_world(6, 9, max_length=5)
    model = build_model({**TABLE, "window": 8}, None)
    shared = model.init(catalogue_of(9, categories), Key.from_seed(0)).shared
    keys = user_keys(interactions.user_ids.ids)
    total, _ = sum_contributions(model, shared, user_batches(interactions, keys=keys), math.inf, Key.from_seed(1))
    leaves = {name: shared[name].clone().requires_grad_() for name in total.totals}
    loss = torch.zeros(())
    for user in range(6):
        own = interactions.items[interactions.indptr[user] : interactions.indptr[user + 1]].tolist()
        for place, item in enumerate(own):
            known = make([(0, met) for met in own[:place]], 1, 9)
            batch, parameters = make_batch(known, np.array([0])), {**shared, **leaves}
            scores = model.score(parameters, model.fit_users(parameters, batch), batch)[0]
            loss = loss - torch.log_softmax(scores, dim=0)[item] / len(own)
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    for (name, _), gradient in zip(leaves.items(), gradients, strict=True):
        torch.testing.assert_close(total.totals[name].float(), -gradient, rtol=1e-4, atol=1e-5)


def test_items_are_told_apart_by_what_was_met_before() -> None:
    split, catalogue = checkerboard()
    table = {"name": "fm", "dim": 8, "recency_decay": 10.0, "server_optimizer": {"learning_rate": 0.1}}
    state = train(build_model(table, None), catalogue, split.train, num_rounds=60)
    cut = Cutoffs(k=2, recall_k=2)
    found = summarise(evaluate_users(build_model(table, None), state.shared, split, "validation", cut), cut, 20)
    assert found["hr@2"] == 1.0
