"""Lists are asked for in the context of their target: the same user gets different lists in different contexts."""

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
from fedrec.evaluation import nodes
from fedrec.evaluation.counts import Cutoffs, summarise
from fedrec.models.popularity import Popularity, PopularityConfig
from fedrec.randomness import Key, user_keys
from tests.by_context import ByContext, ByContextConfig, contextual_world
from tests.training import train
from tests.worlds import random_world

WORLD = contextual_world()
SPLIT = leave_one_out(WORLD, Key.from_seed(0))
LATER = split("temporal", WORLD, Key.from_seed(0), validation_share=0.25, test_share=0.25, repeat=True)
CUT = Cutoffs()


class Recording(Popularity):
    """Notes what it is asked for: the user, the context, and the length of the history."""

    def __init__(self) -> None:
        super().__init__(PopularityConfig())
        self.asked: list[tuple[int, int, int]] = []

    def score(self, shared: Mapping[str, Tensor], state: Mapping[str, Tensor], users: UserBatch) -> Tensor:
        queries = users.query["place"].tolist()
        self.asked += zip(users.rows.tolist(), queries, users.lengths.tolist(), strict=True)
        return super().score(shared, state, users)


def asked(parts: Split, phase: nodes.Phase) -> list[tuple[int, int, int]]:
    model = Recording()
    shared = model.init(Catalogue(WORLD.item_ids), Key.from_seed(0)).shared
    nodes.evaluate_users(model, shared, parts, phase, CUT, repeat=True)
    return sorted(model.asked)


@pytest.mark.parametrize("parts", [SPLIT, LATER])
@pytest.mark.parametrize("phase", ["validation", "test"])
def test_each_target_is_ranked_once_in_its_own_context_with_the_same_history(
    parts: Split, phase: nodes.Phase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes, "users_per_batch", lambda num_items: 7)
    held_out, history = (parts.validation, parts.train) if phase == "validation" else (parts.test, parts.history)
    lengths = history.lengths[held_out.users].tolist()
    wanted = zip(held_out.users.tolist(), held_out.context["place"].tolist(), lengths, strict=True)
    assert asked(parts, phase) == sorted(wanted)


def metrics(world: Interactions, parts: Split, fields: tuple[str, ...]) -> dict[str, float]:
    catalogue = Catalogue(world.item_ids, context_fields=world.context_fields)
    model = ByContext(ByContextConfig(context_fields=fields))
    state = train(model, catalogue, parts.train, 1)
    return summarise(nodes.evaluate_users(model, state.shared, parts, "test", CUT, repeat=True), CUT, world.num_items)


@pytest.mark.parametrize("parts", [SPLIT, LATER])
def test_context_that_decides_what_is_met_makes_better_lists_and_shuffled_it_does_not(parts: Split) -> None:
    known, unused = metrics(WORLD, parts, ("place",)), metrics(WORLD, parts, ())
    places = np.random.default_rng(0).permutation(parts.test.context["place"])
    shuffled = replace(parts, test=replace(parts.test, context={"place": places}))
    assert known["ndcg@10"] > 1.3 * unused["ndcg@10"]
    assert metrics(WORLD, shuffled, ("place",))["ndcg@10"] < unused["ndcg@10"]


def test_user_with_several_targets_counts_as_one_user_by_their_mean() -> None:
    found = metrics(WORLD, LATER, ("place",))
    assert found["num_users"] == int((LATER.test.lengths > 0).sum())
    model = ByContext(ByContextConfig(context_fields=("place",)))
    catalogue = Catalogue(WORLD.item_ids, context_fields=WORLD.context_fields)
    counts = train(model, catalogue, LATER.train, 1).shared["counts"]
    ranks = np.array(
        [
            int((counts[:, place] >= counts[item, place]).sum())
            for item, place in zip(LATER.test.items.tolist(), LATER.test.context["place"].tolist(), strict=True)
        ]
    )
    gains = np.where(ranks <= 10, 1 / np.log2(ranks + 1.0), 0.0)
    by_user = np.bincount(LATER.test.users, weights=gains)[LATER.test.lengths > 0]
    assert found["ndcg@10"] == pytest.approx(float((by_user / LATER.test.lengths[LATER.test.lengths > 0]).mean()))


def test_sampled_negatives_are_drawn_for_one_target_a_user() -> None:
    keys = user_keys(WORLD.user_ids.ids)
    model = Recording()
    shared = model.init(Catalogue(WORLD.item_ids), Key.from_seed(0)).shared
    counts = nodes.evaluate_users(model, shared, LATER, "test", CUT, True, (Key.from_seed(0), keys))
    assert counts["sampled"][0] == nodes.SAMPLED_DRAWS * int((LATER.test.lengths > 0).sum())


@pytest.mark.parametrize("protocol", ["leave_one_out", "temporal"])
def test_model_that_uses_no_context_makes_the_same_lists_as_without_it(protocol: str) -> None:
    plain = random_world(40, 60, max_length=25)
    plain = replace(plain, times=np.random.default_rng(0).permutation(len(plain)))
    placed = replace(plain, context={"place": plain.items % 2}, context_ids={"place": WORLD.context_ids["place"]})
    model = Popularity(PopularityConfig())
    shared = {"counts": torch.arange(60.0)[:, None]}
    found = []
    for world in (plain, placed):
        parts = split(protocol, world, Key.from_seed(0))
        found.append(nodes.evaluate_users(model, shared, parts, "test", CUT))
    assert np.array_equal(found[0]["items"][2:], found[1]["items"][2:])
    if protocol == "leave_one_out":
        assert all(np.array_equal(found[0][name], found[1][name]) for name in found[0])
