"""Examples of a round: every interaction once, negatives uniform over what the user has not met in training."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from fedrec.data.batches import UserBatch, make_batch, user_batches
from fedrec.data.interactions import Interactions
from fedrec.errors import ConfigError
from fedrec.models.peers.examples import Examples, HeldOut, draw_examples
from fedrec.randomness import Key, user_keys
from tests.worlds import make, random_world

KEY = Key.from_seed(3)


def batch_of(interactions: Interactions) -> UserBatch:
    return make_batch(interactions, np.arange(interactions.num_users), user_keys(interactions.user_ids.ids))


def items_of(examples: Examples) -> Tensor:
    """Return (B, E) the item of each example, -1 where none counts."""
    return torch.where(examples.counted, examples.rows.gather(1, examples.slots), -1)


def test_every_interaction_is_a_positive_once_and_has_its_negatives() -> None:
    interactions = random_world(20, 30)
    found = draw_examples(batch_of(interactions), 30, 4, KEY)
    items = items_of(found)
    for user in range(20):
        own = interactions.items[interactions.indptr[user] : interactions.indptr[user + 1]]
        positive = (found.targets[user] == 1) & found.counted[user]
        assert sorted(items[user][positive].tolist()) == sorted(own.tolist())
        negatives = items[user][~positive & found.counted[user]].tolist()
        assert len(negatives) == 4 * len(own) and not set(negatives) & set(own.tolist())
        rows = found.rows[user][found.row_mask[user]].tolist()
        assert len(rows) == len(set(rows)) == len({item for item in items[user].tolist() if item >= 0})


def test_negatives_are_uniform_over_all_items_but_those_of_training() -> None:
    interactions = make([(0, item) for item in (0, 3, 4, 9)] * 2000, 1, 12)
    items = items_of(draw_examples(batch_of(interactions), 12, 4, KEY))
    counts = torch.bincount(items[0], minlength=12)[[1, 2, 5, 6, 7, 8, 10, 11]]
    assert counts.sum() == 4 * 8000
    assert ((counts - 4000).abs() < 5 * 4000**0.5).all(), "five standard deviations"


def test_the_leak_leaves_out_the_held_out_items_of_each_user() -> None:
    interactions = make([(user, item) for user in (0, 1, 2) for item in (0, 1)] * 200, 3, 6)
    keys = user_keys(interactions.user_ids.ids)
    order = np.argsort(keys)[:2]  # nothing is known of the third user
    leak = HeldOut(keys[order], np.array([[2, -1], [3, 4]]))
    items = items_of(draw_examples(batch_of(interactions), 6, 4, KEY, leak))
    found = {int(user): set(items[user].tolist()) for user in range(3)}
    third = ({0, 1, 2} - set(order.tolist())).pop()
    assert found == {order[0]: {0, 1, 3, 4, 5}, order[1]: {0, 1, 2, 5}, third: {0, 1, 2, 3, 4, 5}}


def test_a_user_who_met_all_items_has_no_negatives() -> None:
    found = draw_examples(batch_of(make([(0, 0), (0, 1), (0, 2)], 1, 3)), 3, 4, KEY)
    assert int(found.counted.sum()) == 3 and bool((found.targets[found.counted] == 1).all())


def test_a_users_examples_do_not_depend_on_the_batch() -> None:
    interactions = random_world(15, 30)
    whole = draw_examples(batch_of(interactions), 30, 3, KEY)
    keys = user_keys(interactions.user_ids.ids)
    for batch in user_batches(interactions, max_elements=9, keys=keys):
        part = draw_examples(batch, 30, 3, KEY)
        for place, user in enumerate(batch.rows):
            num = int(part.counted[place].sum())
            assert items_of(part)[place, :num].tolist() == items_of(whole)[user, :num].tolist()
            assert part.targets[place, :num].tolist() == whole.targets[user, :num].tolist()


def test_batch_without_keys_is_refused() -> None:
    with pytest.raises(ConfigError, match="pass keys to user_batches"):
        draw_examples(make_batch(random_world(3, 5), np.arange(3)), 5, 1, KEY)
