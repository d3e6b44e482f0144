"""Values: raw columns of a file as ids, times, ratings and context, and which of them cannot be that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as compute

from fedrec.data.interactions import Vocabulary
from fedrec.data.reading.cells import Bad, bad_where, encode, floats_of, is_text, missing_texts, trimmed, whole_column
from fedrec.data.reading.ids import parse_ids
from fedrec.data.reading.times import UNKNOWN_TIME, parse_times

UNKNOWN_CATEGORY = "unknown"
"""The value of a categorical context field where there is none."""

_RATING_ALLOWED = "a finite number from 0"


@dataclass(frozen=True, eq=False)
class Values:
    """Columns of n interactions in file order.

    Args:
        users: (n,) int64 rows in `user_ids`.
        items: (n,) int64 rows in `item_ids`.
        user_ids: vocabulary of the users.
        item_ids: vocabulary of the items.
        times: (n,) int64 microseconds (`UNKNOWN_TIME` where unknown), or None.
        ratings: (n,) float32, or None.
        context: name -> (n,) int64 codes or float32 values.
        context_ids: name -> vocabulary of the categorical fields.
    """

    users: np.ndarray
    items: np.ndarray
    user_ids: Vocabulary
    item_ids: Vocabulary
    times: np.ndarray | None = None
    ratings: np.ndarray | None = None
    context: Mapping[str, np.ndarray] = field(default_factory=dict)
    context_ids: Mapping[str, Vocabulary] = field(default_factory=dict)


def parse_values(columns: Mapping[str, str], raw: Mapping[str, pa.ChunkedArray]) -> tuple[Values, list[Bad]]:
    """Read raw columns as what their roles say.

    Args:
        columns: role -> column name, see `ColumnNames.in_header`.
        raw: column name -> (n,) values.

    Returns:
        the values, to be used only if the second part, what is wrong, is empty.
    """
    user_ids, users, bad = parse_ids(columns["user"], raw[columns["user"]])
    item_ids, items, more = parse_ids(columns["item"], raw[columns["item"]])
    bad += more
    times = ratings = None
    if "timestamp" in columns:
        times, more = parse_times(columns["timestamp"], raw[columns["timestamp"]])
        bad += more
        times = None if len(times) and (times == UNKNOWN_TIME).all() else times
    if "rating" in columns:
        ratings, more = parse_ratings(columns["rating"], raw[columns["rating"]])
        bad += more
    context: dict[str, np.ndarray] = {}
    context_ids: dict[str, Vocabulary] = {}
    for name in (name for role, name in columns.items() if role.startswith("context.")):
        context[name], ids, more = parse_context(name, raw[name])
        bad += more
        context_ids |= {} if ids is None else {name: ids}
    return Values(users, items, user_ids, item_ids, times, ratings, context, context_ids), bad


def parse_ratings(column: str, raw: pa.ChunkedArray) -> tuple[np.ndarray, list[Bad]]:
    """Read a column of ratings as (n,) float32."""
    kind = raw.type
    if is_text(kind):
        numbers = floats_of(trimmed(raw))
    elif pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind) or pa.types.is_null(kind):
        numbers = np.asarray(raw.cast(pa.float64(), safe=False).fill_null(np.nan))
    else:
        return np.zeros(len(raw), np.float32), [whole_column(column, raw, _RATING_ALLOWED, "store numbers")]
    with np.errstate(over="ignore"):
        ratings = numbers.astype(np.float32)
    action = 'correct the rating, or leave the column out: columns = {rating = ""}'
    return ratings, bad_where(column, ~(np.isfinite(ratings) & (ratings >= 0)), _RATING_ALLOWED, action)


def parse_context(column: str, raw: pa.ChunkedArray) -> tuple[np.ndarray, Vocabulary | None, list[Bad]]:
    """Read a context field: categories where values are text or whole numbers, float32 where any has a fraction.

    A missing category is the category "unknown"; a missing number is refused, because no number is neutral.
    """
    if pa.types.is_dictionary(raw.type):
        raw = raw.cast(raw.type.value_type)
    if pa.types.is_floating(raw.type):
        numbers = np.asarray(raw.fill_null(np.nan), dtype=np.float64)
        if (numbers[~np.isnan(numbers)] % 1 != 0).any():
            return _numeric_context(column, numbers)
        raw = compute.if_else(pa.array(np.isnan(numbers)), None, raw).cast(pa.int64(), safe=False)
    try:
        codes, distinct = encode(raw.cast(pa.large_string()))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return np.zeros(len(raw)), None, [whole_column(column, raw, "categories or numbers", "store text or numbers")]
    text = trimmed(distinct)
    missing = missing_texts(text)
    numbers = floats_of(text.filter(pa.array(~missing)))
    if len(numbers) and not np.isnan(numbers).any() and (numbers % 1 != 0).any():
        values = np.full(len(text) + 1, np.nan)
        values[np.flatnonzero(~missing)] = numbers
        return _numeric_context(column, values[codes])
    texts = compute.if_else(pa.array(missing), UNKNOWN_CATEGORY, text).to_pylist()
    texts += [UNKNOWN_CATEGORY] if (codes < 0).any() else []  # the last text is where code -1, null, leads
    vocabulary, rows = Vocabulary.of(np.array(texts, dtype=np.str_))
    return rows[codes], vocabulary, []


def _numeric_context(column: str, numbers: np.ndarray) -> tuple[np.ndarray, None, list[Bad]]:
    bad = bad_where(column, ~np.isfinite(numbers), "a finite number", "fill it in, or leave the field out of context")
    return numbers.astype(np.float32), None, bad
