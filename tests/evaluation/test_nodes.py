"""What an evaluation on a node looks at: histories, counts and negatives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from fedrec.compiled import reference
from fedrec.data.batches import UserBatch
from fedrec.data.catalogue import Catalogue
from fedrec.data.splits import cold_items, leave_one_out, split
from fedrec.evaluation import nodes
from fedrec.evaluation.counts import Cutoffs
from fedrec.evaluation.negatives import Met
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

    def recording(batch: Met, batch_keys: np.ndarray, key: Key) -> Tensor:
        rows = [int(np.flatnonzero(keys == k)[0]) for k in batch_keys]
        met.update({row: set(torch.nonzero(m)[:, 0].tolist()) for row, m in zip(rows, batch.table(), strict=True)})
        return original(batch, batch_keys, key)

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

    def recording(batch: Met, batch_keys: np.ndarray, key: Key) -> Tensor:
        masks.append(batch.table())
        return original(batch, batch_keys, key)

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


@pytest.mark.parametrize("phase", ["validation", "test"])
@pytest.mark.parametrize("repeat", [False, True])
@pytest.mark.parametrize("protocol", ["leave_one_out", "temporal", "cold_items"])
def test_compiled_evaluation_is_the_reference_to_the_bit(protocol: str, repeat: bool, phase: nodes.Phase) -> None:
    mixed = replace(INTERACTIONS, times=np.random.default_rng(0).permutation(len(INTERACTIONS)))
    parts = split(protocol, mixed, Key.from_seed(0), share=0.4, repeat=repeat)
    keys = user_keys(INTERACTIONS.user_ids.ids)

    class Wild(Recording):
        def score(self, shared: object, state: object, users: UserBatch) -> Tensor:
            draws = Key.from_seed(1).user_uniforms(keys[users.rows], 60)
            scores = torch.from_numpy((8 * draws).round().astype(np.float32))
            return torch.where(scores == 0, torch.nan, torch.where(scores == 8, torch.inf, scores))

    def counts() -> dict[str, np.ndarray]:
        return nodes.evaluate_users(Wild(), {}, parts, phase, Cutoffs(), repeat, (Key.from_seed(0), keys))

    found = counts()
    with reference():
        expected = counts()
    assert all(np.array_equal(found[name], expected[name]) for name in expected)
    assert found["sampled"][0] > 0


def test_scores_come_in_blocks_of_bounded_size_and_fits_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = evaluate("test")[1]
    monkeypatch.setattr(nodes, "users_per_batch", lambda num_items: 3)
    fits, blocks = [], []

    class Counting(Recording):
        def fit_users(self, shared: object, users: UserBatch, ranking: bool = True) -> dict[str, Tensor]:
            fits.append(users.num_users)
            return {"rows": torch.from_numpy(users.rows)}

        def score(self, shared: Mapping[str, Tensor], state: Mapping[str, Tensor], users: UserBatch) -> Tensor:
            assert state["rows"].tolist() == users.rows.tolist()
            blocks.append(users.num_users)
            return super().score(shared, state, users)

    model = Counting()
    shared = model.init(Catalogue(INTERACTIONS.item_ids), Key.from_seed(0)).shared
    counts = nodes.evaluate_users(model, shared, SPLIT, "test", Cutoffs())
    assert len(fits) == 1 and max(blocks) == 3 and sum(blocks) == fits[0]
    assert np.array_equal(counts["items"], whole["items"])


def test_only_blocks_with_users_asked_for_are_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "users_per_batch", lambda num_items: 3)
    model, asked = Recording(), np.zeros(40, dtype=bool)
    asked[[5, 17]] = True
    shared = model.init(Catalogue(INTERACTIONS.item_ids), Key.from_seed(0)).shared
    blocks = [
        batch.rows
        for batch, _ in nodes.score_users(model, shared, INTERACTIONS, np.arange(40), torch.device("cpu"), asked)
    ]
    assert len(blocks) in (1, 2) and {5, 17} <= set(np.concatenate(blocks).tolist())


@pytest.mark.parametrize("num_items", [1, 3706, 10**5, 10**6])
def test_scores_held_at_once_are_bounded(num_items: int) -> None:
    users = nodes.users_per_batch(num_items)
    assert 16 <= users <= 4096 and (users == 16 or 4 * users * num_items <= 2**24)
