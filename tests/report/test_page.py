"""The report of one run: what a reader, a browser and a screen reader get to see."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fedrec.errors import DataError
from fedrec.report import write_report
from tests.report.conftest import WriteRun, privacy, result
from tests.report.page_reader import PNG, read


def test_report_lies_in_the_run_folder_with_its_figures_beside_it(write_run: WriteRun) -> None:
    run = write_run(content=result(private=privacy()))
    path = write_report(run)
    assert path == run / "report" / "report.html"
    figures = sorted(figure.name for figure in path.parent.glob("*.png"))
    assert figures == [
        "learning_curve.png",
        "popularity_shares.png",
        "recall_by_activity.png",
        "recall_by_popularity.png",
    ]
    assert all(figure.read_bytes().startswith(PNG) for figure in path.parent.glob("*.png"))


def test_out_may_be_a_folder_or_a_page(write_run: WriteRun, tmp_path: Path) -> None:
    run = write_run(content=result(), rounds=1)
    assert write_report(run, tmp_path / "elsewhere") == tmp_path / "elsewhere" / "report.html"
    assert write_report(run, tmp_path / "elsewhere" / "mine.html").is_file()


def test_report_shows_the_numbers_rounded_and_the_privacy_statement(write_run: WriteRun) -> None:
    text = read(write_report(write_run(content=result(private=privacy())))).text
    assert "als on ml-1m" in text
    for shown in ("NDCG@10 0.0559 0.0532 0.4413", "HR@10 0.1139 0.1084 0.7241", "Recall@20 0.1816 0.1730 -"):
        assert shown in text
    assert "Novelty@10 9.20 8.77" in text
    assert "compatibility" in text
    assert "All releases are (7.9991, 1e-05)-DP per user, excluding hyper-parameter selection." in text
    assert "item factors 0.6183275 1 1" in text
    assert "1,000,209 interactions" in text
    assert "Both ways, per node, all rounds (at most) 47.4 MB" in text
    assert "no epsilon covers them" in text
    assert "versions.torch 2.13.0" in text


def test_epsilon_is_rounded_up_and_never_stands_alone(write_run: WriteRun) -> None:
    text = read(write_report(write_run(content=result(private=privacy(epsilon=2.00001)), rounds=1))).text
    assert "Privacy: epsilon 2.001" in text
    assert (
        "delta 1e-05, unit user, neighbouring relation add-or-remove one user, trust model central, accountant prv"
        in text
    )


def test_a_result_without_statement_gets_one_that_claims_no_more_than_its_terms(write_run: WriteRun) -> None:
    table = {**privacy(), "statement": None, "accountant": None}
    text = read(write_report(write_run(content=result(private=table), rounds=1))).text
    assert "accountant not stated" in text
    assert "states nothing about hyper-parameter selection" in text


def test_a_run_without_privacy_says_so(write_run: WriteRun) -> None:
    text = read(write_report(write_run(content=result(), private=False, rounds=2))).text
    assert "No privacy: this run adds no noise" in text
    assert "Noisy releases" not in text


def test_page_is_one_file_and_asks_nobody_else(write_run: WriteRun) -> None:
    path = write_report(write_run(content=result(private=privacy())))
    reader = read(path)
    assert not re.search(r"https?://|url\(|@import", path.read_text(encoding="utf-8"))
    assert not reader.all("script") and not reader.all("link")
    sources = [tag["src"] for tag in reader.all("img")] + [tag["srcset"] for tag in reader.all("source")]
    assert len(sources) == 8
    for source in sources:
        kind, _, data = source.partition(",")
        assert kind == "data:image/png;base64"
        assert base64.b64decode(data).startswith(PNG)


def test_page_can_be_read_without_seeing_it(write_run: WriteRun) -> None:
    reader = read(write_report(write_run(content=result(private=privacy()))))
    assert reader.all("html") == [{"lang": "en"}]
    assert all(len(image["alt"]) > 40 for image in reader.all("img"))
    assert all(heading["scope"] in ("row", "col") for heading in reader.all("th"))
    assert len(reader.all("caption")) == len(reader.all("table"))
    assert len(reader.all("figcaption")) == len(reader.all("figure")) == 4
    assert "seed 3" in reader.text


def test_names_from_the_run_are_escaped(write_run: WriteRun) -> None:
    name = "<script>alert('x')</script> $5 & $^{"
    content = result(private={**privacy(), "statement": "<img src=x onerror=y>"})
    content["data"]["name"] = name
    content["metrics"]["slices"]["activity"][0]["group"] = "<b>$x^$</b>"
    path = write_report(write_run(content=content, rounds=2))
    reader = read(path)
    assert not reader.all("script") and not reader.all("b")
    assert "src=x" not in str(reader.tags)
    assert name in reader.text


def test_unfinished_run_is_reported_from_its_rounds(write_run: WriteRun) -> None:
    path = write_report(write_run(rounds=7))
    text = read(path).text
    assert "als on ml-1m" in text
    assert "Privacy not final" in text and "target_epsilon 8.0" in text
    assert "No privacy" not in text
    assert "Rounds so far 7 of 7" in text
    assert (path.parent / "learning_curve.png").is_file()


def test_unfinished_run_without_config_claims_nothing(write_run: WriteRun) -> None:
    run = write_run(rounds=3, private=False)
    (run / "config.toml").unlink()
    text = read(write_report(run)).text
    assert "Privacy unknown" in text
    assert "No privacy:" not in text


def test_a_line_that_is_still_being_written_is_left_out(write_run: WriteRun) -> None:
    run = write_run(rounds=4)
    with (run / "rounds.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"round": 5, "sec')
    text = read(write_report(run)).text
    assert "Numbers of 4 rounds" in text
    assert "last line of rounds.jsonl is incomplete" in text


def test_rounds_without_metrics_and_slices_still_make_a_page(write_run: WriteRun) -> None:
    content = result()
    content["metrics"] = {"test": {"ndcg@10": float("nan"), "hr@10": None}}
    run = write_run(content=content, rounds=1)
    (run / "rounds.jsonl").write_text('{"round": 1, "seconds": 0.5, "metrics": {}}\n', encoding="utf-8")
    text = read(write_report(run)).text
    assert "NDCG@10 -" in text
    assert "No validation NDCG@10 or HR@10 was logged" in text
    assert "Whom and what" not in text


def test_a_retried_round_counts_once(write_run: WriteRun) -> None:
    run = write_run(rounds=3)
    lines = (run / "rounds.jsonl").read_text(encoding="utf-8")
    (run / "rounds.jsonl").write_text(lines + json.dumps({"round": 3, "seconds": 99.0}) + "\n", encoding="utf-8")
    text = read(write_report(run)).text
    assert "Numbers of 3 rounds" in text
    assert "99.0" in text


def test_a_thousand_rounds_make_a_short_table(write_run: WriteRun) -> None:
    reader = read(write_report(write_run(rounds=1000)))
    assert "One in 17 of 1,000 rounds" in reader.text
    assert len(reader.all("tr")) < 70


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("rounds.jsonl", '{"round": 1}\n{"round": 2,,}\n{"round": 3}\n', r"rounds\.jsonl, line 2: not valid JSON"),
        ("rounds.jsonl", '{"round": 1}\n[]\n', r"rounds\.jsonl, line 2 is a list"),
        ("rounds.jsonl", '{"round": "one"}\n', r"rounds\.jsonl, line 1: round is 'one'"),
        ("rounds.jsonl", '{"round": 1, "epsilon_spent": "4"}\n', r"line 1: epsilon_spent is '4'"),
        ("rounds.jsonl", '{"round": 1, "metrics": {"validation": {"hr@10": "x"}}}\n', r"metrics\.validation\.hr@10"),
        ("rounds.jsonl", '{"round": 1, "diag', r"rounds\.jsonl, line 1: not valid JSON"),
        ("result.json", '{\n"data": {},\n}', r"result\.json, line 3: not valid JSON"),
        ("result.json", '{"metrics": []}', r"result\.json: metrics is a list"),
        ("result.json", '{"privacy": {"epsilon": "8"}}', r"privacy\.epsilon is '8'"),
        ("result.json", '{"privacy": {"events": [{"count": true}]}}', r"events\[0\]\.count is True"),
        ("result.json", '{"metrics": {"slices": {"user": []}}}', r"metrics\.slices\.user is a list"),
        ("result.json", '{"metrics": {"slices": {"context": {"mood": {}}}}}', r"slices\.context\.mood is a dict"),
        ("result.json", '{"metrics": {"slices": {"gaps": {"user.age": {"hr@10": 1}}}}}', r"user\.age\.hr@10 is a int"),
        ("config.toml", "[data]\nname = \n", r"config\.toml is not valid TOML.*line 2"),
    ],
)
def test_damage_is_named_by_file_and_place(write_run: WriteRun, file: str, content: str, message: str) -> None:
    run = write_run(content=result(), rounds=2)
    (run / file).write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        write_report(run)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"not a run folder.*fedrec simulate"):
        write_report(tmp_path)
    with pytest.raises(DataError, match="not a folder"):
        write_report(tmp_path / "missing")


def test_importing_the_report_does_not_import_its_drawing_libraries() -> None:
    code = "import sys, fedrec.report.page; print({'matplotlib', 'jinja2', 'torch', 'pandas'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
