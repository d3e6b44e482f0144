"""Sampled negatives: distinct, unmet, uniform, and the same for ever."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
import torch

from fedrec.compiled import reference
from fedrec.evaluation.negatives import Met, draw_negatives
from fedrec.randomness import Key, user_keys
from tests.worlds import make


def first_items(num_users: int, num_met: int, num_items: int) -> Met:
    """Return users who have all met the first `num_met` items."""
    items = torch.arange(num_met).repeat(num_users, 1)
    return Met(items, torch.ones_like(items, dtype=torch.bool), torch.zeros(num_items, dtype=torch.bool))


@pytest.mark.parametrize(("num_items", "num_met"), [(200, 50), (2000, 100), (2000, 1900), (50, 20)])
def test_sampled_negatives_are_distinct_unmet_and_fixed(num_items: int, num_met: int) -> None:
    met, keys = first_items(30, num_met, num_items), user_keys(np.arange(30))
    negatives = draw_negatives(met, keys, Key.from_seed(0))
    for row in negatives.tolist():
        drawn = [item for item in row if item >= 0]
        assert len(drawn) == len(set(drawn)) == min(99, num_items - num_met)
        assert all(item >= num_met for item in drawn)
    assert torch.equal(draw_negatives(met.of_users(np.array([7, 8])), keys[7:9], Key.from_seed(0)), negatives[7:9]), (
        "no user depends on another"
    )
    assert not torch.equal(draw_negatives(met, keys, Key.from_seed(1)), negatives) or num_items - num_met < 99


@pytest.mark.parametrize("num_items", [600, 2000])
def test_sampled_negatives_are_uniform(num_items: int) -> None:
    num_users, num_met = 3000, num_items // 10
    met = first_items(num_users, num_met, num_items)
    negatives = draw_negatives(met, user_keys(np.arange(num_users)), Key.from_seed(2))
    counts = np.bincount(negatives.reshape(-1).numpy(), minlength=num_items)[num_met:]
    expected = num_users * 99 / (num_items - num_met)
    assert np.abs(counts - expected).max() < 6 * math.sqrt(expected), "six standard deviations over all items"


@pytest.mark.parametrize(
    ("num_items", "num_met", "digest"),
    [
        (2000, 100, "0e8406e19237198b"),
        (600, 60, "2b70d117293c59a9"),
        (50, 20, "b4dc4809ac23b5e5"),
        (2000, 1400, "a9c1c43278949714"),
    ],
)
def test_draws_stay_what_published_numbers_were_made_with(num_items: int, num_met: int, digest: str) -> None:
    drawn = draw_negatives(first_items(30, num_met, num_items), user_keys(np.arange(30)), Key.from_seed(7))
    assert hashlib.blake2b(drawn.numpy().astype("<i8").tobytes(), digest_size=8).hexdigest() == digest


@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize("num_items", [1, 60, 700, 3000])
@pytest.mark.parametrize("num_negatives", [1, 20, 99])
def test_compiled_draws_are_those_of_the_reference(num_items: int, num_negatives: int, num_threads: int) -> None:
    rng = np.random.default_rng(num_items)
    num_users, width = 23, 2 * num_items
    items = torch.from_numpy(rng.integers(0, num_items, (num_users, width)))
    lengths = rng.integers(0, width + 1, num_users) * (np.arange(num_users) % 4 > 0)
    lengths[-1] = width
    mask = torch.from_numpy(np.arange(width) < lengths[:, None])
    outside = torch.from_numpy(rng.random(num_items) < 0.2)
    met, keys = Met(items, mask, outside), user_keys(np.arange(num_users))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(num_threads)
        found = draw_negatives(met, keys, Key.from_seed(3), num_negatives)
    finally:
        torch.set_num_threads(before)
    with reference():
        expected = draw_negatives(met, keys, Key.from_seed(3), num_negatives)
    assert torch.equal(found, expected)


def test_few_unmet_items_take_more_draws_than_usual() -> None:
    """Nearly a quarter of the items left: the first draws do not suffice, and the result is still the reference's."""
    met, keys = first_items(50, 2950, 4000), user_keys(np.arange(50))
    found = draw_negatives(met, keys, Key.from_seed(0))
    assert bool((found >= 2950).all())
    with reference():
        assert torch.equal(found, draw_negatives(met, keys, Key.from_seed(0)))


def test_met_items_are_those_of_all_parts_and_of_those_that_are_no_candidates() -> None:
    parts = (make([(0, 3), (0, 1), (1, 2)], 3, 5), make([(0, 3), (1, 0)], 3, 5), make([], 3, 5))
    met = Met.of(parts, np.array([1, 0, 2]), torch.tensor([True, True, True, True, False]))
    assert [torch.nonzero(row)[:, 0].tolist() for row in met.table()] == [[0, 2, 4], [1, 3, 4], [4]]
