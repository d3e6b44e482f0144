"""`fedrec data check`: lists what is wrong, or says what is there."""

from __future__ import annotations

import pytest

from fedrec.data.check import check_file
from fedrec.errors import ConfigError

HEAD = "user,item,timestamp,rating\n"


def test_every_fault_is_listed_by_line_and_counted(write) -> None:
    rows = ["1,10,1000,5", "1,11,soon,4", "1,12", ",13,1000,9", "1,14,1000,-1", "1,15,later,x"]
    report = check_file(write(HEAD + "\n".join(rows) + "\n"))
    assert [(p.line, p.column) for p in report.problems] == [
        (3, "timestamp"),
        (4, None),
        (5, "user"),
        (6, "rating"),
        (7, "timestamp"),
        (7, "rating"),
    ]
    assert report.num_problems == 6
    assert str(report).endswith(": 6 problems")


def test_only_the_first_twenty_are_listed(write) -> None:
    report = check_file(write(HEAD + "1,10,soon,-1\n" * 50 + "1,2\n" * 3))
    assert len(report.problems) == 20 and report.num_problems == 103
    assert [p.line for p in report.problems] == [2 + i // 2 for i in range(20)]
    assert "103 problems; these are the first 20" in str(report)


def test_a_good_file_is_summarised(write) -> None:
    rows = [
        "1,10,1000,5",
        "1,11,2000,4",
        "1,12,,4",
        "2,10,1500,2",
        "2,10,1700,3",
        "3,10,1000,1",
        "3,11,1,2",
        "3,12,2,2",
    ]
    report = check_file(write(HEAD + "\n".join(rows) + "\n"))
    summary = report.summary
    assert report.ok and summary is not None
    assert (summary.num_users, summary.num_items, summary.num_interactions) == (3, 3, 8)
    assert summary.num_duplicates == 1
    assert summary.num_short_users == 1
    assert summary.share_without_time == pytest.approx(1 / 8)
    assert (summary.first_time, summary.last_time) == ("1970-01-01T00:00:01Z", "1970-01-01T00:33:20Z")
    assert summary.ratings == (1.0, 5.0)
    assert "are they unix seconds?" in str(report)


def test_context_and_oddities_are_told(write) -> None:
    path = write("user,item,place,heat\n1,2,home,20.5\n2,3,work,1\n")
    report = check_file(path, {"context": ["place", "heat"]})
    assert report.summary is not None and report.summary.context == {"place": 2, "heat": None}
    assert report.summary.share_without_time == 1.0
    text = str(report)
    assert "no times" in text and "nobody can be evaluated" in text and "every row has its own item" in text


def test_a_config_error_stays_one(write) -> None:
    with pytest.raises(ConfigError, match="did you mean timestamp"):
        check_file(write(HEAD + "1,2,3,4\n"), {"timestmp": "time"})
