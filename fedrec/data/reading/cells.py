"""Cells: columns of a file as text or numbers, and which cells are missing or wrong."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as compute

_MISSING = ("", "nan", "NaN", "NAN", "NA", "N/A", "n/a", "#N/A", "<NA>", "null", "NULL", "None", "NaT")


@dataclass(frozen=True, eq=False)
class Bad:
    """The rows of one column that are wrong in the same way.

    Args:
        column: name of the column.
        rows: (k,) int64 row numbers, ascending.
        allowed: what may stand there.
        action: what to do.
    """

    column: str
    rows: np.ndarray
    allowed: str
    action: str


def bad_where(column: str, wrong: np.ndarray, allowed: str, action: str) -> list[Bad]:
    """Return the fault of the rows where `wrong` holds, in a list, or an empty list."""
    return [Bad(column, np.flatnonzero(wrong), allowed, action)] if wrong.any() else []


def whole_column(column: str, raw: pa.ChunkedArray, allowed: str, action: str) -> Bad:
    """Return the fault of a column whose type cannot be read, placed at its first row."""
    return Bad(column, np.arange(min(len(raw), 1)), allowed, f"this column is {raw.type}: {action}")


def encode(raw: pa.ChunkedArray) -> tuple[np.ndarray, pa.Array]:
    """Return (n,) int64 codes, -1 for null, and the distinct values that they stand for."""
    if pa.types.is_dictionary(raw.type):
        raw = raw.cast(raw.type.value_type)
    if pa.types.is_null(raw.type):
        raw = raw.cast(pa.string())
    encoded = raw.dictionary_encode().unify_dictionaries()
    if not encoded.num_chunks:
        return np.empty(0, dtype=np.int64), pa.array([], raw.type)
    codes = [np.asarray(c.indices.cast(pa.int64()).fill_null(-1)) for c in encoded.chunks]
    return np.concatenate(codes), encoded.chunk(0).dictionary


def trimmed(raw: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """Return text without the blanks around it, "" for null."""
    return compute.utf8_trim_whitespace(raw.cast(pa.large_string()).fill_null(""))


def is_text(kind: pa.DataType) -> bool:
    """Tell whether an Arrow type is text."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def missing_texts(text: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Return (n,) bool: which trimmed texts stand for no value."""
    return np.asarray(compute.is_in(text, value_set=pa.array(_MISSING, pa.large_string())), dtype=bool)


def floats_of(text: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Return text as float64, NaN where it is no number."""
    try:
        return np.asarray(text.cast(pa.float64()), dtype=np.float64)
    except pa.ArrowInvalid:
        return np.asarray(pd.to_numeric(text.to_pandas(), errors="coerce"), dtype=np.float64)
