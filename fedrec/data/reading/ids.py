"""Ids: columns of user and item ids as vocabularies and rows."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as compute

from fedrec.data.interactions import Vocabulary
from fedrec.data.reading.cells import Bad, bad_where, encode, is_text, missing_texts, trimmed, whole_column

_LONGEST_ID = 256
_LARGEST = 2**63 - 1
_EXACT_FLOAT = 2**53
_ID_ALLOWED = f"a whole number up to {_LARGEST}, or a text of 1 to {_LONGEST_ID} characters"
_FILL_IN = "fill in the id or delete the row"
_SMALLER = "use smaller numbers, or ids with a letter"


def parse_ids(column: str, raw: pa.ChunkedArray) -> tuple[Vocabulary, np.ndarray, list[Bad]]:
    """Read a column of ids: int64 where every id is a whole number, else text (so "007" stays what it is).

    Returns:
        vocabulary, (n,) int64 rows in it, and what is wrong.
    """
    nobody = Vocabulary(np.empty(0, dtype=np.int64)), np.zeros(len(raw), dtype=np.int64)
    try:
        codes, distinct = encode(raw)
    except pa.ArrowNotImplementedError:
        return *nobody, [whole_column(column, raw, _ID_ALLOWED, "store whole numbers or text")]
    values, wrong = _distinct_ids(distinct)
    missing = wrong.pop(_FILL_IN, np.zeros(len(distinct), dtype=bool))
    bad = bad_where(column, np.append(missing, True)[codes], _ID_ALLOWED, _FILL_IN)
    for action, mask in wrong.items():
        bad += bad_where(column, np.append(mask, False)[codes], _ID_ALLOWED, action)
    if bad or not len(codes):
        return *nobody, bad
    vocabulary, rows = Vocabulary.of(values)
    return vocabulary, rows[codes], []


def _distinct_ids(distinct: pa.Array) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return distinct ids as int64 or text, and masks of the wrong ones by what to do about them."""
    kind = distinct.type
    if pa.types.is_integer(kind):
        values = np.asarray(distinct)
        return values.astype(np.int64), {"store large ids as text": values > np.uint64(_LARGEST)}
    if pa.types.is_floating(kind):
        floats = np.asarray(distinct, dtype=np.float64)
        missing = np.isnan(floats)
        whole = (np.abs(floats) <= _EXACT_FLOAT) & (floats == np.floor(floats))
        values = np.where(whole, floats, 0).astype(np.int64)
        return values, {_FILL_IN: missing, "store ids as whole numbers or text": ~whole & ~missing}
    if is_text(kind):
        return _text_ids(trimmed(distinct))
    everywhere = np.ones(len(distinct), dtype=bool)
    return np.zeros(len(distinct), np.int64), {f"this column is {kind}: store whole numbers or text": everywhere}


def _text_ids(text: pa.Array) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    missing = missing_texts(text)
    known = text.filter(pa.array(~missing))
    if compute.all(compute.match_substring_regex(known, r"^-?[0-9]+$")).as_py():
        try:
            whole = known.cast(pa.int64())
        except pa.ArrowInvalid:
            numbers = [0 if gone else int(t) for t, gone in zip(text.to_pylist(), missing, strict=True)]
            too_large = [abs(number) > _LARGEST for number in numbers]
            return np.zeros(len(text)), {_FILL_IN: missing, _SMALLER: np.array(too_large)}
        if whole.cast(pa.large_string()).equals(known):
            values = np.zeros(len(text), dtype=np.int64)
            values[~missing] = np.asarray(whole)
            return values, {_FILL_IN: missing}
    long = np.asarray(compute.greater(compute.utf8_length(text), _LONGEST_ID))
    control = np.asarray(compute.match_substring_regex(text, r"[\x00-\x1f\x7f]"))
    short = compute.if_else(pa.array(long), "", text)
    return np.array(short.to_pylist(), dtype=np.str_), {
        _FILL_IN: missing,
        "shorten the id; is the delimiter right?": long,
        "remove the control characters; is this a text file?": control & ~long,
    }
