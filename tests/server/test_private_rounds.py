"""Private rounds through the apps: who is drawn, what they are clipped to, what is said to be spent."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from flwr.app import Message
from flwr.clientapp import ClientApp

import client.app
from client.app import app as client_app
from fedrec import assemble
from fedrec.config import Config, load
from fedrec.federated.cohort import draw_cohort
from fedrec.flower.local_grid import LocalGrid, run_in_process
from fedrec.run_folder import RunFolder
from server.app import app as server_app


def run(config: Config, out: Path, app: ClientApp = client_app) -> list[dict[str, object]]:
    run_config = {"config-json": config.to_json(), "out": str(out), "simulation": True}
    run_in_process(server_app, app, run_config, config.federated.num_nodes)
    return RunFolder(out).rounds()


def test_every_round_draws_its_own_poisson_cohort(
    private_config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load(private_config_file, ["privacy.sampling_probability=0.5", "federated.num_nodes=1"])
    drawn = []

    def recording(keys: np.ndarray, probability: float, key: object) -> np.ndarray:
        assert probability == 0.5
        drawn.append(draw_cohort(keys, probability, key))  # type: ignore[arg-type]
        return drawn[-1]

    monkeypatch.setattr(client.app, "draw_cohort", recording)
    rounds = run(config, tmp_path / "run")
    assert [line["diagnostics"]["cohort_size"] for line in rounds] == [len(rows) for rows in drawn]  # type: ignore[index]
    assert all(20 < len(rows) < 60 for rows in drawn), "binomial(80, .5)"
    assert len({tuple(rows.tolist()) for rows in drawn}) == 4, "rounds draw independently"


def test_nodes_clip_to_the_norm_of_the_plan(
    private_config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    norms = []
    original = client.app.sum_contributions

    def recording(*arguments: object, **options: object) -> object:
        norms.append(arguments[3])
        return original(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(client.app, "sum_contributions", recording)
    run(load(private_config_file, ["privacy.clipping_norm=0.25"]), tmp_path / "run")
    assert norms == [0.25] * 8


def test_logged_spend_grows_to_the_epsilon_of_the_plan(private_config_file: Path, tmp_path: Path) -> None:
    config = load(private_config_file)
    spent = [float(str(line["epsilon_spent"])) for line in run(config, tmp_path / "run")]
    plan = assemble.plan_of(config)
    assert plan is not None
    assert spent == sorted(spent) and spent[0] > 0 and len(set(spent)) == 4
    assert spent[-1] == pytest.approx(plan.epsilon) == pytest.approx(8.0, rel=1e-3)


def test_second_reply_of_a_node_is_not_added_twice(
    private_config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = run(load(private_config_file), tmp_path / "once")
    original = LocalGrid.send_and_receive

    def twice(self: LocalGrid, messages: object, *, timeout: float | None = None) -> list[Message]:
        replies = original(self, messages, timeout=timeout)  # type: ignore[arg-type]
        return [*replies, *replies]

    monkeypatch.setattr(LocalGrid, "send_and_receive", twice)
    again = run(load(private_config_file), tmp_path / "twice")
    assert [line["metrics"] for line in again] == [line["metrics"] for line in once]
    assert [line["diagnostics"] for line in again] == [line["diagnostics"] for line in once]


def test_intention_is_on_disk_before_any_node_is_asked(
    private_config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = tmp_path / "run" / "checkpoint" / "ledger.jsonl"
    asked = []
    original = client.app.sum_contributions

    def recording(*arguments: object, **options: object) -> object:
        asked.append(ledger.read_text().count('"kind":"intend"'))
        return original(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(client.app, "sum_contributions", recording)
    run(load(private_config_file), tmp_path / "run")
    assert asked == [1, 1, 2, 2, 3, 3, 4, 4]


def test_nodes_of_which_nobody_is_drawn_answer_with_zeros(private_config_file: Path, tmp_path: Path) -> None:
    settings = ["privacy.sampling_probability=1e-7", "privacy.target_delta=1e-8", "federated.num_rounds=1"]
    config = load(private_config_file, settings)
    (line,) = run(config, tmp_path / "run")
    assert line["diagnostics"] == {"cohort_size": 0, "num_clipped": 0, "num_zeroed": 0, "nodes": 2}


def test_noise_is_shared_by_runs_whose_sums_are_the_same_and_by_no_others(
    private_config_file: Path, data_file: Path
) -> None:
    def key(*settings: str) -> object:
        return assemble.noise_key(load(private_config_file, settings))

    same = key()
    assert key("federated.num_nodes=3") == key("runtime.micro_batch=7") == same
    others = ("privacy.target_epsilon=4", "model.dim=4", "runtime.seed=1", "evaluation.protocol=temporal")
    found = [key(setting) for setting in others]
    fewer = private_config_file.parent / "fewer.csv"
    fewer.write_text("\n".join(data_file.read_text().splitlines()[:-1]) + "\n")
    found.append(key(f"data.path={fewer}"))
    assert len({str(one) for one in [same, *found]}) == len(found) + 1
