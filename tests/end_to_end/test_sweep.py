"""`fedrec sweep`: it looks at validation alone, goes on where it was stopped, and says what it found."""

from __future__ import annotations

import csv
import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import client.app
from fedrec import simulation
from fedrec.cli import main
from fedrec.config import load
from fedrec.errors import ProtocolError
from fedrec.federated import coordinator
from fedrec.run_folder import RunFolder
from fedrec.tuning.trials import Order, TrialLog
from server import strategy
from tests.end_to_end.conftest import CONFIG, PRIVACY, Outcome
from tests.end_to_end.test_resume import Stop, stop_at

Fedrec = Callable[..., Outcome]
RANGES = ("--set-range", "model.dim=4..12", "--set-range", "model.recency_weight=0.5..50.0:log")
SHORT = ("--set", "federated.num_rounds=2", "--set", "evaluation.every=0")


def sweep(fedrec: Fedrec, config: Path, out: Path, *options: object) -> dict[str, Any]:
    outcome = fedrec("sweep", config, "--out", out, "--json", *SHORT, *options)
    assert outcome.code == 0, outcome.err
    found: dict[str, Any] = json.loads(outcome.out.splitlines()[-1])
    assert found == json.loads((out / "sweep.json").read_text())
    return found


def what_counts(found: dict[str, Any]) -> list[dict[str, Any]]:
    return [{name: value for name, value in trial.items() if name != "seconds"} for trial in found["trials"]]


def test_sweep_never_ranks_a_test_target(
    fedrec: Fedrec, config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    phases = []
    original = client.app.evaluate_users

    def recording(*arguments: Any, **options: Any) -> Any:
        phases.append(arguments[3])
        return original(*arguments, **options)

    monkeypatch.setattr(client.app, "evaluate_users", recording)
    sweep(fedrec, config_file, tmp_path / "sweep", *RANGES, "--trials", 2, "--set", "evaluation.every=1")
    assert set(phases) == {"validation"} and len(phases) == 2 * 2 * 3
    texts = [path.read_text() for path in (tmp_path / "sweep").rglob("*") if path.is_file()]
    assert not any('"test"' in text for text in texts)


def test_other_test_targets_change_nothing_of_a_sweep(fedrec: Fedrec, tmp_path: Path) -> None:
    found = []
    for name in ("one", "other"):
        rng, rows = np.random.default_rng(0), []
        for user in range(40):
            items = rng.permutation(30)[:9].tolist()
            rows += [(user, item, step) for step, item in enumerate(items[:7])]
            rows.append((user, items[7 if name == "one" else 8], 7))
        rows += [(100 + item, item, 0) for item in range(30)]  # too short to be evaluated; all items are known
        with (tmp_path / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("user", "item", "timestamp"), *rows])
        config = tmp_path / f"{name}.toml"
        config.write_text(CONFIG.format(data=tmp_path / f"{name}.csv"))
        found.append(sweep(fedrec, config, tmp_path / name, *RANGES, "--trials", 3))
    assert found[0]["data_fingerprint"] != found[1]["data_fingerprint"]
    assert what_counts(found[0]) == what_counts(found[1])


def test_nodes_of_a_trial_refuse_the_test_phase(
    config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strategy.Session, "validate", lambda session: session.evaluate("test"))
    config = load(config_file)
    RunFolder(tmp_path / "run").create(config)
    with pytest.raises(ProtocolError, match="looks at validation data only; 'test' is refused"):
        simulation.run_trial(tmp_path / "run", config, Order("ndcg@10"))


def test_best_config_is_complete_and_gives_what_was_found(fedrec: Fedrec, config_file: Path, tmp_path: Path) -> None:
    found = sweep(fedrec, config_file, tmp_path / "sweep", *RANGES, "--trials", 3, "--sampler", "random")
    best = max(found["trials"], key=lambda trial: trial["value"])
    assert found["best"] == best and found["privacy"] is None
    text = (tmp_path / "sweep" / "best.toml").read_text()
    command = next(line for line in text.splitlines() if line.startswith("# Found by: fedrec sweep "))
    for option in (*RANGES, "--trials", "3", "--sampler random", "--metric ndcg@10", "--set evaluation.every=0"):
        assert option in command
    table = tomllib.loads(text)
    assert table["model"]["dim"] == best["params"]["model.dim"] and "regularization" in table["model"]
    outcome = fedrec("simulate", tmp_path / "sweep" / "best.toml", "--out", tmp_path / "run", "--json")
    assert json.loads(outcome.out)["metrics"]["validation"]["ndcg@10"] == best["value"]
    assert sorted(path.name for path in (tmp_path / "sweep").iterdir()) == [
        "best.toml",
        "plan.json",
        "sweep.json",
        "trials.jsonl",
    ], "no run folder is left"


def test_seeds_are_averaged_and_the_same_point_is_not_run_again(
    fedrec: Fedrec, config_file: Path, tmp_path: Path
) -> None:
    found = sweep(fedrec, config_file, tmp_path / "s", "--set-range", "model.dim=4,8", "--trials", 5, "--seeds", 2)
    again = [trial for trial in found["trials"] if trial["reason"].startswith("the same as trial")]
    assert len(again) == 3 and all(trial["rounds"] == 0 for trial in again)
    best = found["best"]
    assert len(best["values"]) == 2 and best["value"] == pytest.approx(sum(best["values"]) / 2)
    for seed, value in enumerate(best["values"]):
        settings = ("--set", f"runtime.seed={seed}", "--out", tmp_path / f"run-{seed}", "--json")
        outcome = fedrec("simulate", tmp_path / "s" / "best.toml", *settings)
        assert json.loads(outcome.out)["metrics"]["validation"]["ndcg@10"] == value


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, data_file: Path) -> tuple[list[str], Path]:
    """A private sweep of two trials with two seeds of two rounds each: its arguments, and where it lies."""
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "private.toml").write_text(CONFIG.format(data=data_file) + PRIVACY)
    arguments = ["sweep", str(folder / "private.toml"), *SHORT, *RANGES, "--trials", "2", "--seeds", "2"]
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--out", str(folder / "whole")])
    assert stop.value.code == 0
    return arguments, folder / "whole"


@pytest.mark.parametrize(
    ("owner", "name", "call", "before"),
    [
        (TrialLog, "append", 1, True),
        (TrialLog, "append", 1, False),
        (coordinator, "write_checkpoint", 5, False),
        (RunFolder, "create", 5, True),
        (RunFolder, "finish_round", 6, False),
    ],
)
def test_sweep_that_was_stopped_goes_on_as_if_it_had_not_been(
    fedrec: Fedrec,
    undisturbed: tuple[list[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    owner: object,
    name: str,
    call: int,
    before: bool,
) -> None:
    arguments, whole = undisturbed
    with pytest.raises(Stop), monkeypatch.context() as patch:
        stop_at(patch, owner, name, call, before)
        main([*arguments, "--out", str(tmp_path)])
    outcome = fedrec(*arguments, "--out", tmp_path)
    assert outcome.code == 0, outcome.err
    stopped, expected = (json.loads((folder / "sweep.json").read_text()) for folder in (tmp_path, whole))
    assert what_counts(stopped) == what_counts(expected)
    assert (tmp_path / "best.toml").read_text() == (whole / "best.toml").read_text()


def test_more_trials_go_on_where_fewer_ended(fedrec: Fedrec, config_file: Path, tmp_path: Path) -> None:
    whole = sweep(fedrec, config_file, tmp_path / "whole", *RANGES, "--trials", 4)
    first = sweep(fedrec, config_file, tmp_path / "parts", *RANGES, "--trials", 2)
    assert what_counts(first) == what_counts(whole)[:2]
    assert what_counts(sweep(fedrec, config_file, tmp_path / "parts", *RANGES, "--trials", 4)) == what_counts(whole)


def test_trial_that_fails_is_recorded_with_its_reason_and_the_sweep_goes_on(
    fedrec: Fedrec, config_file: Path, tmp_path: Path
) -> None:
    found = sweep(fedrec, config_file, tmp_path / "s", "--set-range", "model.dim=4,100000", "--trials", 6)
    failed = [trial for trial in found["trials"] if trial["state"] == "failed"]
    assert failed and all("model.dim=100000 is not allowed" in trial["reason"] for trial in failed)
    assert all(trial["value"] is None for trial in failed) and found["best"]["params"] == {"model.dim": 4}


def test_sweep_whose_trials_all_fail_says_why(
    fedrec: Fedrec, config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object) -> None:
        raise RuntimeError("singular matrix")

    monkeypatch.setattr(strategy.Session, "train", broken)
    outcome = fedrec("sweep", config_file, "--out", tmp_path / "s", *SHORT, *RANGES, "--trials", 2)
    assert outcome.code == 2 and "none of 2 trials is complete; the first: singular matrix" in outcome.err
    assert len(json.loads((tmp_path / "s" / "sweep.json").read_text())["trials"]) == 2
    assert not (tmp_path / "s" / "best.toml").exists()


def test_trial_below_the_floor_ends_early(config_file: Path, tmp_path: Path) -> None:
    config = load(config_file)
    RunFolder(tmp_path / "run").create(config)
    found = simulation.run_trial(tmp_path / "run", config, Order("hr@10", {2: 1.1}))
    assert found["pruned"] and found["rounds"] == 2 and list(found["curve"]) == ["1", "2"]
    assert found["value"] == max(found["curve"].values())


def test_pruning_spends_fewer_rounds_and_keeps_the_best(fedrec: Fedrec, config_file: Path, tmp_path: Path) -> None:
    ranges = ("--set-range", "model.recency_weight=0.1..50.0:log", "--trials", 7, "--sampler", "random")
    options = (*ranges, "--set", "federated.num_rounds=3", "--set", "evaluation.every=1")
    pruned = sweep(fedrec, config_file, tmp_path / "pruned", *options, "--prune")
    whole = sweep(fedrec, config_file, tmp_path / "whole", *options)
    ended = [trial for trial in pruned["trials"] if trial["state"] == "pruned"]
    assert ended and all(trial["rounds"] < 3 and trial["number"] >= 5 for trial in ended)
    assert pruned["best"]["params"] == whole["best"]["params"]


def test_private_sweep_says_that_the_choice_is_not_covered(
    fedrec: Fedrec, private_config_file: Path, tmp_path: Path
) -> None:
    outcome = fedrec("sweep", private_config_file, "--out", tmp_path / "s", *SHORT, *RANGES, "--trials", 2)
    assert outcome.code == 0, outcome.err
    assert "warning: hyper-parameters were chosen by looking at private validation data" in outcome.err
    assert "ndcg@10" in outcome.err and outcome.out.strip().endswith("best.toml")
    assert "no epsilon of a run with them covers that choice" in (tmp_path / "s" / "best.toml").read_text()
    found = json.loads((tmp_path / "s" / "sweep.json").read_text())
    assert "excluding hyper-parameter selection" in found["privacy"]["statement"]
    run = fedrec("simulate", tmp_path / "s" / "best.toml", "--out", tmp_path / "run", "--json")
    assert "excluding hyper-parameter selection" in json.loads(run.out)["privacy"]["statement"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "the search space is empty"),
        (("--set-range", "model.dimm=1,2"), "unknown key model.dimm; did you mean 'dim'"),
        (("--set-range", "runtime.seed=1,2"), "runtime.seed can't be searched"),
        ((*RANGES, "--metric", "ndcg@5"), "'ndcg@5' is unknown; allowed are ndcg@10"),
        ((*RANGES, "--sampler", "grid"), "'grid' is unknown; allowed are tpe, random"),
        ((*RANGES, "--prune"), "evaluation.every=0"),
        ((*RANGES, "--trials", "0"), "--trials"),
        (("--space", "none.toml"), "can't be read"),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_folder(
    fedrec: Fedrec, config_file: Path, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    outcome = fedrec("sweep", config_file, "--out", tmp_path / "s", *SHORT, *options)
    assert outcome.code == 2 and message in outcome.err, outcome.err
    assert not (tmp_path / "s").exists()


def test_another_sweep_in_the_folder_is_refused(fedrec: Fedrec, config_file: Path, tmp_path: Path) -> None:
    sweep(fedrec, config_file, tmp_path / "s", *RANGES, "--trials", 1)
    outcome = fedrec("sweep", config_file, "--out", tmp_path / "s", *SHORT, *RANGES, "--metric", "hr@10")
    assert outcome.code == 2 and "holds another sweep" in outcome.err
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("dear")
    outcome = fedrec("sweep", config_file, "--out", tmp_path / "full", *SHORT, *RANGES)
    assert outcome.code == 2 and "not empty and holds no sweep" in outcome.err
