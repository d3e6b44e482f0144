"""Queries: the context a list is wanted in, from held-out interactions, from words and from the clock."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest

from fedrec.data.interactions import Interactions, Vocabulary
from fedrec.data.queries import parse_query, queries_of, turns
from fedrec.data.reading.times import UNKNOWN_TIME
from fedrec.data.sources import load
from fedrec.data.time_context import add_time_context
from fedrec.errors import ConfigError, DataError
from tests.data.histories import make
from tests.worlds import make as without_context

PLACES = make([(0, 3, 1), (0, 1, 2), (0, 2, 3), (2, 0, 1), (2, 4, 2)], 4, 5)
HEAT = replace(PLACES, context={**PLACES.context, "heat": np.arange(5, dtype=np.float32) / 2})


def test_every_held_out_interaction_gets_a_turn_of_its_own() -> None:
    parts = list(turns(PLACES))
    assert [part.users.tolist() for part in parts] == [[0, 2], [0, 2], [0]]
    assert [part.items.tolist() for part in parts] == [[3, 0], [1, 4], [2]]


def test_data_without_context_is_one_part_untouched() -> None:
    plain = without_context([(0, 1), (0, 2), (1, 0)], 2, 3)
    assert [part is plain for part in turns(plain)] == [True]
    assert queries_of(plain) == {}


def test_query_of_a_target_is_its_own_context_and_unknown_for_the_others() -> None:
    first = next(turns(HEAT))
    found = queries_of(first)
    assert found["place"].tolist() == [0, -1, 0, -1]
    assert found["heat"][[0, 2]].tolist() == [0, 1.5] and np.isnan(found["heat"][[1, 3]]).all()


def test_words_become_codes_and_numbers() -> None:
    found = parse_query(HEAT, {"place": "work", "heat": "2.5"})
    assert found["place"] == 2 and found["heat"] == 2.5


def test_what_is_not_said_is_unknown() -> None:
    found = parse_query(HEAT, {})
    assert found["place"] == -1 and np.isnan(found["heat"])


def test_unknown_is_the_category_of_that_name_where_the_data_has_it() -> None:
    ids = Vocabulary(np.array(["home", "unknown", "work"]))
    assert parse_query(replace(PLACES, context_ids={"place": ids}), {})["place"] == 1


def test_value_nobody_has_met_counts_as_unknown_and_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert parse_query(PLACES, {"place": "moon"})["place"] == -1
    assert "'moon'" in caplog.text and "home, way, work" in caplog.text


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"plac": "home"}, "'plac' is unknown; allowed are place, heat; did you mean place"),
        ({"heat": "warm"}, "heat='warm' is not a finite number"),
        ({"heat": "inf"}, "not a finite number"),
    ],
)
def test_fields_and_numbers_that_cannot_be_are_refused(given: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_query(HEAT, given)


def test_context_of_data_without_any_is_refused() -> None:
    with pytest.raises(ConfigError, match="no context fields"):
        parse_query(without_context([(0, 0)], 1, 1), {"place": "home"})


def test_catalogue_knows_how_many_values_each_field_has() -> None:
    found = load("synthetic", synthetic={"num_users": 30, "num_items": 200}, time_context=["hour", "weekday"])
    assert found.catalogue.context_fields == {"daytime": 4, "device": 3, "hour": 25, "weekday": 8}
    assert HEAT.context_fields == {"place": 3, "heat": 0}


def test_hour_and_weekday_follow_from_the_clock_in_utc() -> None:
    moments = ["1970-01-01T00:00:00", "1969-12-31T23:59:59", "2024-02-29T13:30:00", "2026-07-05T06:00:00"]
    seconds = np.array(moments, dtype="datetime64[s]").astype(np.int64)
    zero = np.zeros(5, dtype=np.int64)
    data = Interactions(
        np.arange(5),
        zero,
        Vocabulary(np.arange(5)),
        Vocabulary(np.arange(1)),
        times=np.array([*seconds, UNKNOWN_TIME]),
    )
    found = add_time_context(data, ["weekday", "hour"])
    days, hours = (found.context_ids[name].ids[found.context[name]].tolist() for name in ("weekday", "hour"))
    assert days == ["thursday", "wednesday", "thursday", "sunday", "unknown"]
    assert hours == ["0", "23", "13", "6", "unknown"]
    assert add_time_context(data, []) is data


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        (["hours"], ConfigError, "did you mean hour"),
        (["hour", "hour"], ConfigError, "there already"),
        (["place"], ConfigError, "allowed are hour, weekday"),
    ],
)
def test_time_context_that_cannot_be_is_refused(fields: list[str], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        add_time_context(PLACES, fields)


def test_time_context_needs_times() -> None:
    with pytest.raises(DataError, match="no times"):
        add_time_context(replace(PLACES, times=None), ["hour"])
