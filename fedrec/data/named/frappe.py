"""Frappe (Baltrunas et al., 2015): which app was used in which context; no times."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from fedrec.data.catalogue import Catalogue
from fedrec.data.interactions import Vocabulary
from fedrec.data.named.describing import ItemFacts, describe
from fedrec.data.named.folders import Home, require_file_of
from fedrec.data.reading.columns import ColumnNames
from fedrec.data.reading.files import read_text
from fedrec.data.reading.problems import Problem
from fedrec.data.reading.reader import read_values
from fedrec.data.reading.values import Values
from fedrec.errors import DataError

FRAPPE = Home(
    name="frappe", folders=("frappe",), files=("frappe.csv",), page="https://www.baltrunas.info/context-aware/frappe"
)
CONTEXT = ("daytime", "weekday", "isweekend", "homework", "cost", "weather", "country", "city")
_META = ("item", "category", "name", "description")


def read_frappe(folder: Path) -> Values:
    """Read `frappe.csv` (tab separated): a row for each app and context, in file order, whatever its `cnt`.

    The field "cost" is one of the app, not of the situation: every app has one value. Asked for as the context of a
    held-out interaction it tells of the target, so leave it out of what a model reads.
    """
    names = ColumnNames(timestamp=None, rating=None, context=CONTEXT)
    return read_values(require_file_of(folder, "frappe.csv"), names, delimiter="\t")


def describe_frappe(folder: Path, item_ids: Vocabulary) -> Catalogue:
    """Describe the apps by name, category and description; "unknown" stands for nothing."""
    path, facts = require_file_of(folder, "meta.csv", "apps.csv"), {}
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), delimiter="\t")
    missing = set(_META) - set(reader.fieldnames or ())
    if missing:
        raise DataError(Problem(path, f"no column {sorted(missing)[0]!r}", ", ".join(_META), "copy the file again", 1))
    for row in reader:
        name, description = (row[key] if row[key] != "unknown" else "" for key in ("name", "description"))
        facts[row["item"]] = ItemFacts(name, [row["category"]], description)
    return describe(item_ids, facts)
