"""Negatives: never what the user has met in training, everything else alike, and drawn from nothing but the key."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedrec.data.splits import leave_one_out
from fedrec.errors import ConfigError
from fedrec.models.towers.negatives import draw_negatives
from fedrec.randomness import Key
from tests.models.towers.worlds import batch_of, rich_world
from tests.worlds import make

pytestmark = pytest.mark.usefixtures("form")

KEY = Key.from_seed(0)
NUM_ITEMS = 12
WORLD = rich_world([0, 1, 4, 9, 20, 200], NUM_ITEMS)


def test_no_negative_was_met_and_every_other_item_is_drawn_as_often() -> None:
    num = 40_000
    drawn = draw_negatives(batch_of(WORLD), NUM_ITEMS, num, KEY)
    for user in range(WORLD.num_users):
        met = set(WORLD.items[WORLD.indptr[user] : WORLD.indptr[user + 1]].tolist())
        assert drawn.num_unmet[user, 0] == NUM_ITEMS - len(met)
        counts = torch.bincount(drawn.items[user][drawn.used[user]], minlength=NUM_ITEMS)
        assert not counts[sorted(met)].any()
        left = counts[sorted(set(range(NUM_ITEMS)) - met)].double() / num
        assert (left - 1 / NUM_ITEMS).abs().sum() <= len(left) * 5 * (1 / NUM_ITEMS / num) ** 0.5
        unused = drawn.items[user][~drawn.used[user]]
        assert set(unused.tolist()) <= met


def test_held_out_items_are_negatives_like_all_others() -> None:
    split = leave_one_out(make([(user, (user + k) % 9) for user in range(6) for k in range(5)], 6, 9), Key.from_seed(1))
    drawn = draw_negatives(batch_of(split.train), 9, 500, KEY)
    for user in range(6):
        negatives = set(drawn.items[user][drawn.used[user]].tolist())
        train = set(split.train.items[split.train.users == user].tolist())
        assert negatives == set(range(9)) - train
        assert set(split.test.items[split.test.users == user].tolist()) <= negatives
        assert set(split.validation.items[split.validation.users == user].tolist()) <= negatives


def test_draws_follow_from_user_and_round_alone() -> None:
    together = draw_negatives(batch_of(WORLD), NUM_ITEMS, 50, KEY)
    for user in range(WORLD.num_users):
        alone = draw_negatives(batch_of(WORLD, [user]), NUM_ITEMS, 50, KEY)
        assert torch.equal(alone.items[0], together.items[user]) and torch.equal(alone.used[0], together.used[user])
        assert torch.equal(alone.num_unmet[0], together.num_unmet[user])
    other = draw_negatives(batch_of(WORLD), NUM_ITEMS, 50, KEY.fold("round", 2))
    assert float((other.items == together.items).double().mean()) < 0.2
    some = torch.tensor([False, True, False, True, True, False])
    assert torch.equal(together.of(some).items, together.items[some])


def test_without_negatives_to_draw_no_keys_are_needed_and_with_them_they_are() -> None:
    batch = replace(batch_of(WORLD), keys=None)
    none = draw_negatives(batch, NUM_ITEMS, 0, KEY)
    assert none.items.shape == none.used.shape == (6, 0) and none.num_unmet.shape == (6, 1)
    with pytest.raises(ConfigError, match="no user keys; pass keys to user_batches"):
        draw_negatives(batch, NUM_ITEMS, 3, KEY)
    nobody = draw_negatives(batch_of(WORLD, []), NUM_ITEMS, 3, KEY)
    assert nobody.items.shape == (0, 3)


def test_every_item_of_a_large_catalogue_can_be_drawn() -> None:
    num_items = 3_000_000
    drawn = draw_negatives(batch_of(make([(0, 5)], 1, num_items)), num_items, 20_000, KEY)
    items = drawn.items[0].numpy()
    assert 0 <= items.min() < num_items * 0.001 and num_items * 0.999 < items.max() < num_items
    assert np.abs(np.histogram(items, 10, (0, num_items))[0] / 2000 - 1).max() < 0.12
