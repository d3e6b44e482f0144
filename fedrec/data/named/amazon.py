"""Amazon instant video in the form that PFedRec uses (Zhang et al., 2023): reviewer, product, rating, time."""

from __future__ import annotations

from pathlib import Path

from fedrec.data.catalogue import Catalogue
from fedrec.data.interactions import Vocabulary
from fedrec.data.named.folders import Home, require_file_of
from fedrec.data.reading.columns import ColumnNames
from fedrec.data.reading.reader import read_values
from fedrec.data.reading.values import Values

AMAZON_VIDEO = Home(
    name="amazon-video",
    folders=("amazon-video-pfedrec", "amazon-video"),
    files=("ratings.dat",),
    page="https://github.com/Zhangcx19/IJCAI-23-PFedRec",
)


def read_amazon_video(folder: Path) -> Values:
    """Read `ratings.dat`: user, item, rating, time, separated by commas, without a header."""
    header = ("user", "item", "rating", "timestamp")
    return read_values(require_file_of(folder, "ratings.dat"), ColumnNames(), header, ",")


def describe_amazon_video(folder: Path, item_ids: Vocabulary) -> Catalogue:
    """Make a catalogue of ids: nothing else is known of these products."""
    return Catalogue(item_ids)
