"""Last.fm 2K of HetRec 2011 (Cantador et al., 2011): who tagged which artist when."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from fedrec.data.catalogue import Catalogue
from fedrec.data.interactions import Vocabulary
from fedrec.data.named.archives import Archive
from fedrec.data.named.describing import ItemFacts, describe, require_fields
from fedrec.data.named.folders import Home, require_file_of
from fedrec.data.reading.columns import ColumnNames
from fedrec.data.reading.files import read_lines
from fedrec.data.reading.reader import read_values
from fedrec.data.reading.times import UNKNOWN_TIME
from fedrec.data.reading.values import Values

LASTFM_2K = Home(
    name="lastfm-2k",
    folders=("lastfm-2k", "hetrec2011-lastfm-2k"),
    files=("user_taggedartists.dat",),
    page="https://grouplens.org/datasets/hetrec-2011/",
    archive=Archive(
        url="https://files.grouplens.org/datasets/hetrec2011/hetrec2011-lastfm-2k.zip",
        checksum="sha256:6738f48195667ff03caaab4d32ca9a3133d8cc026b7c3cdaf6ce1010e913c59c",
        files=("user_taggedartists.dat", "artists.dat", "readme.txt"),
    ),
)
_FIRST_DAY, _LAST_DAY = pd.Timestamp("2002-01-01"), pd.Timestamp("2011-12-31")  # the service's start, the data's year
_MICROS_PER_DAY = 86_400 * 10**6


def read_lastfm_2k(folder: Path) -> Values:
    """Read `user_taggedartists.dat`: one interaction for each user, artist and day.

    The plays of `user_artists.dat` have no time, and recency needs one; so an interaction is "the user tagged this
    artist on that day", however many tags were given. Which tags they were is not used. Days outside 2002-2011 (the
    file has 1956, 1957 and 1979) are unknown times.
    """
    names = ColumnNames("userID", "artistID", timestamp=None, rating=None, context=("day", "month", "year"))
    values = read_values(require_file_of(folder, "user_taggedartists.dat"), names, delimiter="\t")
    days = _days(values)
    triples = np.stack([values.users, values.items, days], axis=1)
    _, first = np.unique(triples, axis=0, return_index=True)
    first.sort()
    times = np.where(days == UNKNOWN_TIME, UNKNOWN_TIME, days * _MICROS_PER_DAY)[first]
    return replace(
        values, users=values.users[first], items=values.items[first], times=times, context={}, context_ids={}
    )


def _days(values: Values) -> np.ndarray:
    """Return (n,) int64 days since 1970, `UNKNOWN_TIME` where the date is impossible."""
    parts = {}
    for name in ("day", "month", "year"):
        numbers = pd.to_numeric(pd.Series(values.context_ids[name].ids), errors="coerce")
        parts[name] = np.asarray(numbers)[values.context[name]]
    dates = pd.to_datetime(pd.DataFrame(parts), errors="coerce")
    possible = np.asarray((dates >= _FIRST_DAY) & (dates <= _LAST_DAY))
    days = np.full(len(dates), UNKNOWN_TIME)
    days[possible] = dates[possible].to_numpy().astype("datetime64[D]").astype(np.int64)
    return days


def describe_lastfm_2k(folder: Path, item_ids: Vocabulary) -> Catalogue:
    """Describe the artists by their name in `artists.dat`; the tags are private, they are the interactions."""
    path, facts = require_file_of(folder, "artists.dat"), {}
    for line, text in enumerate(read_lines(path), start=1):
        fields = require_fields(path, line, text.split("\t"), 4)
        facts[fields[0]] = ItemFacts(fields[1])
    return describe(item_ids, facts)
