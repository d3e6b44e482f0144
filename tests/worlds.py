"""Small worlds whose right answer is known."""

from __future__ import annotations

import numpy as np

from fedrec.data.catalogue import Catalogue
from fedrec.data.interactions import Interactions, Vocabulary
from fedrec.data.splits import Split, leave_one_out
from fedrec.randomness import Key


def make(pairs: list[tuple[int, int]], num_users: int, num_items: int, times: bool = True) -> Interactions:
    """Return interactions of (user, item) pairs, in the order given, with ratings of 1 to 5 stars."""
    users, items = (
        (np.array(column, dtype=np.int64) for column in zip(*pairs, strict=True))
        if pairs
        else (
            np.zeros(0, dtype=np.int64),
            np.zeros(0, dtype=np.int64),
        )
    )
    stamps = np.arange(len(pairs), dtype=np.int64) if times else None
    ratings = (1 + (users + items) % 5).astype(np.float32)
    ids = Vocabulary(np.arange(num_users)), Vocabulary(np.arange(num_items))
    return Interactions(users, items, *ids, times=stamps, ratings=ratings)


def checkerboard(num_users: int = 40, num_items: int = 20, times: bool = True) -> tuple[Split, Catalogue]:
    """Even users met all even items but one, odd users all odd ones: the missing one is what each should get next.

    The last two items of each user (a rotation) are the validation and test targets, so once they are held out, the
    only items of a user's own colour that were not met are those targets.
    """
    pairs = []
    for user in range(num_users):
        own = [item for item in range(num_items) if item % 2 == user % 2]
        shift = (user // 2) % len(own)
        pairs += [(user, item) for item in own[shift:] + own[:shift]]
    interactions = make(pairs, num_users, num_items, times)
    colours = np.zeros((num_items, 2), dtype=bool)
    colours[np.arange(num_items), np.arange(num_items) % 2] = True
    catalogue = Catalogue(interactions.item_ids, categories=colours, category_names=("even", "odd"))
    return leave_one_out(interactions, Key.from_seed(0)), catalogue


def random_world(num_users: int, num_items: int, seed: int = 0, max_length: int = 12) -> Interactions:
    """Users with random histories without repeats, of random length (from 0)."""
    rng = np.random.default_rng(seed)
    pairs = []
    for user in range(num_users):
        length = int(rng.integers(0, min(max_length, num_items) + 1))
        pairs += [(user, int(item)) for item in rng.choice(num_items, size=length, replace=False)]
    return make(pairs, num_users, num_items)
