"""The compiled ranking against its plain form: the same ranks, lists and scores, whatever the scores are."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedrec.compiled import reference
from fedrec.errors import DataError
from fedrec.evaluation.ranking import Ranking, Targets, rank

LOWEST = torch.finfo(torch.float32).min
WILD = [math.nan, math.inf, -math.inf, LOWEST, -LOWEST, 0.0, -0.0, 1.0, 1.5, -2.0]


def assert_same(found: Ranking, expected: Ranking) -> None:
    for name in ("ranks", "items", "scores", "sampled"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs), name


def both(
    scores: Tensor,
    seen: Tensor,
    seen_mask: Tensor,
    targets: Targets,
    num: int,
    candidates: Tensor | None = None,
    negatives: Tensor | None = None,
) -> Ranking:
    """Rank in both ways, with 1 and 3 threads, and compare."""
    kept = scores.clone()
    with reference():
        expected = rank(scores, seen, seen_mask, targets, num, candidates, negatives)
    before = torch.get_num_threads()
    try:
        for num_threads in (1, 3):
            torch.set_num_threads(num_threads)
            assert_same(rank(scores, seen, seen_mask, targets, num, candidates, negatives), expected)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(scores.nan_to_num(nan=7.0), kept.nan_to_num(nan=7.0)), "scores are only read"
    return expected


def nothing(num_users: int) -> tuple[Tensor, Tensor]:
    return torch.zeros(num_users, 0, dtype=torch.int64), torch.zeros(num_users, 0, dtype=torch.bool)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_compiled_ranking_is_the_reference(data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    num_users, num_items = data.draw(st.integers(1, 7)), data.draw(st.sampled_from([1, 2, 5, 63, 64, 65, 200]))
    width, num_targets = data.draw(st.integers(0, 2 * num_items)), data.draw(st.integers(0, 5))
    values = data.draw(st.lists(st.one_of(st.sampled_from(WILD), st.floats(width=32)), min_size=1, max_size=12))
    scores = torch.tensor(rng.choice(values, (num_users, num_items)), dtype=torch.float32)

    def some(*shape: int, lowest: int = 0) -> Tensor:
        return torch.from_numpy(rng.integers(lowest, num_items, shape))

    def chosen(*shape: int) -> Tensor:
        return torch.from_numpy(rng.random(shape) < data.draw(st.sampled_from([0.0, 0.5, 1.0])))

    both(
        scores,
        some(num_users, width),
        chosen(num_users, width),
        Targets(some(num_users, num_targets), chosen(num_users, num_targets)),
        data.draw(st.integers(1, num_items + 3)),
        chosen(num_items) if data.draw(st.booleans()) else None,
        some(num_users, 2, 9, lowest=-1) if num_targets and data.draw(st.booleans()) else None,
    )


@pytest.mark.parametrize("value", WILD)
def test_all_items_alike(value: float) -> None:
    scores = torch.full((4, 130), value)
    targets = Targets(torch.tensor([[0], [5], [129], [64]]), torch.ones(4, 1, dtype=torch.bool))
    found = both(scores, *nothing(4), targets, 10, negatives=torch.arange(99).expand(4, 5, 99))
    assert found.ranks.tolist() == [[130]] * 4, "every tie counts against the target"
    assert found.items.tolist() == [list(range(10))] * 4, "the list takes the first of a tie"
    assert found.sampled.tolist() == [[100] * 5] * 4


def test_everything_seen_leaves_an_empty_list() -> None:
    scores, seen = torch.randn(2, 6), torch.arange(6).repeat(2, 2)
    targets = Targets(torch.tensor([[3], [0]]), torch.ones(2, 1, dtype=torch.bool))
    found = both(scores, seen, torch.ones_like(seen, dtype=torch.bool), targets, 4)
    assert (
        found.ranks.tolist() == [[7], [7]] and bool((found.items == -1).all()) and bool(found.scores.isneginf().all())
    )


def test_one_item_and_a_longer_list() -> None:
    found = both(torch.tensor([[0.5]]), *nothing(1), Targets(torch.tensor([[0]]), torch.tensor([[True]])), 3)
    assert found.ranks.tolist() == [[1]] and found.items.tolist() == [[0, -1, -1]]


def test_no_users_and_no_targets() -> None:
    both(torch.zeros(0, 5), *nothing(0), Targets.none(0), 2)
    found = both(torch.tensor([[0.1, 0.3, 0.2]]), *nothing(1), Targets.none(1), 2)
    assert found.items.tolist() == [[1, 2]] and found.ranks.shape == (1, 0) and found.sampled.shape == (1, 0)


def test_long_lists_and_many_targets() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 400, (5, 2000), generator=generator).float()
    targets = Targets(torch.randint(0, 2000, (5, 300), generator=generator), torch.ones(5, 300, dtype=torch.bool))
    for num in (1, 100, 2000):
        both(scores, *nothing(5), targets, num)


def test_layout_of_the_scores_does_not_matter() -> None:
    scores = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    both(scores.T, *nothing(3), Targets.none(3), 5)
    both(scores[:, 0].expand(3, -1), *nothing(3), Targets.none(3), 5)


def test_scores_of_other_types_keep_their_precision() -> None:
    scores = torch.tensor([[1.0, 1.0 + 1e-12, 1.0 - 1e-12]], dtype=torch.float64)
    found = both(scores, *nothing(1), Targets(torch.tensor([[0]]), torch.tensor([[True]])), 3)
    assert found.items.tolist() == [[1, 0, 2]] and found.ranks.tolist() == [[2]]


def test_item_without_a_score_is_refused() -> None:
    with pytest.raises(DataError, match=r"item row 5 has no score; the model scores items 0\.\.4"):
        rank(torch.zeros(1, 5), *nothing(1), Targets(torch.tensor([[5]]), torch.tensor([[True]])), 2)
