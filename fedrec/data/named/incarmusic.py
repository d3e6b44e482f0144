"""InCarMusic (Baltrunas et al., 2011): pieces of music rated for one driving context each; no times."""

from __future__ import annotations

import csv
from pathlib import Path

from fedrec.data.catalogue import Catalogue
from fedrec.data.interactions import Vocabulary
from fedrec.data.named.describing import ItemFacts, describe, require_fields
from fedrec.data.named.folders import Home, require_file_of
from fedrec.data.reading.columns import ColumnNames
from fedrec.data.reading.files import read_lines
from fedrec.data.reading.problems import Problem, shown
from fedrec.data.reading.reader import read_values
from fedrec.data.reading.values import Values
from fedrec.errors import DataError

INCARMUSIC = Home(
    name="incarmusic",
    folders=("incar-music", "incarmusic", "Music_InCarMusic"),
    files=("ContextualRating.csv",),
    page="https://github.com/irecsys/CARSKit/tree/master/context-aware_data_sets",
)
CONTEXT = (
    "DrivingStyle",
    "landscape",
    "mood",
    "naturalphenomena",
    "RoadType",
    "sleepiness",
    "trafficConditions",
    "weather",
)
_NOTHING = "\\N"


def read_incarmusic(folder: Path) -> Values:
    """Read `ContextualRating.csv`: a rating in a context, in file order; fields left empty are "unknown", all but one.

    The official download is a workbook, `Data_InCarMusic.xlsx`; its sheets are read as CSV files of their names.
    """
    names = ColumnNames("UserID", "ItemID", timestamp=None, rating="Rating", context=CONTEXT, optional=frozenset())
    return read_values(require_file_of(folder, "ContextualRating.csv"), names, delimiter=",")


def describe_incarmusic(folder: Path, item_ids: Vocabulary) -> Catalogue:
    """Describe the pieces by title, artist, album and category in `Music_Track.csv` and `Music_Category.csv`."""
    categories = {}
    path = require_file_of(folder, "Music_Category.csv")
    for line, fields in enumerate(csv.reader(read_lines(path)), start=1):
        number, name = require_fields(path, line, fields, 2)
        categories[number.strip()] = name.strip()
    path, facts = require_file_of(folder, "Music_Track.csv"), {}
    for line, fields in enumerate(csv.reader(read_lines(path)), start=1):
        fields = [field.strip() for field in require_fields(path, line, fields, 8)]
        if line == 1:
            continue
        number, album, artist, title, _, _, _, category = ("" if field == _NOTHING else field for field in fields)
        if category and category not in categories:
            allowed = ", ".join(categories)
            raise DataError(Problem(path, shown(category), allowed, "copy the files again", line, "category_id"))
        more = [f"By {artist}" if artist else "", f"From {album}" if album else ""]
        facts[number] = ItemFacts(title, [categories[category]] if category else [], ". ".join(filter(None, more)))
    return describe(item_ids, facts)
