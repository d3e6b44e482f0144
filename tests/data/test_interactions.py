"""Interactions: always sorted, ids kept apart from rows, latest of a repeated pair."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrec.data.batches import make_batch
from fedrec.data.catalogue import Catalogue
from fedrec.data.interactions import Interactions, Vocabulary, deduplicate
from fedrec.data.reading.reader import rated_at_least
from fedrec.errors import DataError
from tests.data.histories import histories, ids, make

FAST = settings(max_examples=100, deadline=None)


@given(data=histories(repeat=True))
@FAST
def test_rows_are_sorted_by_user_and_time_and_ties_keep_their_order(data: Interactions) -> None:
    assert data.ratings is not None
    times = np.zeros(len(data)) if data.times is None else data.times
    order = np.lexsort((data.ratings, times, data.users))
    assert np.array_equal(order, np.arange(len(data)))
    for user in range(data.num_users):
        assert (data.users[data.indptr[user] : data.indptr[user + 1]] == user).all()
    assert data.lengths.sum() == len(data)


@given(data=histories(repeat=True))
@FAST
def test_deduplication_keeps_the_latest_row_of_every_pair(data: Interactions) -> None:
    once = deduplicate(data)
    latest = {(u, i): row for row, (u, i) in enumerate(zip(data.users.tolist(), data.items.tolist(), strict=True))}
    assert ids(once) == ids(data.take(np.array(sorted(latest.values()), dtype=np.int64)))
    assert len(once) == len(latest)


@given(data=histories(), seed=st.integers(0, 9))
@FAST
def test_the_users_of_nodes_together_are_all_users(data: Interactions, seed: int) -> None:
    rows = np.random.default_rng(seed).permutation(data.num_users)
    parts = [data.of_users(part) for part in np.array_split(rows, 3)]
    assert sum(len(part) for part in parts) == len(data)
    assert set().union(*map(ids, parts)) == ids(data)
    for part, chosen in zip(parts, np.array_split(rows, 3), strict=True):
        assert part.user_ids.ids.tolist() == data.user_ids.ids[chosen].tolist()
        assert part.lengths.tolist() == data.lengths[chosen].tolist()


def test_columns_follow_the_sorting() -> None:
    data = make([(1, 0, 5), (0, 1, 9), (0, 2, 3)], 2, 3)
    assert data.items.tolist() == [2, 1, 0]
    assert data.ratings is not None and data.ratings.tolist() == [2, 1, 0]
    assert data.context["place"].tolist() == [2, 1, 0]


def known(data: Interactions, codes: list[int]) -> Interactions:
    """Say of each user whether they are young."""
    ids = {"age": Vocabulary(np.array(["young", "old"]))}
    return replace(data, user_attributes={"age": np.array(codes)}, user_attribute_ids=ids)


def test_user_attributes_follow_their_users_wherever_these_go() -> None:
    data = known(make([(0, 0, 5), (2, 1, 6), (3, 0, 1)], num_users=4, num_items=2), [0, 1, 1, 0])
    part = data.of_users(np.array([3, 1]))
    assert part.user_attributes["age"].tolist() == [0, 1] and part.user_ids.ids.tolist() == ["user 3", "user 1"]
    assert data.take(np.array([0])).user_attributes["age"].tolist() == [0, 1, 1, 0]
    rated = rated_at_least(data, 1, "the data")
    assert rated.user_ids.ids.tolist() == ["user 2", "user 3"] and rated.user_attributes["age"].tolist() == [1, 0]


def test_batches_do_not_carry_user_attributes() -> None:
    data = make([(0, 0, 5), (0, 1, 6), (1, 0, 1)], num_users=2, num_items=2)
    plain, more = (make_batch(one, np.arange(2)) for one in (data, known(data, [0, 1])))
    assert vars(plain).keys() == vars(more).keys() and set(plain.context) == set(more.context) == {"place"}


def test_user_attributes_must_fit_their_users_and_their_vocabulary() -> None:
    data = make([(0, 0, 5)], num_users=2, num_items=1)
    with pytest.raises(DataError, match="user attribute age has 1 rows, there are 2 users"):
        known(data, [0])
    with pytest.raises(DataError, match=r"holds codes 0\.\.2, its vocabulary has 2 values"):
        known(data, [0, 2])


def test_fingerprints_tell_user_attributes_apart_unless_asked_for_what_models_see() -> None:
    data = make([(0, 0, 5), (1, 0, 3)], num_users=2, num_items=1)
    one, two = known(data, [0, 1]), known(data, [1, 1])
    assert len({each.fingerprint() for each in (data, one, two)}) == 3
    assert len({each.fingerprint(with_attributes=False) for each in (data, one, two)}) == 1


def test_fingerprints_tell_data_apart() -> None:
    rows = [(0, 0, 5), (0, 1, 9), (1, 2, 3)]
    assert make(rows, 2, 3).fingerprint() == make(rows, 2, 3).fingerprint()
    assert make(rows, 2, 3).fingerprint() != make(rows[:2], 2, 3).fingerprint()
    assert make(rows, 2, 3).fingerprint() != make([(0, 0, 6), *rows[1:]], 2, 3).fingerprint()


def test_wrong_columns_are_refused() -> None:
    one, two = Vocabulary(np.array([7])), np.array([0, 0])
    with pytest.raises(DataError, match="column items has 2 rows, users has 1"):
        Interactions(np.array([0]), two, one, one)
    with pytest.raises(DataError, match=r"users holds rows 0\.\.1, allowed are 0\.\.0"):
        Interactions(np.array([0, 1]), two, one, one)
    with pytest.raises(DataError, match="stands twice"):
        Vocabulary(np.array(["a", "a"]))
    with pytest.raises(DataError, match="titles has 2 rows, there are 1 items"):
        Catalogue(one, titles=["a", "b"])


def test_vocabularies_map_both_ways() -> None:
    vocabulary, rows = Vocabulary.of(np.array(["b", "a", "b"]))
    assert vocabulary.ids.tolist() == ["a", "b"] and rows.tolist() == [1, 0, 1]
    assert vocabulary.rows(np.array(["b", "x"])).tolist() == [1, -1]
