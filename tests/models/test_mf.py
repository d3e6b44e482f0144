"""The gradient model: federated averaging where nothing is clipped, bounded where it is, the same when retried."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from fedrec.data.batches import make_batch, user_batches
from fedrec.data.catalogue import Catalogue
from fedrec.data.interactions import Interactions
from fedrec.evaluation.counts import Cutoffs, summarise
from fedrec.evaluation.nodes import evaluate_users
from fedrec.federated.cohort import CohortDiagnostics, sum_contributions
from fedrec.models.local_sgd import LocalSgd, draw_examples
from fedrec.models.protocol import FederatedModel
from fedrec.models.registry import build_model
from fedrec.privacy.clipping import BoundedSum
from fedrec.privacy.mechanism import publish_exact
from fedrec.randomness import Key, user_keys
from tests.models.test_als import user_vectors
from tests.models.test_local_sgd import by_hand, drawn
from tests.training import train
from tests.worlds import checkerboard, make, random_world

pytestmark = pytest.mark.usefixtures("form")

AVERAGING = {"name": "sgd", "learning_rate": 1.0, "momentum": 0.0}
TABLE = {"name": "mf", "dim": 5, "unobserved_weight": 0.3, "regularization": 0.02, "server_optimizer": AVERAGING}
KEY = Key.from_seed(0)


def model_of(clipping_norm: float | None = None, **settings: Any) -> FederatedModel:
    return build_model({**TABLE, **settings}, clipping_norm)


def one_round(
    model: FederatedModel,
    items: torch.Tensor,
    interactions: Interactions,
    clipping_norm: float = math.inf,
    rows: np.ndarray | None = None,
    number: int = 1,
) -> tuple[BoundedSum, CohortDiagnostics]:
    """Sum the contributions of a round."""
    batches = user_batches(interactions, rows, keys=user_keys(interactions.user_ids.ids))
    return sum_contributions(model, {"items": items}, batches, clipping_norm, KEY.fold("round", number))


def first_items(model: FederatedModel, num_items: int) -> torch.Tensor:
    return model.init(Catalogue(random_world(1, num_items).item_ids), KEY).shared["items"]


@pytest.mark.parametrize("loss", ["squared", "logistic"])
@pytest.mark.parametrize("clipping_norm", [None, 0.1], ids=["exact", "clipped"])
def test_checkerboard_is_learnt(loss: str, clipping_norm: float | None) -> None:
    split, catalogue = checkerboard()
    settings = {"dim": 8, "server_optimizer": {"name": "adam", "learning_rate": 0.2}, "local_learning_rate": 0.05}
    model = model_of(clipping_norm, **settings, loss=loss, negative_weight=1.0)
    state = train(model, catalogue, split.train, 10, math.inf if clipping_norm is None else clipping_norm)
    cut = Cutoffs(k=2, recall_k=2)
    found = summarise(evaluate_users(model, state.shared, split, "validation", cut), cut, 20)
    assert found["hr@2"] > 0.8, "by chance it would be 1/6: 2 of the 12 items not met"


@pytest.mark.parametrize("settings", [{}, {"local_epochs": 2, "local_batch_size": 4}, {"start": "zero"}], ids=str)
@pytest.mark.parametrize("loss", ["squared", "logistic"])
def test_without_clipping_and_noise_it_is_federated_averaging(settings: dict[str, Any], loss: str) -> None:
    """Every user trains a copy of the items from its own solution; the next items are the mean of the copies."""
    interactions = random_world(14, 15)
    model = model_of(**settings, loss=loss, num_negatives=3, local_learning_rate=0.05, negative_weight=0.7)
    epochs, batch_size = settings.get("local_epochs", 1), settings.get("local_batch_size", 256)
    sgd = LocalSgd(batch_size, 0.05, 0.7, loss == "logistic")
    items = model.init(Catalogue(interactions.item_ids), KEY.fold("init")).shared["items"].double().numpy()
    batch = make_batch(interactions, np.arange(14), user_keys(interactions.user_ids.ids))
    for number in (1, 2, 3):
        examples = draw_examples(batch, 15, 3, epochs, KEY.fold("round", number))
        starts = user_vectors(interactions, items) if settings.get("start") != "zero" else np.zeros((14, 5))
        copies = [items + by_hand(items, starts[u], drawn(examples, u), sgd)[1] for u in range(14)]
        items = np.mean(copies, axis=0)
    found = train(model, Catalogue(interactions.item_ids), interactions, 3).shared["items"]
    np.testing.assert_allclose(found.numpy(), items, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("loss", ["squared", "logistic"])
def test_one_local_step_of_everybody_is_a_step_of_centralised_training(loss: str) -> None:
    interactions = random_world(14, 15)
    model = model_of(loss=loss, local_learning_rate=0.05, num_negatives=2, local_batch_size=10**6, negative_weight=0.6)
    server = model.init(Catalogue(interactions.item_ids), KEY)
    items = server.shared["items"].double().requires_grad_()
    vectors = torch.from_numpy(user_vectors(interactions, items.detach().numpy()))
    batch = make_batch(interactions, np.arange(14), user_keys(interactions.user_ids.ids))
    examples = draw_examples(batch, 15, 2, 1, KEY.fold("round", 1))
    objective = torch.zeros((), dtype=torch.float64)
    for user in range(14):
        if groups := drawn(examples, user):
            scores = items[torch.tensor(groups)] @ vectors[user]
            targets = torch.zeros_like(scores).index_fill(1, torch.tensor([0]), 1.0)
            cross_entropy = torch.nn.functional.binary_cross_entropy_with_logits
            logistic = cross_entropy(scores, targets, reduction="none")
            losses = logistic if loss == "logistic" else (scores - targets).square() / 2
            objective = objective + (torch.where(targets == 1, 1.0, 0.6) * losses).sum()
    (slope,) = torch.autograd.grad(objective / 14, items)
    total, _ = one_round(model, server.shared["items"], interactions)
    after = model.update(server, publish_exact(total, 14.0)).shared["items"]
    torch.testing.assert_close(after.double(), items.detach() - 0.05 * slope, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("clipping_norm", [1e-3, 0.1, 1e6])
def test_what_a_user_adds_is_within_the_clipping_norm_and_on_it_where_clipped(clipping_norm: float) -> None:
    repeats = make([(user, item % 4) for user in range(6) for item in range(5 * user)], 6, 40)
    for interactions in (random_world(12, 40), repeats):
        model = model_of(clipping_norm, local_epochs=2, local_learning_rate=0.1)
        items = first_items(model, 40)
        for user in range(interactions.num_users):
            row = np.array([user])
            free = one_round(model, items, interactions, math.inf, row)[0].totals["items"].norm().item()
            bound, diagnostics = one_round(model, items, interactions, clipping_norm, row)
            found = bound.totals["items"].norm().item()
            assert found <= clipping_norm
            assert found == pytest.approx(min(free, clipping_norm), rel=1e-5, abs=1e-7 * clipping_norm)
            assert diagnostics.num_clipped == (free > clipping_norm)
            assert (found == 0) == (interactions.lengths[user] == 0)


def test_leaving_any_user_out_moves_the_sum_by_that_users_clipped_contribution() -> None:
    interactions, clipping_norm = random_world(12, 40), 0.05
    model = model_of(clipping_norm)
    items = first_items(model, 40)
    whole = one_round(model, items, interactions, clipping_norm)[0].totals["items"]
    for user in range(12):
        rest = one_round(model, items, interactions, clipping_norm, np.delete(np.arange(12), user))[0].totals["items"]
        alone = one_round(model, items, interactions, clipping_norm, np.array([user]))[0].totals["items"]
        assert (whole - rest).norm() <= clipping_norm * (1 + 1e-12)
        torch.testing.assert_close(whole - rest, alone, rtol=1e-9, atol=1e-11 * clipping_norm)


def test_a_retried_round_is_the_same_round_bit_for_bit() -> None:
    interactions = random_world(12, 40)
    model, again = model_of(0.05), model_of(0.05)
    items = first_items(model, 40)
    first, _ = one_round(model, items, interactions, 0.05)
    other, _ = one_round(model, items + 0.1, interactions, 0.05, number=2)
    retried, _ = one_round(model, items, interactions, 0.05)
    elsewhere, _ = one_round(again, items.clone(), interactions, 0.05)
    assert torch.equal(retried.totals["items"], first.totals["items"])
    assert torch.equal(elsewhere.totals["items"], first.totals["items"])
    assert not torch.equal(other.totals["items"], first.totals["items"])


@pytest.mark.parametrize("clipping_norm", [1.0, math.inf])
def test_user_whose_training_overflows_adds_exactly_nothing(clipping_norm: float) -> None:
    interactions = random_world(12, 40)
    model = model_of(local_learning_rate=1e20, local_epochs=3, local_batch_size=1)
    items = first_items(model, 40)
    total, diagnostics = one_round(model, items, interactions, clipping_norm)
    assert diagnostics.num_zeroed == int((interactions.lengths > 0).sum()) > 0
    assert not total.totals["items"].any()


def test_training_starts_where_the_settings_say_and_ranking_always_solves() -> None:
    interactions = random_world(12, 15)
    batch = make_batch(interactions, np.arange(12))
    zero, solve = model_of(start="zero"), model_of()
    shared = {"items": first_items(solve, 15)}
    assert not zero.fit_users(shared, batch, ranking=False)["vectors"].any()
    solved = solve.fit_users(shared, batch, ranking=False)["vectors"]
    expected = user_vectors(interactions, shared["items"].double().numpy())
    np.testing.assert_allclose(solved.numpy(), expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(zero.fit_users(shared, batch)["vectors"].to(solved), solved, rtol=1e-3, atol=1e-5)
