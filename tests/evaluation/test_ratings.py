"""Errors of held-out ratings: by hand, over nodes, and in a world whose ratings are known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from fedrec.data.batches import UserBatch
from fedrec.data.catalogue import Catalogue
from fedrec.data.interactions import Interactions
from fedrec.data.splits import Split, leave_one_out, split
from fedrec.evaluation.counts import Cutoffs, add_errors, summarise, zero_counts
from fedrec.evaluation.nodes import evaluate_users
from fedrec.models.popularity import Popularity, PopularityConfig
from fedrec.models.registry import build_model
from fedrec.randomness import Key
from fedrec.report.tables import metric_table
from tests.training import train
from tests.worlds import make

CUT = Cutoffs()
TABLE = {
    "name": "two_tower",
    "dim": 4,
    "history": {"name": "decayed", "window": 20, "dropout": 0.0, "crop_probability": 0.0},
    "loss": {"name": "squared", "offset": 3.0},
    "server_optimizer": {"learning_rate": 0.05, "warmup_rounds": 5, "decay_rounds": 150},
}


class Rating(Popularity):
    """A model that rates item i with i + 0.5."""

    predicts_ratings = True

    def __init__(self) -> None:
        super().__init__(PopularityConfig())

    def score(self, shared: Mapping[str, Tensor], state: Mapping[str, Tensor], users: UserBatch) -> Tensor:
        return (torch.arange(20) + 0.5).expand(users.num_users, -1)


def world_of(lengths: list[int], seed: int = 0) -> Interactions:
    """Return users with a bias, items with a bias, and ratings 3 + both: nothing else is to be known."""
    draws = np.random.default_rng(seed)
    pairs = [(user, int(i)) for user, num in enumerate(lengths) for i in draws.choice(20, num, replace=False)]
    world = make(pairs, len(lengths), 20)
    ratings = 3 + draws.normal(size=len(lengths))[world.users] + draws.normal(size=20)[world.items]
    return replace(world, ratings=ratings.astype(np.float32))


def found(model: object, shared: Mapping[str, Tensor], parts: Split) -> dict[str, float]:
    return summarise(evaluate_users(model, shared, parts, "test", CUT), CUT, 20)  # type: ignore[arg-type]


def test_errors_are_those_of_every_held_out_row() -> None:
    held_out = replace(make([(0, 1), (2, 0), (2, 3)], 3, 4), ratings=np.array([2.0, 1.0, 5.0], dtype=np.float32))
    scores = torch.tensor([[9.0, 2.5, 9.0, 9.0], [9.0] * 4, [4.0, 9.0, 9.0, 3.0]])
    counts = zero_counts(4, rated=True)
    add_errors(counts, scores[[2, 0, 1]], held_out, np.array([2, 0, 1]))
    assert counts["ratings"].tolist() == [3.0, 0.25 + 9.0 + 4.0, 0.5 + 3.0 + 2.0]
    assert summarise(counts, CUT, 4)["rmse"] == pytest.approx(np.sqrt(13.25 / 3))
    assert summarise(counts, CUT, 4)["mae"] == pytest.approx(5.5 / 3)


def test_only_models_that_predict_ratings_have_errors() -> None:
    parts = leave_one_out(world_of([5] * 10), Key.from_seed(0))
    model, rating = Popularity(PopularityConfig()), Rating()
    shared = model.init(Catalogue(parts.train.item_ids), Key.from_seed(0)).shared
    assert "ratings" not in evaluate_users(model, shared, parts, "test", CUT)
    assert "rmse" not in found(model, shared, parts)
    without = replace(parts, test=replace(parts.test, ratings=None))
    assert "rmse" not in found(rating, shared, without)
    assert parts.test.ratings is not None
    errors = parts.test.items + 0.5 - parts.test.ratings
    assert found(rating, shared, parts)["rmse"] == pytest.approx(np.sqrt(np.square(errors).mean()))


def test_errors_of_nodes_add_up() -> None:
    world, rating = world_of([8, 3, 12, 9, 5, 7]), Rating()
    world = replace(world, times=np.random.default_rng(1).permutation(len(world)))
    parts = split("temporal", world, Key.from_seed(0), validation_share=0.2, test_share=0.3)
    shared = rating.init(Catalogue(world.item_ids), Key.from_seed(0)).shared
    total = np.zeros(3)
    for rows in ([0, 3], [1, 2, 4, 5]):
        one = {
            name: getattr(parts, name).of_users(np.array(rows)) for name in ("train", "validation", "test", "served")
        }
        total += evaluate_users(rating, shared, replace(parts, **one), "test", CUT)["ratings"]
    whole = evaluate_users(rating, shared, parts, "test", CUT)["ratings"]
    assert whole[0] == len(parts.test)
    np.testing.assert_allclose(total, whole, rtol=1e-12)


@pytest.mark.parametrize("clipping_norm", [None, 1.0])
def test_biases_of_users_and_items_are_found(clipping_norm: float | None) -> None:
    """Users' biases are never learned nor sent: a device finds its own from the ratings it knows."""
    parts = leave_one_out(world_of([14] * 60), Key.from_seed(0))
    model = build_model(TABLE, clipping_norm)
    state = train(model, Catalogue(parts.train.item_ids), parts.train, 150, clipping_norm or np.inf)
    result = found(model, state.shared, parts)
    assert parts.test.ratings is not None and parts.train.ratings is not None
    spread = float(np.std(parts.test.ratings))
    limit = 0.15 if clipping_norm is None else 0.3
    assert result["rmse"] < limit * spread and result["mae"] < limit * spread
    assert float(state.shared["ratings.offset"]) == pytest.approx(3.0, abs=0.7)


def test_tables_show_errors_where_there_are_any() -> None:
    ranked = {"metrics": {"test": {"ndcg@10": 0.1}}}
    rated = {"metrics": {"test": {"ndcg@10": 0.1, "rmse": 0.912, "mae": 0.71}}}
    assert "RMSE" not in metric_table({"one": ranked})
    lines = metric_table({"one": ranked, "two": rated}).splitlines()
    assert "RMSE" in lines[0] and "0.9120" in lines[3] and lines[2].split()[-2] == "-"
