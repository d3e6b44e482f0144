"""Queries: the context that a list is wanted in, for every user of a node."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping

import numpy as np

from fedrec.data.interactions import Interactions, Vocabulary
from fedrec.data.reading.problems import nearest
from fedrec.data.reading.values import UNKNOWN_CATEGORY
from fedrec.errors import ConfigError

_LOG = logging.getLogger(__name__)

Queries = Mapping[str, np.ndarray]
"""Field -> (num_users,) int64 codes, -1 where unknown, or float32 values, NaN where unknown."""


def turns(held_out: Interactions) -> Iterator[Interactions]:
    """Go through held-out interactions so that each part has one query a user.

    Without context fields all is one part: a user's targets share a list. With them the first part holds the first
    target of every user, the next one the second of those who have two, and so on.
    """
    if not held_out.context:
        yield held_out
        return
    place = np.arange(len(held_out)) - held_out.indptr[held_out.users]
    for turn in range(int(held_out.lengths.max(initial=0))):
        yield held_out.take(place == turn, check=False)


def queries_of(targets: Interactions) -> Queries:
    """Return the contexts of targets, at most one a user, as queries; unknown for users without.

    A device knows its context when a list is asked for, and it is the one that the target is met in.
    """
    queries = {}
    for name, column in targets.context.items():
        filling = -1 if name in targets.context_ids else np.nan
        queries[name] = np.full(targets.num_users, filling, dtype=column.dtype)
        queries[name][targets.users] = column
    return queries


def parse_query(interactions: Interactions, given: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Read the context that all lists are wanted in.

    Args:
        interactions: whose context fields are meant.
        given: field -> value as text; a field that is not given is unknown.

    Returns:
        Field -> () int64 code or float32 value. What is unknown has the code of the category "unknown" where the data
        has that one, so that models know it from training, else -1; in a numeric field it is NaN.

    Raises:
        ConfigError: for a field that the data does not have, or a text where a number belongs.
    """
    for name in given:
        if name not in interactions.context:
            raise ConfigError(_no_such_field(name, list(interactions.context)))
    query = {}
    for name in interactions.context:
        text = given.get(name)
        if name in interactions.context_ids:
            query[name] = np.array(_code(name, text, interactions.context_ids[name]), dtype=np.int64)
        else:
            query[name] = np.array(_number(name, text), dtype=np.float32)
    return query


def _code(name: str, text: str | None, vocabulary: Vocabulary) -> int:
    values: list[str] = vocabulary.ids.astype(str).tolist()
    if text in values:
        return values.index(text)
    if text is not None:
        listed = ", ".join(values[:20]) + (", ..." if len(values) > 20 else "")
        _LOG.warning(
            "context %s=%r is not a value of that field and counts as unknown; known are %s", name, text, listed
        )
    return values.index(UNKNOWN_CATEGORY) if UNKNOWN_CATEGORY in values else -1


def _number(name: str, text: str | None) -> float:
    if text is None:
        return np.nan
    try:
        number = float(text)
    except ValueError:
        number = np.inf
    if np.isinf(number):
        raise ConfigError(f"context {name}={text!r} is not a finite number, and {name} is a numeric field; give one")
    return number


def _no_such_field(name: str, fields: list[str]) -> str:
    if not fields:
        return f"context field {name!r} is unknown: the run's data has no context fields; leave it out"
    hint = nearest(name, fields)
    return f"context field {name!r} is unknown; allowed are {', '.join(fields)}" + (
        f"; did you mean {hint}?" if hint else "; choose one of them"
    )
