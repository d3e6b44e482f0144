"""Several runs side by side, on a page and in the terminal."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedrec.errors import ConfigError, DataError
from fedrec.report import compare, metric_table
from tests.report.conftest import WriteRun, privacy, result
from tests.report.page_reader import PNG, read


def write_frontier(write_run: WriteRun) -> dict[str, Path]:
    """Write popularity, two private runs and a non-private one; return label -> folder."""
    return {
        "popularity": write_run("popularity", result("popularity", test={"ndcg@10": 0.0183}), rounds=1, private=False),
        "epsilon 8": write_run("eight", result(private=privacy(8.0), test={"ndcg@10": 0.0582}), rounds=1),
        "epsilon 1": write_run("one", result(private=privacy(1.0), test={"ndcg@10": 0.0401}), rounds=1),
        "no privacy": write_run("open", result(test={"ndcg@10": 0.0962}), rounds=1, private=False),
    }


def test_compare_shows_metrics_terms_and_the_frontier(write_run: WriteRun, tmp_path: Path) -> None:
    runs = write_frontier(write_run)
    path = compare(list(runs.values()), tmp_path / "out", list(runs))
    assert path == tmp_path / "out" / "comparison.html"
    reader = read(path)
    assert "epsilon 8 als 8 1 0.0582 0.1084 0.1730 0.0367 0.4123 83.2" in reader.text
    assert "Epsilon 8, 1: delta 1e-05, unit user" in reader.text
    assert "No privacy: popularity; no privacy." in reader.text
    assert "One seed a run; no spread." in reader.text
    assert sorted(figure.name for figure in path.parent.glob("*.png")) == ["metrics_by_run.png", "privacy_utility.png"]
    assert all(figure.read_bytes().startswith(PNG) for figure in path.parent.glob("*.png"))
    alt = reader.all("img")[1]["alt"]
    assert "als at epsilon 1 0.0401" in alt and "popularity (line) 0.0183" in alt and "no privacy (line) 0.0962" in alt


def test_runs_of_one_label_are_repeats_with_mean_and_spread(write_run: WriteRun, tmp_path: Path) -> None:
    folders = []
    for seed, ndcg in enumerate((0.05, 0.06, 0.07)):
        content = result(private=privacy(8.0), test={"ndcg@10": ndcg})
        content["environment"]["seed"] = seed
        folders.append(write_run(f"seed-{seed}", content, rounds=1))
    text = read(compare(folders, tmp_path / "page.html", ["als"] * 3)).text
    assert "als als 8 3 0.0600 ± 0.0100" in text
    assert "Means over 3 seeds" in text


def test_epsilons_of_different_claims_are_never_on_one_curve(write_run: WriteRun, tmp_path: Path) -> None:
    example = {**privacy(8.0), "unit": "interaction", "trust_model": "local", "max_grad_norm": 0.5}
    example.pop("clipping_norm")
    folders = [
        write_run("user-8", result(private=privacy(8.0), test={"ndcg@10": 0.05}), rounds=1),
        write_run("user-1", result(private=privacy(1.0), test={"ndcg@10": 0.04}), rounds=1),
        write_run("interaction-8", result(private=example, test={"ndcg@10": 0.06}), rounds=1),
    ]
    reader = read(compare(folders, tmp_path / "out", ["a", "b", "c"]))
    alt = reader.all("img")[1]["alt"]
    for series in ("als (unit user, central trust) at epsilon 1", "als (unit interaction, local trust) at epsilon 8"):
        assert series in alt
    with pytest.raises(ConfigError, match="epsilon or claim"):
        compare([folders[0], folders[2]], tmp_path / "out", ["a", "a"])


def test_runs_of_one_privacy_level_get_no_frontier(write_run: WriteRun, tmp_path: Path) -> None:
    folders = [write_run(name, result(), rounds=1, private=False) for name in ("a", "b")]
    path = compare(folders, tmp_path / "out")
    assert not (path.parent / "privacy_utility.png").exists()
    assert read(path).text.count("No privacy") >= 1


def test_runs_on_different_data_are_marked_as_not_comparable(write_run: WriteRun, tmp_path: Path) -> None:
    other = result()
    other["data"]["name"] = "ml-100k"
    folders = [write_run("a", result(), rounds=1), write_run("b", other, rounds=1)]
    assert "Not comparable as they stand" in read(compare(folders, tmp_path)).text


def test_an_unfinished_run_is_listed_without_numbers(write_run: WriteRun, tmp_path: Path) -> None:
    folders = [write_run("done", result(), rounds=1), write_run("going", rounds=3)]
    text = read(compare(folders, tmp_path / "out")).text
    assert "going als unfinished 1 - - - - - -" in text
    assert "Unfinished: going." in text


def test_runs_in_folders_of_one_name_keep_apart(write_run: WriteRun, tmp_path: Path) -> None:
    folders = [write_run("a/run", result(), rounds=1), write_run("b/run", result(), rounds=1)]
    text = read(compare(folders, tmp_path / "out")).text
    assert "a/run als" in text and "b/run als" in text


def test_labels_that_do_not_fit_are_refused(write_run: WriteRun, tmp_path: Path) -> None:
    one = write_run("one", result(private=privacy(1.0)), rounds=1)
    two = write_run("two", result(private=privacy(2.0)), rounds=1)
    with pytest.raises(ConfigError, match="1 labels for 2 runs"):
        compare([one, two], tmp_path / "out", ["a"])
    with pytest.raises(ConfigError, match="only repeats of one experiment"):
        compare([one, two], tmp_path / "out", ["a", "a"])
    with pytest.raises(ConfigError, match="given twice"):
        compare([one, one], tmp_path / "out")
    with pytest.raises(ConfigError, match="no runs"):
        compare([], tmp_path / "out")


def test_metric_table_fits_the_terminal_and_keeps_labels_apart() -> None:
    long = "a-very-long-name-" * 8
    results = {f"{long}{end}": result(private=privacy(1234.5678), test={"ndcg@10": 0.123449}) for end in ("one", "two")}
    lines = metric_table(results).splitlines()
    assert max(len(line) for line in lines) <= 100
    assert lines[2].split()[0].endswith("one") and lines[3].split()[0].endswith("two")
    assert "0.1234" in lines[2] and "1234.568" in lines[2]


def test_metric_table_says_what_each_number_is() -> None:
    text = metric_table({"popularity": result("popularity"), "als": result(private=privacy()), "empty": {}})
    header, _, popularity, als, empty, *notes = text.splitlines()
    assert header.split() == ["run", "epsilon", "NDCG@10", "HR@10", "Recall@20", "MRR@10", "coverage@10", "seconds"]
    assert popularity.split() == ["popularity", "none", "0.0532", "0.1084", "0.1730", "0.0367", "0.4123", "83.2"]
    assert als.split()[:3] == ["als", "8", "0.0532"]
    assert empty.split() == ["empty", "none", *["-"] * 6]
    note = " ".join(notes)
    assert "epsilon 8: delta 1e-05, unit user, neighbouring relation add-or-remove one user" in note
    assert "not covered by epsilon" in note


def test_metric_table_shows_no_control_characters() -> None:
    assert "\x1b" not in metric_table({"\x1b[31mred\nrow": result()})


def test_metric_table_names_a_result_of_the_wrong_shape() -> None:
    with pytest.raises(DataError, match="result of als: metrics is a str"):
        metric_table({"als": {"metrics": "none"}})
