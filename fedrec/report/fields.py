"""Checked access to parsed JSON: the right type or a `DataError` that names the place."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import Any

from fedrec.errors import DataError
from fedrec.report.formats import METRIC_NAMES


def as_table(raw: object, where: str) -> Mapping[str, Any]:
    """Return a JSON object, {} for null.

    Raises:
        DataError: where it is anything else; `where` names it.
    """
    if raw is None:
        return {}
    if not isinstance(raw, Mapping):
        raise DataError(f"{where} is a {type(raw).__name__}; it must be a table (a JSON object)")
    return raw


def as_list(raw: object, where: str) -> list[Any]:
    """Return a JSON list, [] for null.

    Raises:
        DataError: where it is anything else; `where` names it.
    """
    if raw is not None and not isinstance(raw, list):
        raise DataError(f"{where} is a {type(raw).__name__}; it must be a list")
    return raw or []


def as_number(raw: object, where: str) -> float | None:
    """Return a number, None for null.

    Raises:
        DataError: where it is anything else; `where` names it.
    """
    if raw is None:
        return None
    if isinstance(raw, bool) or not isinstance(raw, Real):
        raise DataError(f"{where} is {raw!r}; it must be a number or null")
    return float(raw)


def as_numbers(raw: object, where: str) -> Mapping[str, float]:
    """Return the numbers of a table; whatever else it holds is an unknown field, unless its name is a metric's.

    Raises:
        DataError: where a metric is no number, or the whole is no table; `where` names it.
    """
    numbers: dict[str, float] = {}
    for key, value in as_table(raw, where).items():
        if key.partition("@")[0] in METRIC_NAMES or (isinstance(value, Real) and not isinstance(value, bool)):
            number = as_number(value, f"{where}.{key}")
            if number is not None:
                numbers[key] = number
    return numbers


def as_text(raw: object) -> str:
    """Return anything as text, "" for null."""
    return "" if raw is None else str(raw)


def flattened(table: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return a nested table as one level: {"versions": {"torch": 2}} becomes {"versions.torch": "2"}."""
    flat: dict[str, str] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            flat.update(flattened(value, f"{prefix}{key}."))
        elif value is not None:
            flat[f"{prefix}{key}"] = str(value)
    return flat
