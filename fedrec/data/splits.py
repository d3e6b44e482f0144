"""Splits: what is trained on, what is predicted, and what a device knows only when it is served."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from fedrec.data.interactions import Interactions
from fedrec.data.reading.problems import nearest
from fedrec.data.reading.times import UNKNOWN_TIME
from fedrec.errors import ConfigError, DataError
from fedrec.randomness import Key, user_keys

MIN_EVALUATED = 3
"""Users with fewer interactions train but are not evaluated."""


@dataclass(frozen=True, eq=False)
class Split:
    """Interactions spread over their roles; every row is in at most one, and all share the vocabularies.

    Args:
        train: what shared parameters may learn from.
        validation: the targets that models are chosen by.
        test: the targets that are reported; one a user, except under `temporal`.
        served: history that lies on a device at test time only and was never trained on (cold users).
        candidates: (num_items,) bool, the items that may be ranked at test; None = all.
    """

    train: Interactions
    validation: Interactions
    test: Interactions
    served: Interactions
    candidates: np.ndarray | None = None

    @cached_property
    def history(self) -> Interactions:
        """Return what a device knows at test time: train, validation and served rows, in order."""
        return concatenate(self.train, self.validation, self.served)


def concatenate(*parts: Interactions) -> Interactions:
    """Join interactions that share their vocabularies; within a user by time, ties in the order of the parts."""
    first = parts[0]

    def joined(columns: list[np.ndarray | None]) -> np.ndarray | None:
        return None if columns[0] is None else np.concatenate([c for c in columns if c is not None])

    return replace(
        first,
        users=np.concatenate([part.users for part in parts]),
        items=np.concatenate([part.items for part in parts]),
        times=joined([part.times for part in parts]),
        ratings=joined([part.ratings for part in parts]),
        context={name: np.concatenate([part.context[name] for part in parts]) for name in first.context},
    )


def _has_times(interactions: Interactions) -> bool:
    return interactions.times is not None and bool((interactions.times != UNKNOWN_TIME).any())


def _split(
    interactions: Interactions,
    train: np.ndarray,
    validation: np.ndarray,
    test: np.ndarray,
    served: np.ndarray | None = None,
    candidates: np.ndarray | None = None,
) -> Split:
    """Take the rows of (n,) bool masks."""
    if not test.any():
        longest = int(interactions.lengths.max(initial=0))
        raise DataError(
            f"no user can be evaluated: the longest of {interactions.num_users} histories has {longest} interactions, "
            f"at least {MIN_EVALUATED} are needed (and some before the cut or held out); give more data"
        )
    served = np.zeros(len(interactions), dtype=bool) if served is None else served
    return Split(
        train=interactions.take(train, check=False),
        validation=interactions.take(validation, check=False),
        test=interactions.take(test, check=False),
        served=interactions.take(served, check=False),
        candidates=candidates,
    )


def _rank_from_end(interactions: Interactions, key: Key) -> np.ndarray:
    """Return (n,) int64: 0 for the row of a user that is held out first, 1 for the next; the others more.

    That is the order of time, last first; without any times two random rows of each user come first.
    """
    last = interactions.indptr[1:] - 1
    rank: np.ndarray = last[interactions.users] - np.arange(len(interactions))
    if _has_times(interactions):
        return rank
    lengths = interactions.lengths
    draws = key.fold("leave-one-out").user_uniforms(user_keys(interactions.user_ids.ids), 2)
    first = np.minimum((draws[:, 0] * lengths).astype(np.int64), lengths - 1)
    second = np.minimum((draws[:, 1] * (lengths - 1)).astype(np.int64), lengths - 2)
    second += second >= first  # uniform over the rows that are not the first
    rank = rank + 2
    rank[interactions.indptr[:-1][lengths > 0] + first[lengths > 0]] = 0
    rank[interactions.indptr[:-1][lengths > 1] + second[lengths > 1]] = 1
    return rank


def leave_one_out(interactions: Interactions, key: Key) -> Split:
    """Hold out each user's last interaction as test and the second last as validation.

    Ties keep file order; unknown times come first. Without times both are drawn at random for each user, from the key
    and the user's id alone. Users with fewer than 3 interactions only train.

    Raises:
        DataError: where no user has 3 interactions.
    """
    rank = _rank_from_end(interactions, key)
    enough = (interactions.lengths >= MIN_EVALUATED)[interactions.users]
    test, validation = enough & (rank == 0), enough & (rank == 1)
    return _split(interactions, ~(test | validation), validation, test)


def temporal(
    interactions: Interactions, validation_share: float = 0.1, test_share: float = 0.1, repeat: bool = False
) -> Split:
    """Cut all interactions at two moments: before the first is training, then validation, then test.

    Rows of one second stay together, so the shares are met as nearly as ties allow; unknown times train. Targets are
    the rows after a cut of users with at least one training row and, unless `repeat`, of items that the user meets
    for the first time (where repeated pairs were merged before, a pair stands at its latest time, wherever it was met
    first). The other rows after the first cut are in no part: training on them would look ahead.

    Args:
        interactions: with times.
        validation_share: share of the rows between the cuts, in (0, 1).
        test_share: share of the rows after the second cut, in (0, 1).
        repeat: whether items that the user has met before are targets too.

    Raises:
        ConfigError: on shares outside (0, 1), or that leave nothing to train on.
        DataError: without times, or where nobody can be evaluated.
    """
    for name, share in (("validation_share", validation_share), ("test_share", test_share)):
        _check_share(name, share)
    if validation_share + test_share >= 1:
        total = validation_share + test_share
        raise ConfigError(f"validation_share + test_share = {total} leaves nothing to train on; it must be below 1")
    if interactions.times is None or not _has_times(interactions):
        raise DataError("the temporal split needs times and this data has none; use leave_one_out, or name a timestamp")
    ordered = np.sort(interactions.times[interactions.times != UNKNOWN_TIME])
    num_before = [round(len(ordered) * share) for share in (1 - validation_share - test_share, 1 - test_share)]
    first_cut, second_cut = ordered[np.minimum(num_before, len(ordered) - 1)]
    train = interactions.times < first_cut
    after = interactions.times >= second_cut
    target = ~train & (np.bincount(interactions.users[train], minlength=interactions.num_users) > 0)[interactions.users]
    if not repeat:
        target &= _first_meetings(interactions)
    return _split(interactions, train, target & ~after, target & after)


def _first_meetings(interactions: Interactions) -> np.ndarray:
    """Return (n,) bool: the first row of each user-item pair."""
    pairs = interactions.users * interactions.num_items + interactions.items
    first = np.zeros(len(pairs), dtype=bool)
    first[np.unique(pairs, return_index=True)[1]] = True
    return first


def cold_items(interactions: Interactions, key: Key, share: float = 0.1) -> Split:
    """Hold out items: nobody trains on them, and only they are ranked at test.

    Test is each user's latest interaction with a cold item; that user's other cold interactions are in no part, as
    they would make the items warm. Validation is the latest warm interaction, so models are chosen by warm items: the
    cold ones stay unseen. Users with fewer than 3 interactions, or without a training row left, are not evaluated.

    Args:
        interactions: all interactions.
        key: decides which items are cold, from their ids alone.
        share: share of the items, in (0, 1); at least one item.

    Raises:
        ConfigError: on a share outside (0, 1).
        DataError: where nobody can be evaluated.
    """
    _check_share("share", share)
    candidates = _drawn(interactions.item_ids.ids, key.fold("cold-items"), share, np.ones(interactions.num_items, bool))
    cold = candidates[interactions.items]
    warm_rows, cold_rows = np.flatnonzero(~cold), np.flatnonzero(cold)
    enough = interactions.lengths >= MIN_EVALUATED

    def latest(rows: np.ndarray, at_least: int) -> np.ndarray:
        """Return (n,) bool: of these rows the first to be held out, for users with enough of them."""
        some = interactions.take(rows, check=False)
        long = enough & (some.lengths >= at_least)
        chosen = np.zeros(len(interactions), dtype=bool)
        chosen[rows[(_rank_from_end(some, key) == 0) & long[some.users]]] = True
        return chosen

    validation, test = latest(warm_rows, 2), latest(cold_rows, 1)
    train = ~cold & ~validation
    trained = np.bincount(interactions.users[train], minlength=interactions.num_users) > 0
    return _split(interactions, train, validation, test & trained[interactions.users], candidates=candidates)


def cold_users(interactions: Interactions, key: Key, share: float = 0.1) -> Split:
    """Hold out users: nothing of them trains; their devices are served from all but their last interaction, the test.

    The other users train on all but their last interaction, which is validation.

    Args:
        interactions: all interactions.
        key: decides which users are cold, from their ids alone.
        share: share of the users with at least 3 interactions, in (0, 1); at least one user.

    Raises:
        ConfigError: on a share outside (0, 1).
        DataError: where no user has 3 interactions.
    """
    _check_share("share", share)
    enough = interactions.lengths >= MIN_EVALUATED
    cold = _drawn(interactions.user_ids.ids, key.fold("cold-users"), share, enough)[interactions.users]
    last = (_rank_from_end(interactions, key) == 0) & enough[interactions.users]
    return _split(interactions, ~cold & ~last, ~cold & last, cold & last, served=cold & ~last)


def _drawn(ids: np.ndarray, key: Key, share: float, allowed: np.ndarray) -> np.ndarray:
    """Return (len(ids),) bool: `share` of the allowed ids, at least one; a draw depends on the key and the id alone."""
    draws = np.where(allowed, key.user_uniforms(user_keys(ids))[:, 0], np.inf)
    num = min(max(1, round(share * int(allowed.sum()))), int(allowed.sum()))
    drawn = np.zeros(len(ids), dtype=bool)
    drawn[np.argsort(draws, kind="stable")[:num]] = True
    return drawn


def _check_share(name: str, share: float) -> None:
    if not 0 < share < 1:
        raise ConfigError(f"{name}={share} is not in (0, 1); it is the share of the data to hold out")


@dataclass(frozen=True)
class _Options:
    share: float
    validation_share: float
    test_share: float
    repeat: bool


SPLITS: Mapping[str, Callable[[Interactions, Key, _Options], Split]] = {
    "leave_one_out": lambda data, key, options: leave_one_out(data, key),
    "temporal": lambda data, key, options: temporal(data, options.validation_share, options.test_share, options.repeat),
    "cold_items": lambda data, key, options: cold_items(data, key, options.share),
    "cold_users": lambda data, key, options: cold_users(data, key, options.share),
}


def split(
    name: str,
    interactions: Interactions,
    key: Key,
    share: float = 0.1,
    validation_share: float = 0.1,
    test_share: float = 0.1,
    repeat: bool = False,
) -> Split:
    """Split by the name of the protocol.

    Args:
        name: one of `SPLITS`.
        interactions: all interactions.
        key: randomness of the splits that need any.
        share: for cold_items and cold_users.
        validation_share: for temporal.
        test_share: for temporal.
        repeat: for temporal: whether items met before are targets.

    Raises:
        ConfigError: on an unknown name or a share that is not allowed.
        DataError: where nobody can be evaluated.
    """
    if name not in SPLITS:
        hint = nearest(str(name), SPLITS)
        raise ConfigError(
            f"evaluation.protocol={name!r} is unknown; allowed are {', '.join(SPLITS)}"
            + (f"; did you mean {hint}?" if hint else "; choose one of them")
        )
    return SPLITS[name](interactions, key, _Options(share, validation_share, test_share, repeat))
