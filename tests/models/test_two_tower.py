"""The two towers: a round is a step on the summed loss, draws follow from users alone, and lists follow histories."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fedrec.config import build
from fedrec.data.batches import UserBatch, make_batch, user_batches
from fedrec.data.interactions import Interactions
from fedrec.errors import ConfigError, DataError, PrivacyError
from fedrec.federated.cohort import sum_contributions
from fedrec.models import two_tower
from fedrec.models.registry import build_model
from fedrec.models.summed import Summed
from fedrec.models.two_tower import TwoTower
from fedrec.privacy.mechanism import publish_exact
from fedrec.randomness import user_keys
from tests.models.towers.worlds import batch_of, catalogue_of, rich_world
from tests.models.two_towers import (
    HISTORIES,
    KEY,
    LOSSES,
    bounded,
    drawn,
    exact,
    far_apart,
    plain_gradient,
    plain_loss,
    written_out,
)
from tests.training import train
from tests.worlds import make

LENGTHS = [0, 1, 3, 6, 7, 12, 2, 5, 9]
WORLD = rich_world(LENGTHS)
BATCH = batch_of(WORLD)


def shared_of(model: TwoTower, world: Interactions = WORLD) -> dict[str, Tensor]:
    return drawn(dict(model.init(catalogue_of(world), KEY).shared))


def summed(
    model: TwoTower, shared: dict[str, Tensor], max_elements: int = 2**17, rows: Any = None
) -> dict[str, Tensor]:
    batches = user_batches(WORLD, rows, max_elements, keys=user_keys(WORLD.user_ids.ids))
    return sum_contributions(model, shared, batches, np.inf, KEY)[0].totals


@pytest.mark.parametrize("history", HISTORIES)
def test_softmax_over_all_items_is_what_is_written_out(history: str) -> None:
    model = exact(history, loss="softmax")
    shared = shared_of(model)
    examples = model._examples(BATCH, WORLD.num_items, KEY)
    total = {name: torch.zeros(tensor.shape, dtype=torch.float64) for name, tensor in shared.items()}
    for user in range(len(LENGTHS)):
        slopes = plain_gradient(model, {name: tensor.double() for name, tensor in shared.items()}, examples, user)
        total = {name: total[name] - slopes[name] for name in total}
    assert far_apart(summed(model, shared), total) < 1e-5


@pytest.mark.parametrize("loss", ["softmax", *LOSSES])
@pytest.mark.parametrize("fusion", ["dot", "mlp"])
def test_one_round_of_everybody_is_one_step_of_centralised_training(loss: str, fusion: str) -> None:
    """Federated SGD: the server's parameters move down the slope of the mean of all users' losses."""
    if loss == "softmax" and fusion != "dot":
        return
    sgd = {"name": "sgd", "learning_rate": 0.7, "momentum": 0.0, "warmup_rounds": 0}
    model = exact("attention", fusion, loss, server_optimizer=sgd)
    server = replace(model.init(catalogue_of(WORLD), KEY), shared=shared_of(model))
    leaves = {name: tensor.double().requires_grad_() for name, tensor in server.shared.items()}
    examples = model._examples(BATCH, WORLD.num_items, KEY)
    losses = [plain_loss(model, leaves, examples, user) for user in range(len(LENGTHS))]
    objective = torch.stack([one.double() for one in losses]).sum() / len(LENGTHS)
    slopes = torch.autograd.grad(objective, list(leaves.values()), allow_unused=True)
    batches = user_batches(WORLD, keys=user_keys(WORLD.user_ids.ids))
    total, _ = sum_contributions(model, server.shared, batches, np.inf, KEY)
    after = model.update(server, publish_exact(total, float(len(LENGTHS)))).shared
    for (name, leaf), slope in zip(leaves.items(), slopes, strict=True):
        wanted = leaf if slope is None else leaf - 0.7 * slope
        torch.testing.assert_close(after[name].double(), wanted.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("loss", ["softmax", "sampled_softmax"])
@pytest.mark.parametrize("history", HISTORIES)
def test_sums_do_not_depend_on_batches_nodes_or_padding(history: str, loss: str) -> None:
    """Dropout, crops and negatives are on; what is left is rounding."""
    model = exact(history, loss=loss)
    shared = shared_of(model)
    whole = summed(model, shared)
    for max_elements in (1, 20):
        assert far_apart(summed(model, shared, max_elements), whole) < 1e-5
    for num_nodes in (2, 7):
        parts = [summed(model, shared, rows=np.arange(len(LENGTHS))[node::num_nodes]) for node in range(num_nodes)]
        assert far_apart({name: sum(part[name] for part in parts) for name in whole}, whole) < 1e-5  # type: ignore[misc]
    other = sum_contributions(
        model, shared, user_batches(WORLD, keys=user_keys(WORLD.user_ids.ids)), np.inf, KEY.fold(2)
    )[0].totals
    assert far_apart(other, whole) > 1e-2 or (history == "none" and loss == "softmax")


@pytest.mark.parametrize("history", HISTORIES)
def test_everybody_is_ranked_as_if_alone_and_who_has_no_history_too(history: str) -> None:
    model = exact(history)
    shared = shared_of(model)
    query = {"place": torch.arange(len(LENGTHS)) % 3, "heat": torch.linspace(-1, 1, len(LENGTHS))}
    batch = replace(BATCH, query=query, keys=None)
    scores = model.score(shared, model.fit_users(shared, batch), batch)
    assert scores.shape == (len(LENGTHS), WORLD.num_items) and scores.dtype == torch.float32
    assert torch.isfinite(scores).all()
    for user in range(len(LENGTHS)):
        alone = replace(batch_of(WORLD, [user]), query={name: column[[user]] for name, column in query.items()})
        own = model.score(shared, model.fit_users(shared, alone), alone)
        torch.testing.assert_close(own[0], scores[user], rtol=1e-4, atol=1e-5)
    nobody = batch_of(WORLD, [])
    assert model.score(shared, model.fit_users(shared, nobody), nobody).shape == (0, WORLD.num_items)
    assert model.fit_users(shared, batch, ranking=False) == {}


@pytest.mark.parametrize("fusion", ["dot", "additive", "mlp"])
def test_scores_are_those_that_training_gives_the_next_position(fusion: str) -> None:
    """What a list is ranked by is what the loss of the next interaction reads, dropout aside."""
    model = exact(fusion=fusion, history="attention")
    quiet = TwoTower(
        model.config.model_copy(
            update={"history": model.config.history.model_copy(update={"dropout": 0.0, "crop_probability": 0.0})}
        )
    )
    shared = shared_of(quiet)
    rows = [user for user, length in enumerate(LENGTHS) if 1 < length <= 6]
    keep = np.ones(len(WORLD), dtype=bool)
    keep[WORLD.indptr[1:][WORLD.lengths > 0] - 1] = False
    whole, known = batch_of(WORLD, rows), batch_of(WORLD.take(keep), rows)
    last = whole.lengths[:, None] - 1
    known = replace(known, query={name: column.gather(1, last)[:, 0] for name, column in whole.context.items()})
    scores = quiet.score(shared, quiet.fit_users(shared, known), known)
    windows = quiet._examples(whole, WORLD.num_items, KEY).windows
    queries = quiet._queries(shared, windows, two_tower.Dropout(None, 0.0))[
        torch.arange(len(rows)), windows.lengths - 1
    ]
    for place in range(len(rows)):
        for item in range(WORLD.num_items):
            pair = torch.func.functional_call(
                quiet._towers(shared), shared, ("scores", queries[place], shared["items"][item])
            )
            torch.testing.assert_close(scores[place, item], pair + shared["biases"][item, 0], rtol=1e-4, atol=1e-5)


def test_only_those_whose_gradient_is_not_finite_are_left_out() -> None:
    model = exact(loss="sampled_softmax")
    shared = shared_of(model)
    clean = shared["items"].clone()
    for item in (0, 5):
        spoilt = {**shared, "items": clean.index_fill(0, torch.tensor([item]), torch.inf)}
        blocks = model.contribute(spoilt, {}, BATCH, KEY)
        counted = blocks["items"].finite()
        apart = bounded().contribute(spoilt, {}, BATCH, KEY)
        finite = torch.stack([block.finite() for block in apart.values()]).all(dim=0)
        assert torch.equal(counted, finite) and not counted.all() and counted.any()
        totals = model.totals(spoilt)
        for name, block in blocks.items():
            block.add_to(totals[name], counted.double())
        wanted = {name: torch.zeros(tensor.shape, dtype=torch.float64) for name, tensor in shared.items()}
        for user in counted.nonzero()[:, 0].tolist():
            wanted = {name: wanted[name] + part for name, part in written_out(apart, shared, user).items()}
        assert far_apart(totals, wanted) < 1e-5


def test_parameters_that_are_all_spoilt_leave_nobody() -> None:
    model = exact(loss="softmax")
    shared = {name: tensor * torch.nan for name, tensor in shared_of(model).items()}
    batches = user_batches(WORLD, keys=user_keys(WORLD.user_ids.ids))
    total, diagnostics = sum_contributions(model, shared, batches, np.inf, KEY)
    assert diagnostics.num_zeroed >= len(LENGTHS) - 1
    assert not any(tensor.any() for tensor in total.totals.values())


def test_a_sum_over_users_cannot_be_clipped() -> None:
    block = Summed(torch.ones(3), torch.tensor([True, False]))
    with pytest.raises(PrivacyError, match="use the bounded form"):
        block.squared_norms()
    with pytest.raises(PrivacyError, match="can't be scaled one by one"):
        block.add_to(torch.zeros(3), torch.tensor([0.5, 0.0]))
    with pytest.raises(PrivacyError, match="no bounded form"):
        sum_contributions(exact(), shared_of(exact()), [], 1.0, KEY)
    total = torch.zeros(3)
    block.add_to(total, torch.tensor([1.0, 0.0], dtype=torch.float64))
    assert total.tolist() == [1, 1, 1]


def test_validation_and_test_items_are_no_part_of_what_is_trained_on() -> None:
    """Whatever is in the examples of a user is in its own history, but for negatives, which are not."""
    model = exact()
    examples = model._examples(BATCH, WORLD.num_items, KEY)
    for user, length in enumerate(LENGTHS):
        own = set(WORLD.items[WORLD.users == user].tolist())
        windows, negatives = examples.windows, examples.negatives
        if length:
            assert set(windows.items[user].tolist()) | set(windows.targets[user].tolist()) <= own
        assert not set(negatives.items[user][negatives.used[user]].tolist()) & own


def test_the_next_item_follows_the_last_ones() -> None:
    """Users walk along a ring of items, by one or by two: where they go next is in their last two items alone."""
    num_items, num_users, length = 30, 200, 12
    draws = np.random.default_rng(0)
    starts, steps = draws.integers(0, num_items, num_users), draws.integers(1, 3, num_users)
    walks = (starts[:, None] + steps[:, None] * np.arange(length)) % num_items
    world = make([(user, int(item)) for user, walk in enumerate(walks) for item in walk[:-1]], num_users, num_items)
    recall = {}
    for history, extra in (("attention", {"num_blocks": 1}), ("gru", {"num_blocks": 1}), ("decayed", {"num_heads": 4})):
        table = {
            "name": "two_tower",
            "dim": 16,
            "history": {"name": history, "window": 6, "dropout": 0.0, "crop_probability": 1.0, **extra},
            "server_optimizer": {"learning_rate": 0.02, "warmup_rounds": 0},
        }
        model = build_model(table, None)
        shared = train(model, catalogue_of(world), world, 80).shared
        batch = make_batch(world, np.arange(num_users))
        best = model.score(shared, model.fit_users(shared, batch), batch).argmax(dim=1).numpy()
        recall[history] = float((best == walks[:, -1]).mean())
    assert min(recall.values()) >= 0.9, recall


@pytest.mark.parametrize("fusion", ["dot", "additive", "mlp"])
def test_batches_are_smaller_where_scoring_takes_more_memory(fusion: str) -> None:
    def cells(**settings: Any) -> int:
        table = {"name": "two_tower", "fusion": fusion, "loss": {"name": "bce", **settings}}
        return build_model(table, None).batch_cells

    numbers = 64 if fusion != "dot" else 1
    assert cells(num_negatives=1) <= 2**18
    for num in (1, 256, 4096, 65536):
        assert 1 <= cells(num_negatives=num) <= max(1, 2**25 // (num * numbers))


def two_tower_table(**settings: Any) -> dict[str, Any]:
    return {"data": {"name": "synthetic"}, "model": {"name": "two_tower", **settings}}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"dim": 6, "history": {"num_heads": 4}},
            "model.dim=6 is no multiple of model.history.num_heads=4; change one",
        ),
        ({"fusion": "mlp"}, "model.fusion='mlp' with the softmax over all items.*use a sampled loss"),
        ({"local_steps": 2}, "model.local_steps=2 with the softmax over all items.*use a sampled loss"),
        ({"history": {"name": "decayed", "time_gaps": True}}, "time_gaps is for attention, gru and lstm, not"),
        ({"context_fields": ["day", "day"]}, "model.context_fields names 'day' twice; name it once"),
        ({"history": {"windw": 3}}, "unknown key model.history.windw; did you mean 'window'"),
        ({"loss": {"name": "hinge"}}, "model.loss.name='hinge' is not allowed"),
    ],
)
def test_settings_that_do_not_fit_are_refused_in_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as found:
        build(two_tower_table(**settings), "test")
    assert "\n" not in str(found.value)


def test_a_softmax_over_all_items_is_refused_under_a_plan() -> None:
    plan = {"target_epsilon": 8.0, "population_size": 100}
    with pytest.raises(ConfigError, match=r"moves every item for every user.*use 'sampled_softmax'"):
        build({**two_tower_table(loss={"name": "softmax"}), "privacy": plan}, "test")
    assert build({**two_tower_table(), "privacy": plan}, "test").model["loss"]["name"] == "sampled_softmax"


def test_context_that_the_data_lacks_is_refused_with_what_it_has() -> None:
    with pytest.raises(ConfigError, match="has 'weather', which the data does not; allowed are place, heat"):
        build_model({"name": "two_tower", "context_fields": ["weather"]}, None).init(catalogue_of(WORLD), KEY)
    plain = make([(0, 1)], 1, 3)
    with pytest.raises(ConfigError, match="allowed are none: the data has no context"):
        build_model({"name": "two_tower", "context_fields": ["place"]}, None).init(catalogue_of(plain), KEY)


def test_data_without_ratings_cannot_be_fitted_to_them() -> None:
    def without(batch: UserBatch) -> UserBatch:
        return replace(batch, ratings=None)

    for model in (exact(loss="squared"), bounded(loss="squared")):
        with pytest.raises(DataError, match="fits ratings, and the data has none; choose another loss"):
            model.contribute(shared_of(model), {}, without(BATCH), KEY)


def test_batches_without_user_keys_are_refused_in_one_line() -> None:
    with pytest.raises(ConfigError, match="no user keys; pass keys to user_batches"):
        exact().contribute(shared_of(exact()), {}, replace(BATCH, keys=None), KEY)
