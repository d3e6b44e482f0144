"""Random interactions for property tests, and a few by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import strategies as st

from fedrec.data.interactions import Interactions, Vocabulary


def make(rows: Sequence[tuple[int, int, int]], num_users: int, num_items: int, times: bool = True) -> Interactions:
    """Return interactions of (user, item, time) rows; the rating of a row is its place in the order given."""
    columns = np.array(rows, dtype=np.int64).reshape(-1, 3)
    return Interactions(
        users=columns[:, 0],
        items=columns[:, 1],
        user_ids=Vocabulary(np.array([f"user {i}" for i in range(num_users)])),
        item_ids=Vocabulary(np.arange(num_items) * 10),
        times=columns[:, 2] if times else None,
        ratings=np.arange(len(columns), dtype=np.float32),
        context={"place": columns[:, 1] % 3},
        context_ids={"place": Vocabulary(np.array(["home", "way", "work"]))},
    )


@st.composite
def histories(draw: st.DrawFn, repeat: bool = False, times: bool | None = None) -> Interactions:
    """Draw small interactions; every user-item pair at most once unless `repeat`."""
    num_users, num_items = draw(st.integers(1, 6)), draw(st.integers(1, 8))
    pair = st.tuples(st.integers(0, num_users - 1), st.integers(0, num_items - 1))
    pairs = draw(st.lists(pair, max_size=40, unique=not repeat))
    stamps = draw(st.lists(st.integers(0, 6), min_size=len(pairs), max_size=len(pairs)))
    lowest = np.iinfo(np.int64).min
    rows = [(u, i, t if t else int(lowest)) for (u, i), t in zip(pairs, stamps, strict=True)]
    return make(rows, num_users, num_items, draw(st.booleans()) if times is None else times)


def ids(interactions: Interactions) -> set[int]:
    """Return the rows, each named by its rating (see `make`)."""
    assert interactions.ratings is not None
    return set(interactions.ratings.astype(int).tolist())
