"""The generator: which items users meet, chunk by chunk, the same for every size of chunk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from fedrec.data.catalogue import Dataset
from fedrec.data.interactions import Interactions, Vocabulary
from fedrec.data.synthetic.config import SyntheticConfig
from fedrec.data.synthetic.context_taste import NUM_CONTEXTS, class_weights, user_groups
from fedrec.data.synthetic.items import Items, make_catalogue, make_items
from fedrec.data.synthetic.people import (
    DAYTIMES,
    DEVICES,
    FIRST_SECOND,
    YEAR,
    Visits,
    interests,
    make_visits,
)
from fedrec.randomness import Key

_BLOCK_EVENTS = 500_000
_TRIES_IN_CLASS = 4
_TRIES_BY_POPULARITY = 8


@dataclass(frozen=True, eq=False)
class Chunk:
    """The interactions of some users in a row, sorted by user and time.

    Args:
        users: (n,) int64 user numbers.
        items: (n,) int64 item numbers.
        times: (n,) int64 unix seconds.
        context: "daytime" -> (n,) int64 code into `DAYTIMES`, "device" -> into `DEVICES`.
        ratings: None: the synthetic world has none.
    """

    users: np.ndarray
    items: np.ndarray
    times: np.ndarray
    context: Mapping[str, np.ndarray]
    ratings: np.ndarray | None = None


def generate(config: SyntheticConfig, key: Key) -> Dataset:
    """Generate a whole data set in memory.

    Args:
        config: what the world is like.
        key: its randomness; what a user does follows from the key and the user's number.
    """
    chunk = _join(list(stream(config, key, config.num_users)))
    items = make_items(config, key)
    interactions = Interactions(
        users=chunk.users,
        items=chunk.items,
        user_ids=Vocabulary(np.arange(config.num_users)),
        item_ids=Vocabulary(np.arange(config.num_items)),
        times=chunk.times,
        context=chunk.context,
        context_ids={"daytime": Vocabulary(np.array(DAYTIMES)), "device": Vocabulary(np.array(DEVICES))},
    )
    return Dataset("synthetic", interactions, make_catalogue(config, key, items))


def stream(config: SyntheticConfig, key: Key, chunk_users: int = 50_000) -> Iterator[Chunk]:
    """Generate the interactions of `chunk_users` users at a time; joined they are those of `generate`."""
    items = make_items(config, key)
    block = max(1, int(_BLOCK_EVENTS / config.mean_interactions))
    for start in range(0, config.num_users, chunk_users):
        stop = min(start + chunk_users, config.num_users)
        blocks = [(first, min(first + block, stop)) for first in range(start, stop, block)]
        yield _join([_chunk(config, key, items, first, last) for first, last in blocks])


def write_parquet(config: SyntheticConfig, key: Key, path: str | Path) -> None:
    """Write the interactions to a Parquet file in bounded memory, one row group for each block of users.

    Columns: user, item, timestamp, daytime, device; read them with `context = ["daytime", "device"]`.
    """
    text = pa.dictionary(pa.int8(), pa.string())
    schema = pa.schema(
        [("user", pa.int64()), ("item", pa.int64()), ("timestamp", pa.int64()), ("daytime", text), ("device", text)]
    )
    with pyarrow.parquet.ParquetWriter(str(path), schema, compression="zstd") as writer:
        for chunk in stream(config, key, max(1, int(2 * _BLOCK_EVENTS / config.mean_interactions))):
            named = {
                name: pa.DictionaryArray.from_arrays(pa.array(chunk.context[name].astype(np.int8)), pa.array(words))
                for name, words in (("daytime", DAYTIMES), ("device", DEVICES))
            }
            columns = [pa.array(chunk.users), pa.array(chunk.items), pa.array(chunk.times), *named.values()]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))


def _join(chunks: list[Chunk]) -> Chunk:
    if len(chunks) == 1:
        return chunks[0]
    return Chunk(
        users=np.concatenate([chunk.users for chunk in chunks]),
        items=np.concatenate([chunk.items for chunk in chunks]),
        times=np.concatenate([chunk.times for chunk in chunks]),
        context={name: np.concatenate([chunk.context[name] for chunk in chunks]) for name in chunks[0].context},
    )


def _chunk(config: SyntheticConfig, key: Key, items: Items, start: int, stop: int) -> Chunk:
    users = np.arange(start, stop, dtype=np.uint64)
    visits = make_visits(config, key, users)
    classes = _classes(config, key, items, users, visits)
    met = _distinct_items(config, key, items, visits, classes)
    order = np.argsort((visits.users << 32) + (visits.times - FIRST_SECOND), kind="stable")
    return Chunk(
        users=(start + visits.users)[order],
        items=met[order],
        times=visits.times[order],
        context={"daytime": visits.daytimes[order], "device": visits.devices[order]},
    )


def _classes(config: SyntheticConfig, key: Key, items: Items, users: np.ndarray, visits: Visits) -> np.ndarray:
    """Return (n,) int64: the class wanted in each slot, -1 where only popularity decides.

    Interests stand in a row, and a window of `num_interests` moves along it with time; a slot wants an interest drawn
    uniformly from the window, so taste walks slowly.
    """
    draws = key.fold("choices").user_uniforms(visits.keys, 2)
    phase = key.fold("phase").user_uniforms(users)[:, 0]
    moved = phase[visits.users] + config.drift * (visits.times - FIRST_SECOND) / YEAR
    row = interests(config, key, items, users)
    index = np.minimum((moved + config.num_interests * draws[:, 1]).astype(np.int64), row.shape[1] - 1)
    wanted = row[visits.users, index]
    groups = user_groups(config, key, users)[visits.users]
    context = groups * NUM_CONTEXTS + visits.daytimes * len(DEVICES) + visits.devices
    table = _context_classes(config, key)
    position = np.searchsorted(table, context + draws[:, 1], side="right")
    by_context = np.minimum(position - context * config.num_classes, config.num_classes - 1)
    wanted = np.where(draws[:, 0] < config.noise_share + config.context_share, by_context, wanted)
    return np.where(draws[:, 0] < config.noise_share, -1, wanted)


def _context_classes(config: SyntheticConfig, key: Key) -> np.ndarray:
    """Return (groups x contexts x num_classes,) float64 increasing: number of the context + share of classes up to one.

    Contexts of one group come after those of the other, see `class_weights`.
    """
    weights = class_weights(config, key)
    shares = np.cumsum(weights, axis=-1) / weights.sum(axis=-1, keepdims=True)
    numbers = np.arange(config.num_groups * NUM_CONTEXTS)[:, None]
    return np.asarray(shares.reshape(len(numbers), -1) + numbers).reshape(-1)


def _distinct_items(config: SyntheticConfig, key: Key, items: Items, visits: Visits, classes: np.ndarray) -> np.ndarray:
    """Draw an item for each slot, none twice for a user; a later slot that repeats an earlier one draws again.

    The first draws are by popularity within the class, the next by popularity alone, the last ones uniform: they end,
    because no user meets more than half of the items.
    """
    met = np.zeros(len(classes), dtype=np.int64)
    open_slots = np.arange(len(classes))
    taken = np.empty(0, dtype=np.int64)
    attempt = 0
    while len(open_slots):
        draws = key.fold("item", attempt).user_uniforms(visits.keys[open_slots])[:, 0]
        if attempt >= _TRIES_BY_POPULARITY:
            drawn = (draws * config.num_items).astype(np.int64)
        elif attempt >= _TRIES_IN_CLASS:
            drawn = items.of_all(draws)
        else:
            wanted = classes[open_slots]
            drawn = np.where(wanted < 0, items.of_all(draws), items.of_class(np.maximum(wanted, 0), draws))
        pairs = visits.users[open_slots] * config.num_items + drawn
        fresh = _first_of_each(pairs) & ~_contains(taken, pairs)
        met[open_slots[fresh]] = drawn[fresh]
        taken = np.sort(np.concatenate([taken, pairs[fresh]]), kind="stable")
        open_slots = open_slots[~fresh]
        attempt += 1
    return met


def _first_of_each(pairs: np.ndarray) -> np.ndarray:
    """Return (n,) bool: the first row of each value."""
    order = np.argsort(pairs, kind="stable")
    ordered = pairs[order]
    first = np.ones(len(pairs), dtype=bool)
    first[order[1:]] = ordered[1:] != ordered[:-1]
    return first


def _contains(ordered: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return (n,) bool: which values stand in a sorted array."""
    if not len(ordered):
        return np.zeros(len(values), dtype=bool)
    at = np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)
    return np.asarray(ordered[at] == values)
