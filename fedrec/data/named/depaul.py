"""DePaulMovie (Zheng et al., 2015): films rated in a survey for different times, places and companions; no times."""

from __future__ import annotations

from pathlib import Path

from fedrec.data.catalogue import Catalogue
from fedrec.data.interactions import Vocabulary
from fedrec.data.named.folders import Home, require_file_of
from fedrec.data.reading.columns import ColumnNames
from fedrec.data.reading.reader import read_values
from fedrec.data.reading.values import Values

DEPAUL_MOVIE = Home(
    name="depaul-movie",
    folders=("depaul-movie", "Movie_DePaulMovie"),
    files=("ratings.txt",),
    page="https://github.com/irecsys/CARSKit/tree/master/context-aware_data_sets",
)
CONTEXT = ("Time", "Location", "Companion")


def read_depaul_movie(folder: Path) -> Values:
    """Read `ratings.txt`: a rating of a film in a context, in file order; `NA` is the value "unknown"."""
    names = ColumnNames("userid", "itemid", timestamp=None, context=CONTEXT, optional=frozenset())
    return read_values(require_file_of(folder, "ratings.txt"), names, delimiter=",")


def describe_depaul_movie(folder: Path, item_ids: Vocabulary) -> Catalogue:
    """Make a catalogue of ids: nothing else is known of these films."""
    return Catalogue(item_ids)
