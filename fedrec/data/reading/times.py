"""Times: columns of unix seconds, milliseconds or ISO 8601 as microseconds."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as compute

from fedrec.data.reading.cells import Bad, bad_where, floats_of, is_text, missing_texts, trimmed, whole_column

UNKNOWN_TIME = np.iinfo(np.int64).min
"""What stands for a time that is not known; it sorts before every known time."""

_LARGEST = 2**63 - 1
_TIME_ALLOWED = "unix seconds or milliseconds from 0, ISO 8601 (2024-05-01T12:00:00Z), or empty where unknown"


def parse_times(column: str, raw: pa.ChunkedArray) -> tuple[np.ndarray, list[Bad]]:
    """Read a column of times as (n,) int64 microseconds since 1970, `UNKNOWN_TIME` where there is none."""
    kind = raw.type
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        micros = raw.cast(pa.timestamp("us", getattr(kind, "tz", None)), safe=False).cast(pa.int64())
        return np.asarray(micros.fill_null(UNKNOWN_TIME)), []
    if is_text(kind):
        return _times_from_text(column, trimmed(raw))
    if pa.types.is_null(kind):
        return np.full(len(raw), UNKNOWN_TIME), []
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        return np.full(len(raw), UNKNOWN_TIME), [whole_column(column, raw, _TIME_ALLOWED, "store numbers or times")]
    unknown = np.asarray(raw.is_null(nan_is_null=True))
    numbers = np.asarray(raw.fill_null(0))
    return _times_from_numbers(column, numbers, unknown)


def _times_from_numbers(column: str, numbers: np.ndarray, unknown: np.ndarray) -> tuple[np.ndarray, list[Bad]]:
    """Read seconds, or milli-, micro- or nanoseconds where a number is too large to be anything coarser."""
    wrong = ~unknown & ~((numbers >= 0) & (numbers <= _LARGEST))
    safe = np.where(unknown | wrong, 0, numbers)
    if numbers.dtype.kind == "f":
        scale = np.select([safe <= 1e11, safe <= 1e14, safe <= 1e17], [1e6, 1e3, 1.0], 1e-3)
        micros = np.rint(safe * scale).astype(np.int64)
    else:
        safe = safe.astype(np.int64)
        micros = np.select(
            [safe <= 10**11, safe <= 10**14, safe <= 10**17], [safe * 10**6, safe * 10**3, safe], safe // 10**3
        )
    action = "correct the time, or leave it empty where it is unknown"
    return np.where(unknown, UNKNOWN_TIME, micros), bad_where(column, wrong, _TIME_ALLOWED, action)


def _times_from_text(column: str, text: pa.ChunkedArray) -> tuple[np.ndarray, list[Bad]]:
    unknown = missing_texts(text)
    hexadecimal = compute.any(compute.match_substring(text, "x", ignore_case=True)).as_py()  # Arrow reads 0x10 as 16
    if not hexadecimal:
        try:
            numbers = np.asarray(compute.if_else(pa.array(unknown), "0", text).cast(pa.int64()))
            return _times_from_numbers(column, numbers, unknown)
        except pa.ArrowInvalid:
            pass
    micros, bad = _times_from_numbers(column, *_mixed_numbers(text, unknown))
    dated = np.asarray(compute.match_substring_regex(text, r"^[0-9]{4}-[0-9]{2}"))
    if dated.any():
        parsed = pd.to_datetime(text.filter(pa.array(dated)).to_pandas(), format="ISO8601", errors="coerce", utc=True)
        parsed = parsed.dt.as_unit("us")
        micros[dated] = np.where(parsed.isna(), UNKNOWN_TIME, parsed.astype("int64"))
    wrong = (micros == UNKNOWN_TIME) & ~unknown
    wrong[[row for b in bad for row in b.rows.tolist()]] = True
    action = "correct the time, or leave it empty where it is unknown"
    return micros, bad_where(column, wrong, _TIME_ALLOWED, action)


def _mixed_numbers(text: pa.ChunkedArray, unknown: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers among texts as float64, and where there is none."""
    plain = np.asarray(compute.match_substring_regex(text, r"^[-+]?[0-9.]+([eE][-+]?[0-9]+)?$"))
    numbers = floats_of(compute.if_else(pa.array(plain & ~unknown), text, "nan"))
    return numbers, np.isnan(numbers)
