"""User batches: every interaction in exactly one cell, and padding stays small."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrec.data.batches import make_batch, user_batches
from fedrec.data.interactions import Interactions, Vocabulary
from fedrec.errors import ConfigError
from tests.data.histories import histories, make
from tests.worlds import random_world

FAST = settings(max_examples=100, deadline=None)


@given(data=histories(repeat=True), max_elements=st.integers(1, 30), max_users=st.integers(1, 5))
@FAST
def test_every_interaction_is_in_exactly_one_cell(data: Interactions, max_elements: int, max_users: int) -> None:
    assert data.ratings is not None
    cells, rows = [], []
    for batch in user_batches(data, max_elements=max_elements, max_users=max_users):
        assert batch.ratings is not None
        rows += batch.rows.tolist()
        users = torch.from_numpy(batch.rows)[:, None].expand_as(batch.items)
        columns = [users, batch.items, batch.context["place"], batch.ratings.long()]
        cells += torch.stack([column[batch.mask] for column in columns], dim=1).tolist()
        assert (batch.items[~batch.mask] == 0).all() and (batch.ratings[~batch.mask] == 0).all()
        assert batch.num_users <= max_users
        assert batch.items.numel() <= max_elements or batch.num_users == 1
    wanted = [data.users, data.items, data.context["place"], data.ratings.astype(np.int64)]
    assert sorted(rows) == list(range(data.num_users))
    assert sorted(cells) == sorted(np.stack(wanted, axis=1).tolist())


@given(data=histories())
@FAST
def test_rows_of_a_batch_are_oldest_first_and_packed_to_the_left(data: Interactions) -> None:
    batch = make_batch(data, np.arange(data.num_users))
    assert batch.lengths.tolist() == data.lengths.tolist()
    for row in range(data.num_users):
        length = int(data.lengths[row])
        assert batch.mask[row, :length].all() and not batch.mask[row, length:].any()
        mine = slice(int(data.indptr[row]), int(data.indptr[row + 1]))
        assert batch.items[row, :length].tolist() == data.items[mine].tolist()
        if data.times is not None and batch.ages is not None:
            assert batch.ages[row, :length].tolist() == list(range(length))[::-1]


def test_buckets_keep_padding_small_where_lengths_are_skewed() -> None:
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(3, 1, 3000).astype(int), 1, 900)
    users = np.repeat(np.arange(3000), lengths)
    items = np.concatenate([np.arange(length) for length in lengths])
    data = Interactions(users, items, Vocabulary(np.arange(3000)), Vocabulary(np.arange(900)))
    cells = sum(batch.items.numel() for batch in user_batches(data, max_elements=8192))
    assert len(data) <= cells < 1.2 * len(data)


def test_only_the_users_asked_for_come() -> None:
    data = make([(u, i, i) for u in range(6) for i in range(u + 1)], 6, 6)
    seen = [row for batch in user_batches(data, np.array([5, 0, 3]), max_elements=6) for row in batch.rows.tolist()]
    assert sorted(seen) == [0, 3, 5]
    assert list(user_batches(data, np.empty(0, dtype=np.int64))) == []


@pytest.mark.parametrize("bound", ["max_elements", "max_users"])
def test_a_bound_that_fits_nobody_is_refused(bound: str) -> None:
    with pytest.raises(ConfigError, match=f"{bound}=0"):
        next(user_batches(make([(0, 0, 1)], 1, 1), **{bound: 0}))


def test_users_without_interactions_have_empty_rows() -> None:
    batch = make_batch(make([(1, 0, 1)], 3, 1), np.arange(3))
    assert batch.lengths.tolist() == [0, 1, 0] and batch.items.shape == (3, 1)
    empty = make_batch(make([], 2, 1), np.arange(2))
    assert empty.items.shape == (2, 0) and empty.ages is not None


def test_a_batch_on_the_same_device_is_the_same_batch() -> None:
    batch = make_batch(make([(0, 0, 1)], 1, 1), np.arange(1))
    assert batch.to(torch.device("cpu")) is batch


def test_kept_state_comes_with_its_users_and_others_start_anew() -> None:
    interactions = random_world(6, 20)
    kept = {"known": torch.arange(6) % 2 == 0, "vectors": torch.arange(6.0)[:, None]}
    start = torch.tensor([-1.0])
    found = {}
    for batch in user_batches(interactions, max_elements=5, state=kept):
        found |= dict(zip(batch.rows.tolist(), batch.kept("vectors", start)[:, 0].tolist(), strict=True))
        assert batch.kept("something else", start).tolist() == [[-1.0]] * batch.num_users
    assert found == {0: 0.0, 1: -1.0, 2: 2.0, 3: -1.0, 4: 4.0, 5: -1.0}
    assert make_batch(interactions, np.arange(2)).kept("vectors", start).tolist() == [[-1.0], [-1.0]]
