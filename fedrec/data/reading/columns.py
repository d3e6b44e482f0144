"""Column names: which column of a file holds the user, the item, the time, the rating and the context."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedrec.data.reading.problems import Problem, nearest, shown
from fedrec.errors import ConfigError, DataError

_ROLES = ("user", "item", "timestamp", "rating", "context")
_MAY_LACK = ("timestamp", "rating")


@dataclass(frozen=True)
class ColumnNames:
    """The columns to read, by role.

    Args:
        user: column of the user ids.
        item: column of the item ids.
        timestamp: column of the times, or None to read none.
        rating: column of the ratings, or None to read none.
        context: columns of the context fields.
        optional: roles ("timestamp", "rating") that the file may lack, because nobody asked for them by name.
    """

    user: str = "user"
    item: str = "item"
    timestamp: str | None = "timestamp"
    rating: str | None = "rating"
    context: tuple[str, ...] = ()
    optional: frozenset[str] = frozenset({"timestamp", "rating"})

    @classmethod
    def from_mapping(cls, columns: Mapping[str, object] | None) -> ColumnNames:
        """Read `columns = {user = ..., item = ..., timestamp = ..., rating = ..., context = [...]}` of a config.

        Only roles with a name are required in the file. A timestamp or rating of None is read where the file has a
        column of the usual name; one of "" is left out.

        Raises:
            ConfigError: on unknown roles, names that are not texts, or one column in two roles.
        """
        given = {role: name for role, name in (columns or {}).items() if name is not None}
        for role in given:
            if role not in _ROLES:
                hint = nearest(role, _ROLES)
                raise ConfigError(
                    f"data.columns.{role} is unknown; allowed are {', '.join(_ROLES)}"
                    + (f"; did you mean {hint}?" if hint else "; remove it")
                )
        context = given.pop("context", ())
        if isinstance(context, str) or not isinstance(context, Sequence):
            raise ConfigError(f'data.columns.context={context!r} is not a list of column names; write ["name", ...]')
        for role, name in [*given.items(), *(("context", name) for name in context)]:
            if not isinstance(name, str) or (not name and role not in _MAY_LACK):
                raise ConfigError(f"data.columns.{role}={name!r} is not a column name; write the name as text")
        times = {role: str(given.get(role, role)) or None for role in _MAY_LACK}
        names = cls(
            user=str(given.get("user", "user")),
            item=str(given.get("item", "item")),
            timestamp=times["timestamp"],
            rating=times["rating"],
            context=tuple(context),
            optional=frozenset(_MAY_LACK) - given.keys(),
        )
        names._refuse_double_use()
        return names

    def _refuse_double_use(self) -> None:
        seen: dict[str, str] = {}
        for role, name in self.by_role().items():
            if name in seen:
                raise ConfigError(
                    f"data.columns gives {name!r} to {seen[name]} and {role}; a column has one role: name another"
                )
            seen[name] = role

    def by_role(self) -> dict[str, str]:
        """Return role -> column name; the role of a context field is "context." and its name."""
        roles = {"user": self.user, "item": self.item, "timestamp": self.timestamp, "rating": self.rating}
        return {k: v for k, v in roles.items() if v is not None} | {f"context.{name}": name for name in self.context}

    def in_header(self, path: Path, header: Sequence[str], line: int | None = 1) -> dict[str, str]:
        """Return role -> column for the roles that this file has.

        Args:
            path: the file, for messages.
            header: the names of its columns.
            line: the line of the header; None where the format has no header line.

        Raises:
            DataError: where a required column is missing or a wanted name stands twice.
        """
        found = {}
        for role, name in self.by_role().items():
            if header.count(name) == 1:
                found[role] = name
            elif header.count(name) > 1:
                raise DataError(
                    Problem(path, f"the name {header.count(name)} times", "each name once", "rename one", line, name)
                )
            elif role not in self.optional:
                raise DataError(_missing(path, header, role, name, line))
        return found


def _missing(path: Path, header: Sequence[str], role: str, name: str, line: int | None) -> Problem:
    listed = ", ".join(shown(column, 24) for column in header[:12]) + (", ..." if len(header) > 12 else "")
    hint = nearest(name, [column for column in header if column])
    action = f"set columns = {{{role.split('.')[0]} = ...}} to one of them"
    if hint is not None:
        action = f"nearest is {hint!r}: rename it, or " + action
    elif any(column.replace(".", "").isdigit() for column in header):
        action = "the first line looks like data: add a header line, or " + action
    return Problem(path, f"no column {name!r} for the {role}", f"a column of the file ({listed})", action, line, name)
