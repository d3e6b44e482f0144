"""Regression on features against its definition, one position at a time, and what it learns in planted worlds."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fedrec.data.batches import make_batch
from fedrec.data.catalogue import Catalogue
from fedrec.data.interactions import Interactions, Vocabulary
from fedrec.errors import ConfigError
from fedrec.evaluation.counts import Cutoffs, summarise
from fedrec.evaluation.nodes import evaluate_users
from fedrec.federated.cohort import sum_contributions
from fedrec.models.registry import build_model
from fedrec.models.towers.negatives import draw_negatives
from fedrec.randomness import Key, user_keys
from tests.models.towers.worlds import rich_world
from tests.training import train
from tests.worlds import checkerboard, make

KEY = Key.from_seed(0)
NUM_ITEMS = 12
CATEGORIES = np.random.default_rng(0).random((NUM_ITEMS, 3)) < 0.5
SGD = {"name": "sgd", "learning_rate": 0.1, "momentum": 0.0}
TABLE = {
    "name": "logistic",
    "context_fields": ["place", "heat"],
    "window": 40,
    "recency_decay": 2.0,
    "num_negatives": 5,
    "negative_weight": 3.0,
    "crop_probability": 0.0,
}


def catalogue_of(interactions: Interactions) -> Catalogue:
    return Catalogue(interactions.item_ids, categories=CATEGORIES, context_fields=interactions.context_fields)


def drawn_parameters(interactions: Interactions) -> dict[str, Tensor]:
    shared = dict(build_model(TABLE, None).init(catalogue_of(interactions), KEY).shared)
    generator = torch.Generator().manual_seed(1)
    return {
        name: tensor if name == "features" else torch.randn(tensor.shape, generator=generator)
        for name, tensor in shared.items()
    }


def score_of(
    shared: dict[str, Tensor], met: list[int], item: int | Tensor, place: int | None, heat: float | None
) -> Tensor:
    """Return the score of an item after some others, in a context; None where a field is unknown."""
    features, num = shared["features"], len(CATEGORIES[0])
    mean, recent = torch.zeros(num).to(features), torch.zeros(num).to(features)
    if met:
        ages = torch.arange(len(met) - 1, -1, -1, dtype=features.dtype)
        weights = torch.exp(-ages / 2.0)
        mean, recent = features[met].mean(dim=0), (weights / weights.sum()) @ features[met]
    vector = torch.cat([mean, recent, torch.ones(1).to(features)]) @ shared["weights"]
    vector = vector + shared["codes.0"][0 if place is None else 1 + place]
    unknown, slope, level = shared["values.1"]
    vector = vector + (unknown if heat is None else heat * slope + level)
    return features[item] @ vector + shared["biases"][item, 0]


@pytest.mark.parametrize("loss", ["logistic", "squared"])
def test_user_adds_minus_the_gradient_of_its_mean_loss(loss: str) -> None:
    world = rich_world([0, 1, 4, 9])
    model, shared = build_model({**TABLE, "loss": loss}, None), drawn_parameters(world)
    leaves = {name: tensor.double() for name, tensor in shared.items()}
    learned = {name: tensor.requires_grad_() for name, tensor in leaves.items() if name != "features"}
    for user in range(4):
        batch = make_batch(world, np.array([user]), user_keys(world.user_ids.ids))
        total, _ = sum_contributions(model, shared, [batch], math.inf, KEY)
        negatives = draw_negatives(batch, NUM_ITEMS, 5, KEY)
        others = negatives.items[0][negatives.used[0]].tolist()
        own = world.items[world.indptr[user] : world.indptr[user + 1]].tolist()
        objective = torch.zeros((), dtype=torch.float64)
        for position, item in enumerate(own):
            row = int(world.indptr[user]) + position
            place, heat = int(world.context["place"][row]), float(world.context["heat"][row])
            context = (None if place < 0 else place, None if math.isnan(heat) else heat)
            scores = torch.stack([score_of(leaves, own[:position], one, *context) for one in (item, *others)])
            wanted = torch.zeros_like(scores)
            wanted[0] = 1.0
            losses = F.softplus(scores) - wanted * scores if loss == "logistic" else (scores - wanted).square() / 2
            objective = objective + (losses[0] + 3.0 * losses[1:].sum() / max(len(others), 1)) / len(own)
        if not own:
            assert not any(bool(tensor.any()) for tensor in total.totals.values())
            continue
        for (name, _), slope in zip(
            learned.items(), torch.autograd.grad(objective, list(learned.values())), strict=True
        ):
            torch.testing.assert_close(total.totals[name], -slope, rtol=1e-6, atol=1e-7)


def test_list_is_that_of_the_context_it_is_asked_for_in() -> None:
    world = rich_world([6])
    model, shared = build_model(TABLE, None), drawn_parameters(world)
    batch = make_batch(world, np.array([0]))
    for place, heat in [(None, None), (2, 0.7), (0, None)]:
        query = {
            "place": torch.tensor([-1 if place is None else place]),
            "heat": torch.tensor([math.nan if heat is None else heat]),
        }
        asked = replace(batch, query=query)
        scores = model.score(shared, model.fit_users(shared, asked), asked)[0]
        expected = [score_of(shared, world.items.tolist(), item, place, heat) for item in range(NUM_ITEMS)]
        torch.testing.assert_close(scores, torch.stack(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("loss", ["logistic", "squared"])
def test_users_get_more_of_the_categories_they_met(loss: str) -> None:
    split, catalogue = checkerboard()
    model = build_model({"name": "logistic", "loss": loss}, None)
    state = train(model, catalogue, split.train, num_rounds=60)
    cut = Cutoffs(k=2, recall_k=2)
    found = summarise(evaluate_users(model, state.shared, split, "validation", cut), cut, 20)
    assert found["hr@2"] == 1.0


def test_context_that_decides_the_category_is_learned() -> None:
    """At home users meet even items, at work odd ones; nothing else tells them apart."""
    pairs = [(user, item) for user in range(30) for item in np.random.default_rng(user).permutation(20)[:10].tolist()]
    world = make(pairs, 30, 20)
    world = replace(world, context={"place": world.items % 2}, context_ids={"place": Vocabulary(np.array(["a", "b"]))})
    catalogue = replace(checkerboard()[1], context_fields={"place": 2})
    model = build_model({"name": "logistic", "context_fields": ["place"]}, None)
    state = train(model, catalogue, world, num_rounds=60)
    batch = make_batch(world, np.arange(30))
    for place in (0, 1):
        asked = replace(batch, query={"place": torch.full((30,), place)})
        scores = model.score(state.shared, model.fit_users(state.shared, asked), asked)
        assert (scores[:, place::2].amin(dim=1) > scores[:, 1 - place :: 2].amax(dim=1)).all()


def test_ridge_pulls_what_is_learned_towards_zero() -> None:
    split, catalogue = checkerboard()
    norms = []
    for regularization in (0.0, 5.0):
        table = {"name": "logistic", "loss": "squared", "regularization": regularization, "server_optimizer": SGD}
        shared = train(build_model(table, None), catalogue, split.train, num_rounds=40).shared
        norms.append(float(shared["weights"].norm()))
    assert norms[1] < 0.5 * norms[0]


def test_data_without_categories_or_without_the_context_field_is_refused() -> None:
    items = Vocabulary(np.arange(3))
    with pytest.raises(ConfigError, match="needs item categories"):
        build_model({"name": "logistic"}, None).init(Catalogue(items), KEY)
    catalogue = Catalogue(items, categories=np.ones((3, 1), dtype=bool), context_fields={"hour": 24})
    with pytest.raises(ConfigError, match="'place', which the data does not; allowed are hour"):
        build_model(TABLE, None).init(catalogue, KEY)
