"""Demographics: what a data set says of its users, as user attributes: for evaluation, never an input of a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fedrec.data.interactions import Interactions, Vocabulary
from fedrec.data.named.describing import require_fields
from fedrec.data.reading.files import read_lines
from fedrec.data.reading.problems import Problem, shown
from fedrec.data.reading.values import UNKNOWN_CATEGORY
from fedrec.errors import DataError

AGE_GROUPS = ("under 18", "18-24", "25-34", "35-44", "45-49", "50-55", "56 and over")
"""The age groups of MovieLens 1M, used for every data set so that they can be compared."""

_FIRST_AGES = (18, 25, 35, 45, 50, 56)


@dataclass(frozen=True)
class Attribute:
    """One attribute of users.

    Args:
        column: position in a line of the file.
        values: all values it may take, in the order of tables: public, from the data set's own description.
        read: turns the text of a field into one of the values; may raise `ValueError` or `LookupError`.
    """

    column: int
    values: Sequence[str]
    read: Callable[[str], str]


def age_group(text: str) -> str:
    """Return the group of an age in years.

    Example:
        >>> age_group("24"), age_group("1"), age_group("56")
        ('18-24', 'under 18', '56 and over')
    """
    return AGE_GROUPS[int(np.searchsorted(_FIRST_AGES, int(text), side="right"))]


def with_user_attributes(
    interactions: Interactions, path: Path, delimiter: str, num_fields: int, attributes: Mapping[str, Attribute]
) -> Interactions:
    """Add what a file says of the users, one line a user with the id first.

    Args:
        interactions: whose users are looked up; one that the file does not know has the value "unknown" everywhere.
        path: the file; without a header.
        delimiter: what separates its fields.
        num_fields: fields of a line.
        attributes: name -> what to read.

    Raises:
        DataError: naming file and line of a value that is not allowed.
    """
    wanted = {str(user_id): row for row, user_id in enumerate(interactions.user_ids.ids.tolist())}
    codes = {name: np.full(len(wanted), len(attribute.values)) for name, attribute in attributes.items()}
    places = {name: {value: k for k, value in enumerate(attribute.values)} for name, attribute in attributes.items()}
    for line, text in enumerate(read_lines(path), start=1):
        fields = require_fields(path, line, text.split(delimiter), num_fields)
        row = wanted.get(fields[0])
        for name, attribute in attributes.items() if row is not None else ():
            try:
                codes[name][row] = places[name][attribute.read(fields[attribute.column])]
            except (ValueError, LookupError):
                found, allowed = shown(fields[attribute.column]), ", ".join(attribute.values)
                raise DataError(Problem(path, found, allowed, "copy the file again", line, name)) from None
    vocabularies = {
        name: Vocabulary(np.array([*attribute.values, UNKNOWN_CATEGORY])) for name, attribute in attributes.items()
    }
    return replace(interactions, user_attributes=codes, user_attribute_ids=vocabularies)
