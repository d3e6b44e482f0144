"""The reader: interactions of a CSV, TSV or Parquet file; fast where all is well, exact about what is not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from fedrec.data.interactions import Interactions, Vocabulary
from fedrec.data.reading.cells import Bad
from fedrec.data.reading.columns import ColumnNames
from fedrec.data.reading.delimited import RawColumns, TextTable, fast_columns, open_text, scan
from fedrec.data.reading.files import is_parquet, require_file, whole_file
from fedrec.data.reading.parquet import read_parquet
from fedrec.data.reading.problems import Problem, shown
from fedrec.data.reading.times import UNKNOWN_TIME
from fedrec.data.reading.values import Values, parse_values
from fedrec.errors import DataError


@dataclass(frozen=True, eq=False)
class Inspection:
    """What a patient reading of a file found.

    Args:
        values: the columns, or None where something is wrong.
        problems: the first problems, by line.
        num_problems: how many there are.
    """

    values: Values | None
    problems: tuple[Problem, ...]
    num_problems: int


def read_values(
    path: Path, names: ColumnNames, header: Sequence[str] | None = None, delimiter: str | None = None
) -> Values:
    """Read the columns of a file of interactions.

    Args:
        path: CSV, TSV (plain or gzip) or Parquet.
        names: the columns wanted.
        header: names of the columns where a text file has no header line.
        delimiter: what separates fields of a text file; found from its first line where None.

    Raises:
        DataError: naming file, line and column of the first thing that is wrong.
    """
    if is_parquet(require_file(path)):
        return _values_or_raise(inspect(path, names))
    table = open_text(path, names, header, delimiter)
    try:
        raw = fast_columns(table)
        values, bad = parse_values(table.columns, raw)
    except pa.ArrowInvalid as error:
        _values_or_raise(_inspect_text(table, max_problems=1))
        raise whole_file(path, f"text that Arrow cannot read ({error})", "CSV or TSV", "rewrite the file") from None
    if bad or not len(values.users):
        return _values_or_raise(_inspect_text(table, max_problems=1))
    return values


def _values_or_raise(inspection: Inspection) -> Values:
    if inspection.values is None:
        raise DataError(inspection.problems[0])
    return inspection.values


def inspect(path: Path, names: ColumnNames, max_problems: int = 20) -> Inspection:
    """Go through a whole file and find everything that is wrong with it.

    Raises:
        DataError: where the file cannot be read at all or lacks a column.
    """
    if not is_parquet(require_file(path)):
        return _inspect_text(open_text(path, names), max_problems)
    columns, raw = read_parquet(path, names)
    values, bad = parse_values(columns, raw)
    if not len(values.users):
        return _nothing_there(path)
    problems = _first_problems(path, bad, raw, np.arange(1, len(values.users) + 1), max_problems, "row")
    return Inspection(None if bad else values, tuple(problems), sum(len(b.rows) for b in bad))


def _inspect_text(table: TextTable, max_problems: int) -> Inspection:
    found = scan(table, max_problems)
    values, bad = parse_values(table.columns, found.columns)
    if not len(values.users) and not found.num_problems:
        return _nothing_there(table.path)
    problems = [*found.problems, *_first_problems(table.path, bad, found.columns, found.lines, max_problems)]
    problems = sorted(problems, key=lambda problem: problem.line or 0)[:max_problems]
    total = found.num_problems + sum(len(b.rows) for b in bad)
    return Inspection(None if total else values, tuple(problems), total)


def _nothing_there(path: Path) -> Inspection:
    problem = Problem(path, "a header and no interactions", "at least one interaction", "check how it was written")
    return Inspection(None, (problem,), 1)


def _first_problems(
    path: Path, bad: list[Bad], raw: RawColumns, lines: np.ndarray, max_problems: int, unit: str = "line"
) -> list[Problem]:
    problems = []
    for part in bad:
        for row in part.rows[:max_problems].tolist():
            value = raw[part.column][row].as_py()
            found = "nothing" if value is None or value == "" else shown(value)
            problems.append(Problem(path, found, part.allowed, part.action, int(lines[row]), part.column, unit))
    return sorted(problems, key=lambda problem: problem.line or 0)[:max_problems]


def to_interactions(values: Values, min_rating: float | None = None, where: str = "the data") -> Interactions:
    """Make interactions of columns, dropping rows below `min_rating` and then users and items without a row.

    Rows are in file order, except that times finer than a second decide before the file's order does.

    Args:
        values: the columns.
        min_rating: least rating of a row that counts, or None to keep all.
        where: the data set, for messages.

    Raises:
        DataError: where `min_rating` meets data without ratings or leaves no row.
    """
    index = np.arange(len(values.users))
    if values.times is not None and (values.times % 10**6 != 0).any():
        index = np.argsort(values.times, kind="stable")
    if min_rating is not None:
        index = index[_at_least(values.ratings, min_rating, where)[index]]
    user_ids, users = _used(values.user_ids, values.users[index])
    item_ids, items = _used(values.item_ids, values.items[index])
    return Interactions(
        users,
        items,
        user_ids,
        item_ids,
        times=None if values.times is None else _seconds(values.times[index]),
        ratings=None if values.ratings is None else values.ratings[index],
        context={name: column[index] for name, column in values.context.items()},
        context_ids=dict(values.context_ids),
    )


def _seconds(micros: np.ndarray) -> np.ndarray:
    return np.where(micros == UNKNOWN_TIME, UNKNOWN_TIME, micros // 10**6)


def rated_at_least(interactions: Interactions, min_rating: float, where: str) -> Interactions:
    """Drop rows below `min_rating` and then users and items without a row, as `to_interactions` does."""
    kept = interactions.take(_at_least(interactions.ratings, min_rating, where), check=False)
    item_ids, items = _used(kept.item_ids, kept.items)
    return replace(kept, items=items, item_ids=item_ids).of_users(np.flatnonzero(kept.lengths))


def _at_least(ratings: np.ndarray | None, min_rating: float, where: str) -> np.ndarray:
    if ratings is None:
        raise DataError(
            f"{where}: data.min_rating={min_rating} but there are no ratings; name a rating column or drop it"
        )
    kept = ratings >= min_rating
    if not kept.any():
        span = f"{ratings.min():g} to {ratings.max():g}"
        raise DataError(
            f"{where}: data.min_rating={min_rating} leaves no interaction; ratings go from {span}: lower it"
        )
    return np.asarray(kept)


def _used(ids: Vocabulary, rows: np.ndarray) -> tuple[Vocabulary, np.ndarray]:
    """Drop the ids that no row uses."""
    used = np.bincount(rows, minlength=len(ids)) > 0
    if used.all():
        return ids, rows
    return Vocabulary(ids.ids[used]), (np.cumsum(used) - 1)[rows]
