"""Problems: what is wrong at which place of a file, said the same way whether it is raised or listed."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong in a file; `raise DataError(problem)` makes it the message.

    Args:
        path: the file.
        found: what stands there.
        allowed: what may stand there.
        action: what to do about it.
        line: line of a text file or row of a Parquet file, from 1; None where the whole file is meant.
        column: name of the column, or None where the whole line or file is meant.
        unit: "line" or "row".

    Example:
        >>> print(Problem(Path("a.csv"), "'soon'", "unix seconds", "correct the time", line=3, column="timestamp"))
        a.csv, line 3, column 'timestamp': found 'soon'; allowed: unix seconds; correct the time
    """

    path: Path
    found: str
    allowed: str
    action: str
    line: int | None = None
    column: str | None = None
    unit: str = "line"

    def __str__(self) -> str:
        """Return the whole message, in one line."""
        place = str(self.path)
        if self.line is not None:
            place += f", {self.unit} {self.line}"
        if self.column is not None:
            place += f", column {self.column!r}"
        return f"{place}: found {self.found}; allowed: {self.allowed}; {self.action}"


def shown(value: object, limit: int = 40) -> str:
    """Return a value as it may stand in a message: on one line, printable, cut to `limit` characters."""
    text = value if isinstance(value, str) else str(value)
    return ascii(text) if len(text) <= limit else f"{text[:limit]!a}... ({len(text)} characters)"


def nearest(name: str, allowed: Iterable[str]) -> str | None:
    """Return the allowed name that looks most like `name`, or None where none does.

    Example:
        >>> nearest("UserID", ["user_id", "movie"])
        'user_id'
    """
    by_lower = {candidate.lower(): candidate for candidate in allowed}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.5)
    within = [lower for lower in by_lower if name.lower() in lower or lower in name.lower()]
    return by_lower[(close or within)[0]] if close or within else None
