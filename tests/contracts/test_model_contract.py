"""What every federated model promises, with and without clipping, compiled and in plain torch."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from fedrec.data.batches import UserBatch, make_batch, user_batches
from fedrec.data.catalogue import Catalogue
from fedrec.data.interactions import Interactions
from fedrec.evaluation.counts import Cutoffs, summarise
from fedrec.evaluation.nodes import evaluate_users
from fedrec.federated.cohort import sum_contributions
from fedrec.models.protocol import FederatedModel
from fedrec.models.registry import build_model
from fedrec.privacy.clipping import BoundedSum
from fedrec.privacy.mechanism import release
from fedrec.privacy.plan import PrivacyEvent, PrivacyPlan
from fedrec.randomness import Key, user_keys
from tests.training import train
from tests.worlds import checkerboard, make, random_world

pytestmark = pytest.mark.usefixtures("form")

ALS = {"name": "als", "dim": 8}
MF = {"name": "mf", "dim": 8, "local_learning_rate": 0.02, "num_negatives": 2, "negative_weight": 1.0}
SOME = {"num_blocks": 1, "window": 5, "dropout": 0.25, "crop_probability": 0.5}
TWO_TOWER = {"name": "two_tower", "dim": 8, "history": SOME, "server_optimizer": {"learning_rate": 0.05}}
GRU, LSTM, DECAYED = ({**TWO_TOWER, "history": {**SOME, "name": name}} for name in ("gru", "lstm", "decayed"))
SAMPLED, GBCE, BCE, BPR = ({"name": name, "num_negatives": 4} for name in ("sampled_softmax", "gbce", "bce", "bpr"))
RATINGS = {"name": "squared", "offset": 3.0}
EXACT = {
    "als": (ALS, None),
    "als-recency": ({**ALS, "recency_weight": 20.0}, None),
    "item_knn": ({"name": "item_knn", "num_neighbors": 5, "shrinkage": 0.0}, None),
    "content": ({"name": "content"}, None),
    "ease": ({"name": "ease", "regularization": 1.0}, None),
    "ease-recency": ({"name": "ease", "regularization": 1.0, "recency_weight": 20.0}, None),
    "slit": ({"name": "slit", "regularization": 1.0}, None),
    "fm": ({"name": "fm", "dim": 8, "window": 5, "server_optimizer": {"learning_rate": 0.05}}, None),
    "logistic": ({"name": "logistic", "num_negatives": 4}, None),
    "ridge": ({"name": "logistic", "loss": "squared", "num_negatives": 4, "regularization": 0.01}, None),
    "popularity": ({"name": "popularity"}, None),
    "mf": (MF, None),
    "fcf": ({"name": "fcf", "dim": 8}, None),
    "fedmf": ({"name": "fedmf", "dim": 8, "local_epochs": 2}, None),
    "fedncf": ({"name": "fedncf", "dim": 8, "local_batch_size": 8}, None),
    "fedrecon": ({"name": "fedrecon", "dim": 8}, None),
    "pfedrec": ({"name": "pfedrec", "dim": 8, "item_rate": 25.0, "local_batch_size": 8}, None),
    "two_tower-attention": ({**TWO_TOWER, "history": {**SOME, "time_gaps": True}}, None),
    "two_tower-gru": ({**GRU, "fusion": "additive", "loss": BCE}, None),
    "two_tower-lstm": ({**LSTM, "fusion": "mlp", "loss": GBCE}, None),
    "two_tower-decayed": ({**DECAYED, "loss": BPR}, None),
    "two_tower-ratings": ({**GRU, "fusion": "mlp", "loss": RATINGS}, None),
    "two_tower-none": ({**TWO_TOWER, "history": {"name": "none"}, "loss": SAMPLED}, None),
    "hybrid-two_tower": (
        {
            "name": "hybrid",
            "als": {"dim": 4},
            "two_tower": {key: value for key, value in TWO_TOWER.items() if key != "name"},
            "als_rounds": 1,
        },
        None,
    ),
    "hybrid-slit-two_tower": (
        {
            "name": "hybrid",
            "als": {"dim": 4},
            "two_tower": {key: value for key, value in TWO_TOWER.items() if key != "name"},
            "slit": {},
            "als_rounds": 1,
            "tower_rounds": 1,
        },
        None,
    ),
    "two_tower-steps": ({**TWO_TOWER, "loss": SAMPLED, "local_steps": 3}, None),
}
BOUNDED = {
    "bounded-als": ({**ALS, "history_scale": 3.0}, 1.0),
    "bounded-als-small-norm": ({**ALS, "history_scale": 3.0}, 0.01),
    "bounded-popularity": ({"name": "popularity"}, 1.0),
    "bounded-logistic": ({"name": "logistic", "num_negatives": 4}, 1.0),
    "bounded-ridge": ({"name": "logistic", "loss": "squared", "num_negatives": 4}, 0.01),
    "bounded-mf": (MF, 1.0),
    "bounded-mf-small-norm": ({**MF, "loss": "logistic", "local_epochs": 2}, 0.01),
    "bounded-mf-adaptive": ({**MF, "adaptive_clipping": {"initial_norm": 0.1}}, 1.0),
    "bounded-two_tower-adaptive": ({**DECAYED, "loss": SAMPLED, "adaptive_clipping": {"initial_norm": 0.1}}, 0.5),
    "bounded-two_tower-attention": ({**TWO_TOWER, "history": {**SOME, "time_gaps": True}, "loss": SAMPLED}, 1.0),
    "bounded-two_tower-gru": ({**GRU, "fusion": "additive", "loss": GBCE, "local_steps": 3}, 0.01),
    "bounded-two_tower-lstm": ({**LSTM, "fusion": "mlp", "loss": BPR}, 1.0),
    "bounded-two_tower-decayed": ({**DECAYED, "loss": BCE}, 0.01),
    "bounded-two_tower-ratings": ({**DECAYED, "loss": RATINGS}, 0.01),
    "bounded-two_tower-none": ({**TWO_TOWER, "history": {"name": "none"}, "loss": SAMPLED}, 1.0),
}
ALL = EXACT | BOUNDED
PERSONALISED = [name for name in ALL if "popularity" not in name]
GRADIENT = [name for name in ALL if any(part in name for part in ("mf", "two_tower", "fm", "logistic", "ridge"))]
PEERS = ["fcf", "fedmf", "fedncf", "fedrecon", "pfedrec"]  # whether they learn: tests/models/peers
CLOSED_FORM = [name for name in PERSONALISED if name not in [*GRADIENT, *PEERS]]
NORMALISED = [name for name in BOUNDED if name not in GRADIENT]  # made to have the clipping norm before it is enforced


def model_of(name: str) -> tuple[FederatedModel, float]:
    table, clipping_norm = ALL[name]
    return build_model(table, clipping_norm), math.inf if clipping_norm is None else clipping_norm


def catalogue_of(num_items: int) -> Catalogue:
    return checkerboard(num_items=num_items)[1]


def batches_of(interactions: Interactions, max_elements: int = 2**17) -> Iterator[UserBatch]:
    return user_batches(interactions, max_elements=max_elements, keys=user_keys(interactions.user_ids.ids))


@pytest.mark.parametrize("name", CLOSED_FORM)
def test_planted_checkerboard_is_solved_perfectly(name: str) -> None:
    model, clipping_norm = model_of(name)
    split, catalogue = checkerboard()
    state = train(model, catalogue, split.train, num_rounds=6, clipping_norm=clipping_norm)
    cut = Cutoffs(k=2, recall_k=2)
    validation = summarise(evaluate_users(model, state.shared, split, "validation", cut), cut, 20)
    test = summarise(evaluate_users(model, state.shared, split, "test", Cutoffs(1, 1)), Cutoffs(1, 1), 20)
    assert validation["hr@2"] == 1.0, "the two held-out items of the user's colour come before all of the other colour"
    assert test["hr@1"] == 1.0 and test["ndcg@1"] == 1.0


@pytest.mark.parametrize("name", ["popularity", "bounded-popularity"])
def test_popularity_ranks_items_by_how_many_users_met_them(name: str) -> None:
    model, clipping_norm = model_of(name)
    pairs = [(user, item) for item in range(5) for user in range(10 - 2 * item)]
    interactions = make(pairs, 10, 6)
    state = train(model, Catalogue(interactions.item_ids), interactions, 1, clipping_norm)
    batch = make_batch(interactions, np.array([0]))
    scores = model.score(state.shared, {}, batch)[0]
    assert torch.argsort(scores, descending=True, stable=True).tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("name", ALL)
def test_sum_has_the_announced_names_shapes_and_dtypes(name: str) -> None:
    model, clipping_norm = model_of(name)
    interactions = random_world(15, 20)
    shared = model.init(catalogue_of(20), Key.from_seed(1)).shared
    announced = model.totals(shared)
    total, diagnostics = sum_contributions(model, shared, batches_of(interactions), clipping_norm, Key.from_seed(1))
    assert diagnostics.cohort_size == 15 and diagnostics.num_zeroed == 0
    for block, tensor in total.totals.items():
        assert (tensor.shape, tensor.dtype) == (announced[block].shape, announced[block].dtype)
        assert torch.isfinite(tensor).all()
    assert all(not bool(tensor.any()) for tensor in announced.values()), "totals() gives zeros"


@pytest.mark.parametrize("name", ALL)
def test_how_users_are_batched_does_not_change_the_sum(name: str) -> None:
    model, clipping_norm = model_of(name)
    interactions = random_world(30, 20)
    shared = model.init(catalogue_of(20), Key.from_seed(1)).shared
    key = Key.from_seed(1)
    one, _ = sum_contributions(model, shared, batches_of(interactions), clipping_norm, key)
    many, _ = sum_contributions(model, shared, batches_of(interactions, max_elements=7), clipping_norm, key)
    for block, tensor in one.totals.items():
        torch.testing.assert_close(many.totals[block], tensor, rtol=1e-4, atol=1e-5 * min(clipping_norm, 1.0))


@pytest.mark.parametrize("name", ALL)
def test_empty_cohort_gives_zeros(name: str) -> None:
    model, clipping_norm = model_of(name)
    shared = model.init(catalogue_of(20), Key.from_seed(1)).shared
    total, diagnostics = sum_contributions(model, shared, [], clipping_norm, Key.from_seed(1))
    assert diagnostics.cohort_size == 0
    assert not any(bool(tensor.any()) for tensor in total.totals.values())


@pytest.mark.parametrize("name", ALL)
def test_user_without_interactions_adds_nothing_to_item_blocks_and_gets_finite_scores(name: str) -> None:
    model, clipping_norm = model_of(name)
    nobody = make([], 1, 20)
    shared = model.init(catalogue_of(20), Key.from_seed(1)).shared
    total, _ = sum_contributions(model, shared, batches_of(nobody), clipping_norm, Key.from_seed(1))
    assert not any(bool(tensor.any()) for block, tensor in total.totals.items() if not block.endswith("users"))
    batch = make_batch(nobody, np.array([0]))
    assert torch.isfinite(model.score(shared, model.fit_users(shared, batch), batch)).all()


@pytest.mark.parametrize("name", ALL)
def test_scores_of_a_user_do_not_depend_on_who_is_in_the_batch(name: str) -> None:
    model, clipping_norm = model_of(name)
    interactions = random_world(20, 20)
    state = train(model, catalogue_of(20), interactions, 2, clipping_norm)
    together = make_batch(interactions, np.arange(20))
    scores = model.score(state.shared, model.fit_users(state.shared, together), together)
    for row in (0, 7, 19):
        alone = make_batch(interactions, np.array([row]))
        own = model.score(state.shared, model.fit_users(state.shared, alone), alone)
        torch.testing.assert_close(own[0], scores[row], rtol=1e-4, atol=1e-5)


REPEATS = make([(user, item % 3) for user in range(4) for item in range(5 * user)], 4, 20)


@pytest.mark.parametrize("name", BOUNDED)
def test_what_a_user_adds_is_within_the_clipping_norm_and_nothing_without_interactions(name: str) -> None:
    model, clipping_norm = model_of(name)
    shared = model.init(catalogue_of(20), Key.from_seed(1)).shared
    for interactions in (random_world(12, 20), REPEATS):
        keys = user_keys(interactions.user_ids.ids)
        for user in range(interactions.num_users):
            alone = [make_batch(interactions, np.array([user]), keys)]
            total, diagnostics = sum_contributions(model, shared, alone, clipping_norm, Key.from_seed(1))
            norm = math.sqrt(sum(float(block.square().sum()) for block in total.totals.values()))
            assert norm <= clipping_norm * (1 + 1e-12) and diagnostics.num_zeroed == 0
            assert (norm > 0) == bool(interactions.lengths[user] > 0)


@pytest.mark.parametrize("name", NORMALISED)
def test_contribution_norm_is_the_clipping_norm_or_zero(name: str) -> None:
    model, clipping_norm = model_of(name)
    shared = model.init(catalogue_of(20), Key.from_seed(1)).shared
    for batch in [*batches_of(random_world(30, 20)), *batches_of(REPEATS)]:
        state = model.fit_users(shared, batch, ranking=False)
        blocks = model.contribute(shared, state, batch, Key.from_seed(1))
        norms = torch.stack([block.squared_norms() for block in blocks.values()]).sum(dim=0).sqrt()
        expected = (batch.lengths > 0).to(torch.float64) * clipping_norm
        torch.testing.assert_close(norms, expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("name", BOUNDED)
def test_every_block_of_a_release_carries_the_noise_of_the_plan(name: str) -> None:
    model, clipping_norm = model_of(name)
    num_items, plan = 400, PrivacyPlan((PrivacyEvent(1.5, 1.0, 3),), 1e-5, clipping_norm, population_size=50)
    categories = np.ones((num_items, 10), dtype=bool)
    shared = model.init(Catalogue(make([], 1, num_items).item_ids, categories=categories), Key.from_seed(1)).shared
    nothing = BoundedSum(model.totals(shared), clipping_norm)
    for block, values in release(nothing, plan, 2, Key.from_seed(1)).blocks.items():
        std = 1.5 * clipping_norm / 50
        ratio = float(values.square().sum()) / std**2
        size = values.numel()
        assert abs(ratio - size) < 6 * math.sqrt(2 * size), f"{block}: chi-squared within six standard deviations"
