"""Splits: nothing leaks, every row has one place, and each protocol does what it says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrec.data.interactions import Interactions, Vocabulary
from fedrec.data.splits import SPLITS, Split, cold_items, cold_users, leave_one_out, split, temporal
from fedrec.errors import ConfigError, DataError
from fedrec.randomness import Key
from tests.data.histories import histories, ids, make

KEY = Key.from_seed(0)
FAST = settings(max_examples=150, deadline=None)


def try_split(name: str, data: Interactions, **options: object) -> Split | None:
    """Split, or return None where nobody can be evaluated or times are missing."""
    try:
        return split(name, data, KEY, **options)  # type: ignore[arg-type]
    except DataError:
        return None


def pairs(data: Interactions) -> set[tuple[int, int]]:
    return set(zip(data.users.tolist(), data.items.tolist(), strict=True))


@pytest.mark.parametrize("name", SPLITS)
@given(data=histories(), share=st.sampled_from([0.1, 0.5, 0.9]))
@FAST
def test_every_row_has_at_most_one_place_and_no_target_leaks(name: str, data: Interactions, share: float) -> None:
    parts = try_split(name, data, share=share, validation_share=0.2, test_share=0.3)
    if parts is None:
        return
    found = [ids(part) for part in (parts.train, parts.validation, parts.test, parts.served)]
    assert sum(map(len, found)) == len(set().union(*found)) <= len(data)
    known = pairs(parts.train) | pairs(parts.served)
    assert not known & pairs(parts.test)
    assert not pairs(parts.train) & pairs(parts.validation)
    assert not pairs(parts.validation) & pairs(parts.test)
    if name in ("leave_one_out", "cold_users"):
        assert len(set().union(*found)) == len(data)
    for part in (parts.train, parts.validation, parts.test, parts.served):
        assert part.user_ids is data.user_ids and part.item_ids is data.item_ids
        assert np.array_equal(np.lexsort((part.users,)), np.arange(len(part)))


@pytest.mark.parametrize("name", SPLITS)
@given(data=histories(repeat=True))
@FAST
def test_history_is_all_that_a_device_knows_in_order(name: str, data: Interactions) -> None:
    parts = try_split(name, data, repeat=True)
    if parts is None:
        return
    assert ids(parts.history) == ids(parts.train) | ids(parts.validation) | ids(parts.served)
    assert not ids(parts.history) & ids(parts.test)
    if parts.history.times is not None:
        same_user = parts.history.users[1:] == parts.history.users[:-1]
        assert (np.diff(parts.history.times.astype(float))[same_user] >= 0).all()


@pytest.mark.parametrize("name", SPLITS)
@given(data=histories())
@settings(max_examples=50, deadline=None)
def test_a_split_is_a_function_of_data_and_key(name: str, data: Interactions) -> None:
    one, two = try_split(name, data), try_split(name, data)
    assert (one is None) == (two is None)
    if one is not None and two is not None:
        assert ids(one.test) == ids(two.test) and ids(one.train) == ids(two.train)


def test_leave_one_out_takes_the_last_two_of_each_user() -> None:
    data = make([(0, 0, 30), (0, 1, 10), (0, 2, 20), (1, 0, 5), (1, 1, 6), (2, 3, 1), (2, 2, 1), (2, 1, 1)], 3, 4)
    parts = leave_one_out(data, KEY)
    assert pairs(parts.test) == {(0, 0), (2, 1)}
    assert pairs(parts.validation) == {(0, 2), (2, 2)}
    assert pairs(parts.train) == {(0, 1), (1, 0), (1, 1), (2, 3)}
    assert len(parts.served) == 0 and parts.candidates is None


def test_unknown_times_come_first() -> None:
    unknown = int(np.iinfo(np.int64).min)
    parts = leave_one_out(make([(0, 0, 7), (0, 1, unknown), (0, 2, 3), (0, 3, unknown)], 1, 4), KEY)
    assert pairs(parts.test) == {(0, 0)} and pairs(parts.validation) == {(0, 2)}


def test_without_times_the_draw_of_a_user_depends_on_key_and_id_alone() -> None:
    rows = [(user, item, 0) for user in range(50) for item in range(8)]
    data = make(rows, 50, 8, times=False)
    parts = leave_one_out(data, KEY)
    assert len(parts.test) == len(parts.validation) == 50
    some = np.array([40, 3, 17])
    alone = leave_one_out(data.of_users(some), KEY)
    of_user = dict(zip(parts.test.users.tolist(), parts.test.items.tolist(), strict=True))
    assert alone.test.items[np.argsort(alone.test.users)].tolist() == [of_user[user] for user in some.tolist()]
    assert len(set(of_user.values())) == 8
    assert leave_one_out(data, Key.from_seed(1)).test.items.tolist() != parts.test.items.tolist()


def test_random_targets_are_uniform_over_rows() -> None:
    rows = [(user, item, 0) for user in range(4000) for item in range(4)]
    parts = leave_one_out(make(rows, 4000, 4, times=False), KEY)
    for part in (parts.test, parts.validation):
        assert np.abs(np.bincount(part.items, minlength=4) / 4000 - 0.25).max() < 0.03
    together = np.bincount(parts.test.items * 4 + parts.validation.items, minlength=16).reshape(4, 4)
    assert (np.diag(together) == 0).all() and together[~np.eye(4, dtype=bool)].min() > 250


@pytest.mark.parametrize("name", ["leave_one_out", "cold_items", "cold_users"])
def test_nobody_with_three_interactions_is_a_bad_input(name: str) -> None:
    with pytest.raises(DataError, match="no user can be evaluated: the longest of 2 histories has 2 interactions"):
        split(name, make([(0, 0, 1), (0, 1, 2), (1, 0, 3)], 2, 2), KEY)


def test_temporal_cuts_everybody_at_one_moment() -> None:
    rows = [(user, item, 10 * item + user) for user in range(5) for item in range(10)]
    data = make(rows, 5, 10)
    parts = temporal(data, 0.2, 0.2)
    assert parts.train.times is not None and parts.validation.times is not None and parts.test.times is not None
    assert parts.train.times.max() < parts.validation.times.min() <= parts.validation.times.max()
    assert parts.validation.times.max() < parts.test.times.min()
    assert (len(parts.train), len(parts.validation), len(parts.test)) == (30, 10, 10)


def test_temporal_keeps_rows_of_one_second_together() -> None:
    parts = temporal(make([(0, i, 1 if i < 5 else 2) for i in range(10)], 1, 10), 0.3, 0.2)
    assert len(parts.train) == 5 and len(parts.validation) == 0 and len(parts.test) == 5


def test_temporal_targets_are_first_meetings_of_users_with_training_rows() -> None:
    early = [(0, 0, 1), (0, 1, 2), (0, 2, 3), (0, 3, 4), (0, 4, 5), (0, 5, 6)]
    late = [(0, 0, 7), (1, 0, 7), (0, 6, 8), (0, 6, 9), (1, 1, 9), (0, 6, 10), (0, 1, 10), (0, 7, 10)]
    data = make(early + late, 2, 8)
    parts = temporal(data, 0.28, 0.2)
    assert ids(parts.train) == set(range(6))
    assert ids(parts.validation) == {8}  # user 1 is new, item 0 is known, the second meeting with item 6 is no first
    assert ids(parts.test) == {13}
    again = temporal(data, 0.28, 0.2, repeat=True)
    assert ids(again.validation) == {6, 8, 9} and ids(again.test) == {11, 12, 13}


def test_temporal_trains_on_unknown_times() -> None:
    unknown = int(np.iinfo(np.int64).min)
    rows = [(0, i, unknown) for i in range(50)] + [(0, 50 + i, i) for i in range(10)]
    parts = temporal(make(rows, 1, 60), 0.1, 0.1)
    assert (len(parts.train), len(parts.validation), len(parts.test)) == (58, 1, 1)


def test_temporal_needs_times_and_sensible_shares() -> None:
    with pytest.raises(DataError, match="needs times"):
        temporal(make([(0, 0, 0)] * 5, 1, 1, times=False))
    with pytest.raises(ConfigError, match=r"test_share=1\.5 is not in \(0, 1\)"):
        temporal(make([(0, 0, 0)], 1, 1), 0.1, 1.5)
    with pytest.raises(ConfigError, match="nothing to train on"):
        temporal(make([(0, 0, 0)], 1, 1), 0.5, 0.5)


@given(data=histories(), share=st.sampled_from([0.1, 0.3, 0.6]))
@FAST
def test_cold_items_are_trained_on_by_nobody_and_alone_ranked(data: Interactions, share: float) -> None:
    parts = try_split("cold_items", data, share=share)
    if parts is None:
        return
    assert parts.candidates is not None and parts.candidates.sum() == max(1, round(share * data.num_items))
    assert not parts.candidates[parts.train.items].any() and not parts.candidates[parts.validation.items].any()
    assert parts.candidates[parts.test.items].all()
    assert np.bincount(parts.test.users, minlength=1).max() == 1
    assert np.isin(parts.test.users, parts.train.users).all()
    assert len(parts.served) == 0


def test_cold_items_tests_the_latest_of_each_user() -> None:
    rows = [(user, item, 100 - item) for user in range(20) for item in range(10)]
    parts = cold_items(make(rows, 20, 10), KEY, 0.3)
    assert parts.candidates is not None
    cold = np.flatnonzero(parts.candidates)
    assert (parts.test.items == cold.min()).all() and len(parts.test) == 20  # the smallest item is the latest
    assert (parts.validation.items == np.setdiff1d(np.arange(10), cold).min()).all()
    assert len(parts.train) == 20 * 6


@given(data=histories(), share=st.sampled_from([0.1, 0.5, 0.9]))
@FAST
def test_cold_users_train_nothing_and_are_served_from_their_past(data: Interactions, share: float) -> None:
    parts = try_split("cold_users", data, share=share)
    if parts is None:
        return
    cold = set(parts.test.users.tolist())
    enough = data.lengths >= 3
    assert len(cold) == min(max(1, round(share * enough.sum())), enough.sum())
    assert cold == set(parts.served.users.tolist())
    assert not cold & set(parts.train.users.tolist()) and not cold & set(parts.validation.users.tolist())
    warm = set(np.flatnonzero(enough).tolist()) - cold
    assert set(parts.validation.users.tolist()) == warm
    if data.times is not None and parts.test.times is not None and parts.served.times is not None:
        for user, time in zip(parts.test.users, parts.test.times, strict=True):
            assert (parts.served.times[parts.served.users == user] <= time).all()


def test_which_users_are_cold_depends_on_key_and_ids() -> None:
    rows = [(user, item, item) for user in range(40) for item in range(4)]
    data = make(rows, 40, 4)
    one = cold_users(data, KEY, 0.25)
    assert len(one.test) == 10
    assert set(cold_users(data, Key.from_seed(1), 0.25).test.users.tolist()) != set(one.test.users.tolist())
    turned = data.of_users(np.arange(40)[::-1])
    assert set((39 - cold_users(turned, KEY, 0.25).test.users).tolist()) == set(one.test.users.tolist())


def test_unknown_protocols_are_config_errors() -> None:
    with pytest.raises(ConfigError, match=r"did you mean leave_one_out\?"):
        split("leave-one-out", make([(0, 0, 0)], 1, 1), KEY)
    with pytest.raises(ConfigError, match=r"share=0 is not in \(0, 1\)"):
        split("cold_users", make([(0, 0, 0)], 1, 1), KEY, share=0)


def test_no_interaction_at_all_is_a_bad_input() -> None:
    nothing = np.empty(0, dtype=np.int64)
    nobody = Interactions(nothing, nothing, Vocabulary(nothing), Vocabulary(nothing))
    for name in ("leave_one_out", "cold_items", "cold_users"):
        with pytest.raises(DataError):
            split(name, nobody, KEY)
