"""A small world with everything that towers read: times, ratings, a category and a number as context, some unknown."""

from __future__ import annotations

import numpy as np

from fedrec.data.batches import UserBatch, make_batch
from fedrec.data.catalogue import Catalogue
from fedrec.data.interactions import Interactions, Vocabulary
from fedrec.randomness import user_keys

FIELDS = {"place": 3, "heat": 0}


def rich_world(lengths: list[int], num_items: int = 12, seed: int = 0) -> Interactions:
    """Return users with histories of these lengths, drawn uniformly, with repeats."""
    draws, num = np.random.default_rng(seed), sum(lengths)
    heat = draws.normal(size=num).astype(np.float32)
    heat[draws.random(num) < 0.2] = np.nan
    return Interactions(
        users=np.repeat(np.arange(len(lengths)), lengths),
        items=draws.integers(0, num_items, num),
        user_ids=Vocabulary(np.arange(len(lengths)) + 100),
        item_ids=Vocabulary(np.arange(num_items)),
        times=np.sort(draws.integers(0, 10**7, num)),
        ratings=draws.integers(1, 6, num).astype(np.float32),
        context={"place": draws.integers(-1, 3, num), "heat": heat},
        context_ids={"place": Vocabulary(np.array(["home", "work", "way"]))},
    )


def batch_of(interactions: Interactions, rows: list[int] | None = None) -> UserBatch:
    """Return some users, or all of them, in one batch."""
    wanted = np.arange(interactions.num_users) if rows is None else np.array(rows, dtype=np.int64)
    return make_batch(interactions, wanted, user_keys(interactions.user_ids.ids))


def catalogue_of(interactions: Interactions) -> Catalogue:
    """Return the items, and which context fields there are."""
    return Catalogue(interactions.item_ids, context_fields=interactions.context_fields)
