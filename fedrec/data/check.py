"""Checking a file: every problem by line and column, or what the file holds; `fedrec data check FILE`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from fedrec.data.interactions import Interactions, deduplicate
from fedrec.data.reading.columns import ColumnNames
from fedrec.data.reading.problems import Problem
from fedrec.data.reading.reader import inspect, to_interactions
from fedrec.data.reading.times import UNKNOWN_TIME
from fedrec.errors import DataError

MAX_PROBLEMS = 20
_MIN_EVALUATED = 3


@dataclass(frozen=True)
class Summary:
    """What a good file holds.

    Args:
        num_users: users.
        num_items: items.
        num_interactions: rows.
        num_duplicates: rows that repeat a user-item pair.
        num_short_users: users with fewer than 3 distinct items, who train but are not evaluated.
        first_time: earliest known time in ISO 8601, or None.
        last_time: latest known time in ISO 8601, or None.
        share_without_time: rows without a time, 0 to 1.
        ratings: least and largest rating, or None.
        context: context field -> number of categories, or None where it is numeric.
        notes: what is allowed but looks odd.
    """

    num_users: int
    num_items: int
    num_interactions: int
    num_duplicates: int
    num_short_users: int
    first_time: str | None
    last_time: str | None
    share_without_time: float
    ratings: tuple[float, float] | None
    context: Mapping[str, int | None]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class CheckReport:
    """What a check found.

    Args:
        path: the file.
        problems: the first 20 problems, by line.
        num_problems: how many there are.
        summary: what the file holds, or None where there is a problem.
    """

    path: Path
    problems: tuple[Problem, ...]
    num_problems: int
    summary: Summary | None

    @property
    def ok(self) -> bool:
        """Tell whether nothing is wrong."""
        return self.num_problems == 0

    def __str__(self) -> str:
        """Return the report as lines of text."""
        return "\n".join(_problem_lines(self) if self.summary is None else _summary_lines(self.path, self.summary))


def check_file(path: str | Path, columns: Mapping[str, object] | None = None) -> CheckReport:
    """Go through a file and list everything that is wrong with it, or summarise it.

    Args:
        path: a CSV or TSV file (plain or gzip) or a Parquet file.
        columns: role -> column name, as in `load`.

    Raises:
        ConfigError: on unknown roles in `columns`.
    """
    path = Path(path).expanduser()
    names = ColumnNames.from_mapping(columns)
    try:
        inspection = inspect(path, names, MAX_PROBLEMS)
    except DataError as error:
        problem = error.args[0]
        if not isinstance(problem, Problem):
            raise
        return CheckReport(path, (problem,), 1, None)
    if inspection.values is None:
        return CheckReport(path, inspection.problems, inspection.num_problems, None)
    return CheckReport(path, (), 0, _summarise(to_interactions(inspection.values)))


def _summarise(interactions: Interactions) -> Summary:
    distinct = deduplicate(interactions)
    times = np.full(1, UNKNOWN_TIME) if interactions.times is None else interactions.times
    known = times[times != UNKNOWN_TIME]
    ratings = interactions.ratings
    return Summary(
        num_users=interactions.num_users,
        num_items=interactions.num_items,
        num_interactions=len(interactions),
        num_duplicates=len(interactions) - len(distinct),
        num_short_users=int((distinct.lengths < _MIN_EVALUATED).sum()),
        first_time=_iso(known.min()) if len(known) else None,
        last_time=_iso(known.max()) if len(known) else None,
        share_without_time=1.0 - len(known) / len(times),
        ratings=None if ratings is None else (float(ratings.min()), float(ratings.max())),
        context={
            name: len(interactions.context_ids[name]) if name in interactions.context_ids else None
            for name in interactions.context
        },
        notes=tuple(_notes(interactions, known, distinct)),
    )


def _notes(interactions: Interactions, known: np.ndarray, distinct: Interactions) -> list[str]:
    notes = []
    if not len(known):
        notes.append("no times: evaluation holds out at random and recency is off")
    elif known.max() < pd.Timestamp("1990-01-01").timestamp():
        notes.append("all times are before 1990: are they unix seconds? dates are written 2024-05-01")
    if not (distinct.lengths >= _MIN_EVALUATED).any():
        notes.append(f"no user has {_MIN_EVALUATED} items: nobody can be evaluated")
    if interactions.num_items == len(interactions):
        notes.append("every row has its own item: is the item column right?")
    return notes


def _iso(seconds: int) -> str:
    return str(np.datetime64(int(seconds), "s")) + "Z"


def _problem_lines(report: CheckReport) -> list[str]:
    lines = [str(problem) for problem in report.problems]
    rest = report.num_problems - len(report.problems)
    more = f"; these are the first {len(lines)}" if rest else ""
    return [*lines, f"{report.path}: {report.num_problems} problem{'s' * (report.num_problems != 1)}{more}"]


def _summary_lines(path: Path, summary: Summary) -> list[str]:
    lines = [
        f"{path}: ok",
        f"  interactions  {summary.num_interactions:,} ({summary.num_duplicates:,} repeat a user-item pair)",
        f"  users         {summary.num_users:,} ({summary.num_short_users:,} with fewer than {_MIN_EVALUATED} items)",
        f"  items         {summary.num_items:,}",
    ]
    if summary.first_time is not None:
        lines.append(f"  times         {summary.first_time} to {summary.last_time}")
    lines.append(f"  without time  {summary.share_without_time:.1%}")
    if summary.ratings is not None:
        lines.append(f"  ratings       {summary.ratings[0]:g} to {summary.ratings[1]:g}")
    for name, num in summary.context.items():
        lines.append(f"  context       {name}: " + ("numbers" if num is None else f"{num:,} categories"))
    return lines + [f"  note          {note}" for note in summary.notes]
