"""The catalogue: the public item side - ids, titles, texts, categories and feature vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fedrec.data.interactions import Interactions, Vocabulary
from fedrec.errors import DataError


@dataclass(frozen=True, eq=False)
class Catalogue:
    """What is publicly known of the items, rows as in `Interactions.item_ids`, and of the contexts they are met in.

    Which items there are, which context fields and which values these may take is taken as a public schema, although
    both are read off the data: how often a value occurs, or whose it is, is not part of it.

    Args:
        item_ids: vocabulary of the items.
        titles: one title an item, or None where there are none.
        texts: one longer text an item ("" where unknown), or None.
        categories: (num_items, num_categories) bool, or None.
        category_names: names of the columns of `categories`.
        features: name -> (num_items, dim) float32 dense features.
        context_fields: name -> number of values of a categorical context field, whose codes are below it; 0 for a
            numeric field.

    Raises:
        DataError: where a field does not have one row an item.
    """

    item_ids: Vocabulary
    titles: Sequence[str] | None = None
    texts: Sequence[str] | None = None
    categories: np.ndarray | None = None
    category_names: Sequence[str] = ()
    features: Mapping[str, np.ndarray] = field(default_factory=dict)
    context_fields: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check that every field has one row an item."""
        fields = {"titles": self.titles, "texts": self.texts, "categories": self.categories, **self.features}
        for name, value in fields.items():
            if value is not None and len(value) != len(self.item_ids):
                raise DataError(f"catalogue field {name} has {len(value)} rows, there are {len(self.item_ids)} items")

    @property
    def num_items(self) -> int:
        """Return the number of items."""
        return len(self.item_ids)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A named data set: private interactions and the public catalogue of the same items."""

    name: str
    interactions: Interactions
    catalogue: Catalogue
