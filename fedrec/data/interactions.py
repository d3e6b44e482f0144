"""Interactions: who met which item when, as columns of arrays, with the data's own ids kept in vocabularies."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import pandas as pd

from fedrec.errors import DataError

_CHUNK = 2**20


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """A one-to-one map between the data's own ids and row numbers 0..n-1.

    Args:
        ids: (n,) int64 or string array without duplicates; `ids[row]` is the id of a row.

    Raises:
        DataError: if an id stands twice.

    Example:
        >>> Vocabulary(np.array(["b", "a"])).rows(np.array(["a", "b", "x"]))
        array([ 1,  0, -1])
    """

    ids: np.ndarray

    def __post_init__(self) -> None:
        """Refuse duplicate ids."""
        if not self._index.is_unique:
            twice = self._index[self._index.duplicated()][0]
            raise DataError(f"id {twice!r} stands twice in a vocabulary; ids must be unique: merge the two rows")

    @cached_property
    def _index(self) -> pd.Index:
        return pd.Index(self.ids)

    def __len__(self) -> int:
        """Return the number of ids."""
        return len(self.ids)

    def rows(self, ids: np.ndarray) -> np.ndarray:
        """Return the (len(ids),) int64 row of each id, -1 where it is unknown."""
        return np.asarray(self._index.get_indexer(pd.Index(ids)), dtype=np.int64)

    @classmethod
    def of(cls, values: np.ndarray) -> tuple[Vocabulary, np.ndarray]:
        """Make the vocabulary of a column, ids sorted, and the column as (n,) int64 rows."""
        ids, rows = np.unique(values, return_inverse=True)
        return cls(ids), rows.astype(np.int64).reshape(-1)


@dataclass(frozen=True, eq=False)
class Interactions:
    """Interactions as columns, always sorted by user and, within a user, by time (ties keep the order given).

    Args:
        users: (n,) int64 row in `user_ids`.
        items: (n,) int64 row in `item_ids`.
        user_ids: vocabulary of all users; a user may have no interaction.
        item_ids: vocabulary of all items.
        times: (n,) int64 seconds, or None where the data has no time. Unknown single times are the lowest int64.
        ratings: (n,) float32, or None.
        context: name -> (n,) int64 code into `context_ids[name]`, or float32 for numeric fields.
        context_ids: name -> vocabulary, for categorical fields.
        user_attributes: name -> (num_users,) int64 code into `user_attribute_ids[name]`: facts about the users
            themselves, to tell evaluated groups apart. Batches do not carry them, so that no model can use them.
        user_attribute_ids: name -> vocabulary, public: the same on every node.

    Raises:
        DataError: on columns of different lengths or rows outside the vocabularies.
    """

    users: np.ndarray
    items: np.ndarray
    user_ids: Vocabulary
    item_ids: Vocabulary
    times: np.ndarray | None = None
    ratings: np.ndarray | None = None
    context: Mapping[str, np.ndarray] = field(default_factory=dict)
    context_ids: Mapping[str, Vocabulary] = field(default_factory=dict)
    user_attributes: Mapping[str, np.ndarray] = field(default_factory=dict)
    user_attribute_ids: Mapping[str, Vocabulary] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the columns and bring them into user and time order."""
        for name, column in self._columns().items():
            if len(column) != len(self.users):
                raise DataError(f"column {name} has {len(column)} rows, users has {len(self.users)}; they must agree")
        for name, rows, ids in (("users", self.users, self.user_ids), ("items", self.items, self.item_ids)):
            if len(rows) and (rows.min() < 0 or rows.max() >= len(ids)):
                raise DataError(f"{name} holds rows {rows.min()}..{rows.max()}, allowed are 0..{len(ids) - 1}")
        self._check_user_attributes()
        if not in_order(self.users, self.times):
            keys = (self.users,) if self.times is None else (self.times, self.users)
            sorted_self = self.take(np.lexsort(keys), check=False)
            for name in ("users", "items", "times", "ratings", "context"):
                object.__setattr__(self, name, getattr(sorted_self, name))

    def _check_user_attributes(self) -> None:
        for name, codes in self.user_attributes.items():
            num = len(self.user_attribute_ids[name]) if name in self.user_attribute_ids else 0
            if len(codes) != len(self.user_ids):
                raise DataError(f"user attribute {name} has {len(codes)} rows, there are {len(self.user_ids)} users")
            if len(codes) and (codes.min() < 0 or codes.max() >= num):
                raise DataError(
                    f"user attribute {name} holds codes {codes.min()}..{codes.max()}, its vocabulary has {num} values"
                )

    def _columns(self) -> dict[str, np.ndarray]:
        columns = {"users": self.users, "items": self.items, "times": self.times, "ratings": self.ratings}
        return {k: v for k, v in columns.items() if v is not None} | dict(self.context)

    def __len__(self) -> int:
        """Return the number of interactions."""
        return len(self.users)

    @property
    def num_users(self) -> int:
        """Return the number of users in the vocabulary."""
        return len(self.user_ids)

    @property
    def num_items(self) -> int:
        """Return the number of items in the vocabulary."""
        return len(self.item_ids)

    @property
    def context_fields(self) -> dict[str, int]:
        """Return name -> number of values of a categorical context field, 0 for a numeric one."""
        return {name: len(self.context_ids[name]) if name in self.context_ids else 0 for name in self.context}

    @cached_property
    def indptr(self) -> np.ndarray:
        """Return (num_users + 1,) int64: the interactions of user u are rows indptr[u]:indptr[u + 1]."""
        counts = np.bincount(self.users, minlength=self.num_users)
        return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)

    @cached_property
    def lengths(self) -> np.ndarray:
        """Return (num_users,) int64: how many interactions each user has."""
        return np.diff(self.indptr)

    def take(self, index: np.ndarray, check: bool = True) -> Interactions:
        """Return the rows of a boolean mask or index array; the vocabularies stay as they are."""
        columns = {
            "users": self.users[index],
            "items": self.items[index],
            "times": None if self.times is None else self.times[index],
            "ratings": None if self.ratings is None else self.ratings[index],
            "context": {name: column[index] for name, column in self.context.items()},
        }
        if check:
            return replace(self, **columns)
        taken = object.__new__(Interactions)
        for name in self.__dataclass_fields__:
            object.__setattr__(taken, name, columns.get(name, getattr(self, name)))
        return taken

    def of_users(self, rows: np.ndarray) -> Interactions:
        """Return the interactions of some users only, with a vocabulary of just those users, in the order of `rows`."""
        new_row = np.full(self.num_users, -1, dtype=np.int64)
        new_row[rows] = np.arange(len(rows))
        kept = self.take(new_row[self.users] >= 0, check=False)
        return replace(
            kept,
            users=new_row[kept.users],
            user_ids=Vocabulary(self.user_ids.ids[rows]),
            user_attributes={name: codes[rows] for name, codes in self.user_attributes.items()},
        )

    def fingerprint(self, with_attributes: bool = True) -> str:
        """Return a short hash of ids and columns: equal data has equal fingerprints.

        Args:
            with_attributes: tell data with different user attributes apart. Without, the hash is of what models are
                trained and served with.
        """
        digest = hashlib.blake2b(digest_size=8)
        for ids in (self.user_ids.ids, self.item_ids.ids):
            digest.update("\n".join(map(str, ids.tolist())).encode())
        for name, column in self._columns().items():
            digest.update(name.encode() + np.ascontiguousarray(column).tobytes())
        for name, codes in self.user_attributes.items() if with_attributes else ():
            values = self.user_attribute_ids[name].ids[codes].tolist()
            digest.update("\n".join(["user attribute", name, *map(str, values)]).encode())
        return digest.hexdigest()


def in_order(users: np.ndarray, times: np.ndarray | None) -> bool:
    """Return whether users ascend and, within a user, the times do; a bounded part is looked at, one after the other.

    Args:
        users: (n,) whole numbers.
        times: (n,) whole numbers, or None.
    """
    for start in range(0, len(users), _CHUNK):
        part = slice(start, start + _CHUNK + 1)
        before, after = users[part][:-1], users[part][1:]
        if (before > after).any():
            return False
        if times is not None and ((times[part][:-1] > times[part][1:]) & (before == after)).any():
            return False
    return True


def deduplicate(interactions: Interactions) -> Interactions:
    """Keep the latest interaction of every user-item pair (ties: the last in file order)."""
    pair = interactions.users * interactions.num_items + interactions.items
    _, last_from_end = np.unique(pair[::-1], return_index=True)
    return interactions.take(np.sort(len(pair) - 1 - last_from_end))
