"""MovieLens: ml-100k, ml-1m and ml-latest-small (Harper and Konstan, 2015)."""

from __future__ import annotations

import csv
from pathlib import Path

from fedrec.data.catalogue import Catalogue
from fedrec.data.interactions import Interactions, Vocabulary
from fedrec.data.named.archives import Archive
from fedrec.data.named.demographics import AGE_GROUPS, Attribute, age_group, with_user_attributes
from fedrec.data.named.describing import ItemFacts, describe, require_fields
from fedrec.data.named.folders import Home, find_file, require_file_of
from fedrec.data.reading.columns import ColumnNames
from fedrec.data.reading.files import read_lines
from fedrec.data.reading.reader import read_values
from fedrec.data.reading.values import Values

_SITE = "https://files.grouplens.org/datasets/movielens/"
_HEADER = ("user", "item", "rating", "timestamp")
_NUM_GENRES_100K = 19
_GENDERS = {"F": "female", "M": "male"}
_OCCUPATIONS_100K = (
    "administrator",
    "artist",
    "doctor",
    "educator",
    "engineer",
    "entertainment",
    "executive",
    "healthcare",
    "homemaker",
    "lawyer",
    "librarian",
    "marketing",
    "none",
    "other",
    "programmer",
    "retired",
    "salesman",
    "scientist",
    "student",
    "technician",
    "writer",
)
_OCCUPATIONS_1M = (
    "other or not specified",
    "academic/educator",
    "artist",
    "clerical/admin",
    "college/grad student",
    "customer service",
    "doctor/health care",
    "executive/managerial",
    "farmer",
    "homemaker",
    "K-12 student",
    "lawyer",
    "programmer",
    "retired",
    "sales/marketing",
    "scientist",
    "self-employed",
    "technician/engineer",
    "tradesman/craftsman",
    "unemployed",
    "writer",
)

ML_100K = Home(
    name="ml-100k",
    folders=("ml-100k",),
    files=("u.data",),
    page="https://grouplens.org/datasets/movielens/100k/",
    archive=Archive(
        url=_SITE + "ml-100k.zip",
        checksum="md5:0e33842e24a9c977be4e0107933c0723",
        files=("u.data", "u.item", "u.genre", "u.user", "README"),
    ),
)
ML_1M = Home(
    name="ml-1m",
    folders=("ml-1m",),
    files=("ratings.csv", "ratings.dat"),
    page="https://grouplens.org/datasets/movielens/1m/",
    archive=Archive(
        url=_SITE + "ml-1m.zip",
        checksum="md5:c4d9eecfca2ab87c1945afe126590906",
        files=("ratings.dat", "movies.dat", "users.dat", "README"),
    ),
)
ML_LATEST_SMALL = Home(
    name="ml-latest-small",
    folders=("ml-latest-small",),
    files=("ratings.csv",),
    page="https://grouplens.org/datasets/movielens/latest/",
    archive=Archive(
        url=_SITE + "ml-latest-small.zip",
        checksum=None,  # GroupLens changes this set over time and publishes the MD5 beside it
        checksum_url=_SITE + "ml-latest-small.zip.md5",
        files=("ratings.csv", "movies.csv", "tags.csv", "README.txt"),
    ),
)


def read_ml_100k(folder: Path) -> Values:
    """Read `u.data`: user, item, rating, time, separated by tabs, without a header."""
    return read_values(require_file_of(folder, "u.data"), ColumnNames(), _HEADER, "\t")


def describe_ml_100k(folder: Path, item_ids: Vocabulary) -> Catalogue:
    """Describe the films by `u.item` and `u.genre`."""
    genres = [line.split("|")[0] for line in read_lines(require_file_of(folder, "u.genre")) if line.strip()]
    path, facts = require_file_of(folder, "u.item"), {}
    for line, text in enumerate(read_lines(path), start=1):
        fields = require_fields(path, line, text.split("|"), 5 + _NUM_GENRES_100K)
        flags = zip(genres, fields[5:], strict=False)
        facts[fields[0]] = ItemFacts(fields[1], [genre for genre, flag in flags if flag == "1"])
    return describe(item_ids, facts)


def with_users_of_ml_100k(folder: Path, interactions: Interactions) -> Interactions:
    """Add gender, age group and occupation of `u.user` (id, age, gender, occupation, zip code) where it is there."""
    path = find_file(folder, "u.user")
    if path is None:
        return interactions
    attributes = {
        "gender": Attribute(2, list(_GENDERS.values()), _GENDERS.__getitem__),
        "age": Attribute(1, AGE_GROUPS, age_group),
        "occupation": Attribute(3, _OCCUPATIONS_100K, str),
    }
    return with_user_attributes(interactions, path, "|", 5, attributes)


def read_ml_1m(folder: Path) -> Values:
    """Read `ratings.csv` (with a header), or the official `ratings.dat` ("::" between fields, no header)."""
    path = require_file_of(folder, "ratings.csv", "ratings.dat")
    if ".csv" in path.suffixes:
        return read_values(path, ColumnNames(user="user_id", item="movie_id", optional=frozenset()))
    return read_values(path, ColumnNames(), _HEADER, "::")


def describe_ml_1m(folder: Path, item_ids: Vocabulary) -> Catalogue:
    """Describe the films by `movies.dat` and, where it is there, cast and plot of `movies_extrainfos.dat`."""
    path, facts = require_file_of(folder, "movies.dat"), {}
    more = _plots(find_file(folder, "movies_extrainfos.dat"))
    for line, text in enumerate(read_lines(path), start=1):
        item_id, title, genres = require_fields(path, line, text.split("::"), 3)
        facts[item_id] = ItemFacts(title, genres.split("|"), more.get(item_id, ""))
    return describe(item_ids, facts)


def with_users_of_ml_1m(folder: Path, interactions: Interactions) -> Interactions:
    """Add gender, age group and occupation of `users.dat` (id, gender, age, occupation, zip) where it is there."""
    path = find_file(folder, "users.dat")
    if path is None:
        return interactions
    attributes = {
        "gender": Attribute(1, list(_GENDERS.values()), _GENDERS.__getitem__),
        "age": Attribute(2, AGE_GROUPS, age_group),
        "occupation": Attribute(3, _OCCUPATIONS_1M, lambda text: _OCCUPATIONS_1M[int(text)]),
    }
    return with_user_attributes(interactions, path, "::", 5, attributes)


def _plots(path: Path | None) -> dict[str, str]:
    """Return cast and plot by film, the 9th and 10th of 11 fields."""
    plots = {}
    for line, text in enumerate(read_lines(path) if path else [], start=1):
        fields = require_fields(path or Path(), line, text.split("::"), 11)
        actors, plot = (field if field not in ("", "N/A") else "" for field in fields[8:10])
        plots[fields[0]] = (f"With {actors}. " if actors else "") + plot
    return plots


def read_ml_latest_small(folder: Path) -> Values:
    """Read `ratings.csv`."""
    names = ColumnNames(user="userId", item="movieId", optional=frozenset())
    return read_values(require_file_of(folder, "ratings.csv"), names)


def describe_ml_latest_small(folder: Path, item_ids: Vocabulary, user_tags: bool = False) -> Catalogue:
    """Describe the films by `movies.csv`, and by the free-text tags of `tags.csv` if asked.

    Args:
        folder: the data set.
        item_ids: the items.
        user_tags: put the tags into the texts. They are written by the same users, so they are private data: with
            them in the *public* catalogue no epsilon covers what they say. Hence off unless asked for.
    """
    path, facts = require_file_of(folder, "movies.csv"), {}
    tags = _tags(require_file_of(folder, "tags.csv")) if user_tags else {}
    for line, fields in enumerate(csv.reader(read_lines(path)), start=1):
        item_id, title, genres = require_fields(path, line, fields, 3)
        more = f"Tags: {', '.join(tags[item_id])}" if item_id in tags else ""
        facts[item_id] = ItemFacts(title, genres.split("|"), more)
    return describe(item_ids, facts)


def _tags(path: Path) -> dict[str, list[str]]:
    """Return the distinct tags of each film, in lower case, in file order."""
    tags: dict[str, dict[str, None]] = {}
    for line, fields in enumerate(csv.reader(read_lines(path)), start=1):
        _, item_id, tag, _ = require_fields(path, line, fields, 4)
        tags.setdefault(item_id, {})[tag.strip().lower()] = None
    return {item_id: list(of_item) for item_id, of_item in tags.items()}
