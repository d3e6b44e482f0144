"""Describing: item facts keyed by id as the rows of a catalogue."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedrec.data.catalogue import Catalogue
from fedrec.data.interactions import Vocabulary
from fedrec.data.reading.problems import Problem
from fedrec.errors import DataError

_NO_CATEGORY = {"", "unknown", "(no genres listed)"}


@dataclass(frozen=True)
class ItemFacts:
    """What is known of one item.

    Args:
        title: its name.
        categories: names of its categories.
        more: further sentences for its text.
    """

    title: str
    categories: Sequence[str] = ()
    more: str = ""

    def text(self) -> str:
        """Return title, categories and further sentences as one text."""
        listed = ", ".join(name for name in self.categories if name not in _NO_CATEGORY)
        parts = [self.title, f"Categories: {listed}" if listed else "", self.more]
        return ". ".join(part.strip().removesuffix(".") for part in parts if part.strip())


def describe(item_ids: Vocabulary, facts: Mapping[str, ItemFacts]) -> Catalogue:
    """Make the catalogue of exactly these items.

    Args:
        item_ids: the items, in the order wanted.
        facts: facts by id as text; an item without any has its id as title, no text and no category.

    Returns:
        a catalogue with titles and texts, and categories where any item has one; "unknown" is no category.
    """
    ids = [str(item_id) for item_id in item_ids.ids.tolist()]
    known = [facts.get(item_id) for item_id in ids]
    categories, names = category_matrix([fact.categories if fact else () for fact in known])
    return Catalogue(
        item_ids=item_ids,
        titles=[fact.title if fact else item_id for fact, item_id in zip(known, ids, strict=True)],
        texts=[fact.text() if fact else "" for fact in known],
        categories=categories if names else None,
        category_names=names,
    )


def category_matrix(categories: Sequence[Iterable[str]]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return (num_items, num_categories) bool and the names of its columns, sorted."""
    names = sorted({name for row in categories for name in row} - _NO_CATEGORY)
    column = {name: position for position, name in enumerate(names)}
    matrix = np.zeros((len(categories), len(names)), dtype=bool)
    for row, of_item in enumerate(categories):
        matrix[row, [column[name] for name in of_item if name in column]] = True
    return matrix, tuple(names)


def require_fields(path: Path, line: int, fields: Sequence[str], num: int) -> Sequence[str]:
    """Return the fields of a line of item facts.

    Raises:
        DataError: where they are not `num`.
    """
    if len(fields) != num:
        raise DataError(
            Problem(path, f"{len(fields)} fields", f"{num} fields", "copy or download the file again", line)
        )
    return fields
