"""Slices: metrics of groups are those of the whole, told apart; gaps say what chance alone would make."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from fedrec.data.batches import UserBatch
from fedrec.data.catalogue import Catalogue
from fedrec.data.interactions import Interactions, Vocabulary
from fedrec.data.splits import Split, leave_one_out, temporal
from fedrec.evaluation.counts import Cutoffs, summarise, zero_counts
from fedrec.evaluation.nodes import evaluate_users
from fedrec.evaluation.ranking import Targets
from fedrec.evaluation.slices import (
    MIN_GAP_USERS,
    MOST_VALUES,
    NO_CATEGORY,
    OTHER_VALUES,
    Slices,
    expected_range,
    gap_between,
    summarise_groups,
)
from fedrec.models.popularity import Popularity, PopularityConfig
from fedrec.randomness import Key, user_keys
from tests.worlds import make, random_world

CUT = Cutoffs()
KEY = Key.from_seed(0)


class Drawn(Popularity):
    """A model whose scores follow from user and item ids alone, so that no spread over nodes changes a rank."""

    def __init__(self, keys: np.ndarray) -> None:
        super().__init__(PopularityConfig())
        self.keys = keys

    def score(self, shared: object, state: object, users: UserBatch) -> Tensor:
        return torch.from_numpy(KEY.user_uniforms(self.keys[users.rows], 60).astype(np.float32))


def world() -> tuple[Interactions, Catalogue]:
    """Return 90 users with a gender, items with up to three categories, and a mood for each interaction."""
    rng = np.random.default_rng(0)
    data = random_world(90, 60, max_length=25)
    moods, genders = np.array(["calm", "unknown", "wild"]), np.array(["female", "male", "unknown"])
    data = replace(
        data,
        context={"mood": rng.integers(0, 3, len(data)), "heat": rng.random(len(data)).astype(np.float32)},
        context_ids={"mood": Vocabulary(moods)},
        user_attributes={"gender": rng.integers(0, 3, 90)},
        user_attribute_ids={"gender": Vocabulary(genders)},
    )
    return data, Catalogue(data.item_ids, categories=rng.random((60, 3)) < 0.3, category_names=("a", "b", "c"))


def count(split: Split, slices: Slices | None) -> dict[str, np.ndarray]:
    return evaluate_users(Drawn(user_keys(split.train.user_ids.ids)), {}, split, "test", CUT, slices=slices)


def of_users(split: Split, rows: np.ndarray) -> Split:
    parts = ("train", "validation", "test", "served")
    return replace(split, **{name: getattr(split, name).of_users(rows) for name in parts})


def test_groups_of_users_add_up_to_the_whole() -> None:
    data, catalogue = world()
    slices = Slices.of(data, catalogue)
    counts = count(leave_one_out(data, KEY), slices)
    whole, found = summarise(counts, CUT, 60), summarise_groups(slices, counts["slices"], CUT)
    for groups in (found["history_length"], found["user"]["gender"], found["context"]["mood"]):
        users = np.array([group["num_users"] for group in groups])
        assert len(groups) > 2 and users.sum() == whole["num_users"]
        for metric in ("ndcg@10", "hr@10"):
            weighted = sum(group["num_users"] * group[metric] for group in groups) / users.sum()
            assert weighted == pytest.approx(whole[metric]) and weighted > 0
    assert set(found["context"]) == {"mood"}  # numbers have no groups


def test_what_nodes_send_adds_up_to_the_same_however_users_are_spread() -> None:
    data, catalogue = world()
    split, slices = leave_one_out(data, KEY), Slices.of(data, catalogue)
    whole = count(split, slices)["slices"]
    assert whole.shape == (slices.num_groups, 4) and slices.num_groups == 7 + 3 + 3 + 4
    for num_nodes in (2, 7):
        parts = [of_users(split, np.arange(node, 90, num_nodes)) for node in range(num_nodes)]
        assert {count(part, slices)["slices"].shape for part in parts} == {whole.shape}
        np.testing.assert_allclose(sum(count(part, slices)["slices"] for part in parts), whole, rtol=1e-12)


def test_slices_and_what_is_known_of_users_change_no_metric() -> None:
    data, catalogue = world()
    with_slices = count(leave_one_out(data, KEY), Slices.of(data, catalogue))
    plain = count(leave_one_out(replace(data, user_attributes={}, user_attribute_ids={}), KEY), None)
    assert set(with_slices) - set(plain) == {"slices"}
    assert all(np.array_equal(with_slices[name], plain[name]) for name in plain)


def add(ranks: list[list[int]], held_out: Interactions, slices: Slices, lengths: list[int]) -> dict[str, object]:
    rows = np.arange(len(ranks))
    table = zero_counts(held_out.num_items, slices.num_groups)["slices"]
    slices.add(table, torch.tensor(ranks), Targets.of(held_out, rows), held_out, rows, np.array(lengths), CUT)
    return summarise_groups(slices, table, CUT)


def test_a_target_counts_in_each_of_its_categories_and_a_user_once_in_each() -> None:
    held_out = make([(0, 0), (0, 1), (1, 2)], num_users=2, num_items=3)
    categories = np.array([[True, False], [True, True], [False, False]])
    slices = Slices.of(held_out, Catalogue(held_out.item_ids, categories=categories, category_names=("a", "b")))
    found = add([[1, 30], [3, 0]], held_out, slices, [4, 5])
    ideal = 1 + 1 / np.log2(3)
    assert found["category"] == [
        {"group": "a", "num_users": 1, "ndcg@10": pytest.approx(1 / ideal), "hr@10": 1.0},
        {"group": "b", "num_users": 1, "ndcg@10": 0.0, "hr@10": 0.0},
        {"group": NO_CATEGORY, "num_users": 1, "ndcg@10": 0.5, "hr@10": 1.0},
    ]
    assert found["history_length"] == [
        {"group": "0-4", "num_users": 1, "ndcg@10": pytest.approx(1 / ideal), "hr@10": 1.0},
        {"group": "5-9", "num_users": 1, "ndcg@10": 0.5, "hr@10": 1.0},
    ]


def test_a_group_of_a_user_with_several_lists_is_the_mean_over_them() -> None:
    """Where data has context each target has a list of its own; together a user's lists count as one user."""
    data, catalogue = world()
    data = replace(data, times=np.random.default_rng(1).permutation(len(data)))
    split, slices = temporal(data, 0.2, 0.5), Slices.of(data, catalogue)
    counts = count(split, slices)
    assert split.test.lengths.max() > 1
    found = summarise_groups(slices, counts["slices"], CUT)
    assert sum(group["num_users"] for group in found["user"]["gender"]) == summarise(counts, CUT, 60)["num_users"]
    parts = dict(zip([field.kind for field in slices.fields], slices.parts(counts["slices"]), strict=True))
    for kind in ("user", "context", "history_length"):
        np.testing.assert_allclose(parts[kind][1].sum(axis=0)[[0, 1, 3]], counts["users"].sum(axis=0)[[0, 1, 2]])


def test_history_length_is_what_the_device_knows_when_it_ranks() -> None:
    data = random_world(60, 60, max_length=25)
    slices = Slices.of(data, Catalogue(data.item_ids))
    counts = count(leave_one_out(data, KEY), slices)
    lengths = data.lengths[data.lengths >= 3] - 1
    expected = np.histogram(lengths, bins=[0, 5, 10, 20, 50, 100, 200, 10**9])[0]
    assert counts["slices"][:, 0].tolist() == expected.tolist()


def test_of_many_values_the_most_met_are_told_apart_and_unknown_always_is() -> None:
    names = [f"city {k:02}" for k in range(40)] + ["unknown"]
    users = np.concatenate([np.repeat(np.arange(40), np.arange(40, 0, -1)), [40]])
    held_out = make([(user, 0) for user in range(len(users))], len(users), 1)
    held_out = replace(held_out, context={"city": users}, context_ids={"city": Vocabulary(np.array(names))})
    slices = Slices.of(held_out, Catalogue(held_out.item_ids))
    found = add([[1 + (user == 39)] for user in users], held_out, slices, [5] * len(users))["context"]["city"]
    assert [group["group"] for group in found] == [*names[:MOST_VALUES], "unknown", OTHER_VALUES]
    assert [group["num_users"] for group in found] == [*range(40, 20, -1), 1, sum(range(1, 21))]
    rest = found[-1]["ndcg@10"] * found[-1]["num_users"]
    assert rest == pytest.approx(sum(range(2, 21)) + 1 / np.log2(3))


def table(groups: list[tuple[int, float]]) -> np.ndarray:
    """Return the counts of groups of (users, share of them hit, at rank 1)."""
    return np.array([[users, users * share, users * share, users * share] for users, share in groups])


def test_a_gap_is_over_known_groups_of_enough_users() -> None:
    groups = [(400, 0.2), (100, 0.5), (MIN_GAP_USERS - 1, 1.0), (300, 0.0)]
    found = gap_between(["x", "y", "small", "unknown"], table(groups), CUT)
    assert (found["min_users"], found["num_groups"]) == (MIN_GAP_USERS, 2)
    spread = np.sqrt(0.26 * 0.74)
    chance = expected_range(spread / np.sqrt([400, 100]))
    for metric in ("ndcg@10", "hr@10"):
        assert found[metric] == {
            "gap": pytest.approx(0.3),
            "ratio": pytest.approx(0.4),
            "lowest": "x",
            "highest": "y",
            "gap_by_chance": pytest.approx(chance),
        }


def test_a_gap_needs_two_groups_and_a_ratio_a_hit() -> None:
    assert gap_between(["x", "y"], table([(100, 0.5), (3, 0.0)]), CUT) == {"min_users": MIN_GAP_USERS, "num_groups": 1}
    found = gap_between(["x", "y"], table([(100, 0.0), (100, 0.0)]), CUT)["hr@10"]
    assert found["ratio"] is None and found["gap"] == found["gap_by_chance"] == 0.0


def test_the_expected_range_is_that_of_many_draws() -> None:
    stds = np.array([0.02, 0.05, 0.01, 0.03, 0.05])
    draws = np.random.default_rng(0).normal(size=(200_000, 5)) * stds
    assert expected_range(stds) == pytest.approx(np.ptp(draws, axis=1).mean(), rel=0.01)
    assert expected_range(np.array([0.05, 0.0])) == pytest.approx(0.05 * np.sqrt(2 / np.pi), rel=1e-3)
    assert expected_range(np.zeros(2)) == 0.0
