"""The real data sets, where this machine has them: counts as counted, catalogues of exactly their items."""

from __future__ import annotations

import numpy as np
import pytest

from fedrec.data.reading.times import UNKNOWN_TIME
from fedrec.data.sources import load
from fedrec.data.splits import SPLITS, split
from fedrec.randomness import Key
from tests.data.conftest import needs

# name -> folder, (interactions, users, items), categories, whether there are texts
SETS = {
    "ml-100k": ("ml-100k", (100_000, 943, 1_682), 18, True),
    "ml-1m": ("ml-1m", (1_000_209, 6_040, 3_706), 18, True),
    "ml-latest-small": ("ml-latest-small", (100_836, 610, 9_724), 19, True),
    "amazon-video": ("amazon-video-pfedrec", (63_836, 8_072, 11_830), None, False),
    "lastfm-2k": ("lastfm-2k", (71_064, 1_892, 12_523), None, True),
    "frappe": ("frappe", (18_842, 957, 4_082), 31, True),
    "depaul-movie": ("depaul-movie", (1_443, 97, 79), None, False),
    "incarmusic": ("incar-music", (930, 42, 139), 10, True),
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=needs(folder)) for name, (folder, *_) in SETS.items()])
def test_counts_are_those_of_the_source(name: str) -> None:
    _, counts, num_categories, has_texts = SETS[name]
    data = load(name)
    found, catalogue = data.interactions, data.catalogue
    assert (len(found), found.num_users, found.num_items) == counts
    assert catalogue.item_ids is found.item_ids
    assert (found.lengths > 0).all() and (np.bincount(found.items, minlength=found.num_items) > 0).all()
    assert (None if catalogue.categories is None else catalogue.categories.shape[1]) == num_categories
    assert (catalogue.texts is not None and sum(map(bool, catalogue.texts)) > 0.8 * counts[2]) == has_texts


@needs("frappe")
def test_frappe_repeats_pairs_in_context() -> None:
    found = load("frappe", repeat=True).interactions
    assert len(found) == 96_203 and found.times is None
    assert len(found.context_ids["daytime"]) == 7 and len(found.context_ids["country"]) == 80
    kept = split("leave_one_out", found, Key.from_seed(0), repeat=True)
    assert len(kept.train) + len(kept.validation) + len(kept.test) == 96_203


@needs("depaul-movie", "incar-music")
def test_surveys_of_contexts_keep_every_rating_if_asked_and_unknown_is_a_value() -> None:
    movies = load("depaul-movie", repeat=True).interactions
    assert len(movies) == 5_043 and movies.times is None
    assert {name: len(ids) for name, ids in movies.context_ids.items()} == {"Time": 3, "Location": 3, "Companion": 4}
    unknown = movies.context_ids["Companion"].rows(np.array(["unknown"]))
    assert (movies.context["Companion"] == unknown).sum() == 1_448
    music = load("incarmusic", repeat=True).interactions
    assert len(music) == 4_012 and music.times is None and len(music.context) == 8
    known = sum(column != music.context_ids[n].rows(np.array(["unknown"])) for n, column in music.context.items())
    assert known.max() == 1 and 0 < (known == 0).sum() < len(music)


# name -> folder, (women, men), users of each age group
PEOPLE = {
    "ml-100k": ((273, 670), (36, 198, 310, 194, 80, 73, 52)),
    "ml-1m": ((1_709, 4_331), (222, 1_103, 2_096, 1_193, 550, 496, 380)),
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=needs(name)) for name in PEOPLE])
def test_movielens_knows_gender_age_and_occupation_of_every_user(name: str) -> None:
    found = load(name).interactions
    counts = {n: np.bincount(c, minlength=len(found.user_attribute_ids[n])) for n, c in found.user_attributes.items()}
    assert counts["gender"].tolist() == [*PEOPLE[name][0], 0] and counts["age"].tolist() == [*PEOPLE[name][1], 0]
    assert (counts["occupation"][:-1] > 0).all() and len(counts["occupation"]) == 22 and not counts["occupation"][-1]


@needs("lastfm-2k")
def test_impossible_dates_of_lastfm_are_unknown() -> None:
    times = load("lastfm-2k").interactions.times
    assert times is not None and 0 < (times == UNKNOWN_TIME).sum() <= 5
    known = times[times != UNKNOWN_TIME]
    assert known.min() >= np.datetime64("2005-01-01").astype("datetime64[s]").astype(int)


@needs("ml-1m")
def test_ml_1m_splits_in_every_way() -> None:
    found = load("ml-1m").interactions
    for name in SPLITS:
        parts = split(name, found, Key.from_seed(0))
        assert len(parts.test) > 0 and len(parts.validation) > 0
    assert len(split("leave_one_out", found, Key.from_seed(0)).test) == 6_040


@needs("ml-1m")
def test_min_rating_keeps_the_rows_of_at_least_that() -> None:
    found = load("ml-1m", min_rating=4).interactions
    assert len(found) == 575_281 and found.ratings is not None and found.ratings.min() == 4
