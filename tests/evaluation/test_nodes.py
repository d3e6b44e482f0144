"""What an evaluation on a node looks at: histories, counts and negatives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from fedrec.data.batches import UserBatch
from fedrec.data.catalogue import Catalogue
from fedrec.data.splits import cold_items, leave_one_out
from fedrec.evaluation import nodes
from fedrec.evaluation.counts import Cutoffs
from fedrec.models.popularity import Popularity, PopularityConfig
from fedrec.randomness import Key, user_keys
from tests.worlds import random_world

INTERACTIONS = random_world(40, 60, max_length=25)
SPLIT = leave_one_out(INTERACTIONS, Key.from_seed(0))


class Recording(Popularity):
    """A model that notes which histories it is asked to serve."""

    def __init__(self) -> None:
        super().__init__(PopularityConfig())
        self.seen: dict[int, list[int]] = {}

    def fit_users(self, shared: object, users: UserBatch, ranking: bool = True) -> dict[str, Tensor]:
        assert ranking
        for row, items, mask in zip(users.rows, users.items, users.mask, strict=True):
            self.seen[int(row)] = items[mask].tolist()
        return {}


def evaluate(phase: nodes.Phase) -> tuple[Recording, dict[str, np.ndarray]]:
    model = Recording()
    shared = model.init(Catalogue(INTERACTIONS.item_ids), Key.from_seed(0)).shared
    return model, nodes.evaluate_users(model, shared, SPLIT, phase, Cutoffs())


def own(user: int) -> list[int]:
    return INTERACTIONS.items[INTERACTIONS.indptr[user] : INTERACTIONS.indptr[user + 1]].tolist()


@pytest.mark.parametrize(("phase", "held_out"), [("validation", 2), ("test", 1)])
def test_device_knows_all_but_what_is_predicted(phase: nodes.Phase, held_out: int) -> None:
    model, _ = evaluate(phase)
    assert model.seen == {user: own(user)[:-held_out] for user in range(40) if len(own(user)) >= 3}


@pytest.mark.parametrize("phase", ["validation", "test"])
def test_popularity_and_activity_are_counted_in_the_training_part_only(phase: nodes.Phase) -> None:
    _, counts = evaluate(phase)
    assert counts["items"][0].tolist() == np.bincount(SPLIT.train.items, minlength=60).tolist()
    evaluated = [len(own(user)) - 2 for user in range(40) if len(own(user)) >= 3]
    expected = np.histogram(evaluated, bins=[0, 10, 20, 50, 100, 200, 10**9])[0]
    assert counts["users"][:, 0].tolist() == expected.tolist()


def test_sampled_negatives_leave_out_every_item_the_user_ever_meets(monkeypatch: pytest.MonkeyPatch) -> None:
    met: dict[int, set[int]] = {}
    original = nodes.draw_negatives
    keys = user_keys(INTERACTIONS.user_ids.ids)

    def recording(mask: Tensor, batch_keys: np.ndarray, key: Key) -> Tensor:
        rows = [int(np.flatnonzero(keys == k)[0]) for k in batch_keys]
        met.update({row: set(torch.nonzero(m)[:, 0].tolist()) for row, m in zip(rows, mask, strict=True)})
        return original(mask, batch_keys, key)

    monkeypatch.setattr(nodes, "draw_negatives", recording)
    model = Recording()
    shared = model.init(Catalogue(INTERACTIONS.item_ids), Key.from_seed(0)).shared
    nodes.evaluate_users(model, shared, SPLIT, "test", Cutoffs(), sampled=(Key.from_seed(0), keys))
    assert met == {user: set(own(user)) for user in range(40) if len(own(user)) >= 3}


def test_sampled_negatives_are_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    split = cold_items(INTERACTIONS, Key.from_seed(0), share=0.3)
    assert split.candidates is not None
    masks = []
    original = nodes.draw_negatives

    def recording(mask: Tensor, batch_keys: np.ndarray, key: Key) -> Tensor:
        masks.append(mask)
        return original(mask, batch_keys, key)

    monkeypatch.setattr(nodes, "draw_negatives", recording)
    model = Recording()
    shared = model.init(Catalogue(INTERACTIONS.item_ids), Key.from_seed(0)).shared
    keys = user_keys(INTERACTIONS.user_ids.ids)
    nodes.evaluate_users(model, shared, split, "test", Cutoffs(), sampled=(Key.from_seed(0), keys))
    assert masks and all(bool(mask[:, ~split.candidates].all()) for mask in masks)


def test_constant_scorer_gets_less_than_one_in_a_thousand() -> None:
    class Constant(Recording):
        def score(self, shared: object, state: object, users: UserBatch) -> Tensor:
            return torch.full((users.num_users, 60), 0.5)

    model = Constant()
    shared = model.init(Catalogue(INTERACTIONS.item_ids), Key.from_seed(0)).shared
    counts = nodes.evaluate_users(model, shared, SPLIT, "test", Cutoffs())
    assert counts["users"][:, 2].sum() / counts["users"][:, 0].sum() < 0.001
