"""Slices in a report: a table each, gaps in words, and nothing about groups of a few users."""

from __future__ import annotations

from fedrec.report import write_report
from fedrec.report.run import Group, Slice
from fedrec.report.slices import MOST_GROUPS, slice_table
from tests.report.conftest import WriteRun, result
from tests.report.page_reader import read


def test_every_slice_is_a_table_of_users_ndcg_and_hit_rate(write_run: WriteRun) -> None:
    text = read(write_report(write_run(content=result(), rounds=1))).text
    assert "gender of the user (no model sees it) gender Users NDCG@10 HR@10 female 1,709 0.0444 0.0999" in text
    assert "weather of the target's context weather Users NDCG@10 HR@10 unknown 6,040 0.0532 0.1084" in text
    assert "by history length Interactions known when ranking Users NDCG@10 HR@10 5-9 6,040 0.0532 0.1084" in text
    assert "by category of the target Category Users NDCG@10 HR@10 Drama 4,000 0.0511 0.1111" in text


def test_gaps_are_one_line_each_with_what_chance_would_make(write_run: WriteRun) -> None:
    text = read(write_report(write_run(content=result(), rounds=1))).text
    assert (
        "Gap by gender (2 groups of at least 50 users): NDCG@10 0.0000 (female lowest, male highest, 0.0000 to expect "
        "by chance); HR@10 0.0119 (female lowest, male highest, ratio 0.89, 0.0090 to expect by chance)."
    ) in text
    assert "Gap by history length: there are not two groups of at least 50 users." in text


def test_metrics_of_a_few_users_are_shown_only_if_asked(write_run: WriteRun) -> None:
    content = result()
    activity = content["metrics"]["slices"]["activity"]
    activity.append({"group": "1000+", "num_users": 9, "ndcg@10": 0.9876, "hr@10": 0.9876, "recall@20": 0.9876})
    run = write_run(content=content, rounds=1)
    reader = read(write_report(run))
    assert "Metrics of groups of fewer than 10 users are in no figure and no table." in reader.text
    assert "Western 9 - -" in reader.text and "1000+ 9 - - -" in reader.text
    assert not any("1000+" in image["alt"] for image in reader.all("img"))
    asked = read(write_report(run, min_users=1))
    assert "Western 9 0.4321 0.5555" in asked.text and "1000+ 9 0.9876" in asked.text
    assert any("1000+ 0.988" in image["alt"] for image in asked.all("img"))


def test_names_of_fields_and_groups_are_escaped(write_run: WriteRun) -> None:
    content = result()
    slices = content["metrics"]["slices"]
    slices["context"] = {"<i>{name}$": [{"group": "<b>", "num_users": 50, "ndcg@10": 0.1, "hr@10": 0.1}]}
    reader = read(write_report(write_run(content=content, rounds=1)))
    assert not reader.all("b") and not reader.all("i")
    assert "<i>{name}$ of the target's context" in reader.text


def test_of_many_groups_the_largest_are_shown() -> None:
    groups = tuple(Group(f"g{k}", {"num_users": float(k % 60), "ndcg@10": 0.1}) for k in range(120))
    table = slice_table(Slice("category", "", groups), 10)
    assert len(table.rows) == MOST_GROUPS and table.note == "The 40 largest of 120 groups."
    assert {row[1] for row in table.rows} == {str(users) for users in range(40, 60)}
    assert table.columns == ("Category", "Users", "NDCG@10")
