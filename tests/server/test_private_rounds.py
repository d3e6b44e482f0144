"""Private rounds through the apps: who is drawn, what they are clipped to, what is said to be spent."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

import client.app
from client.app import app as client_app
from fedrec import assemble
from fedrec.config import Config, load
from fedrec.errors import PrivacyError
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


def test_runs_that_differ_draw_their_own_cohorts_and_runtime_changes_nothing(private_config_file: Path) -> None:
    """Several published runs spend the sum of what each spends only if their coins are independent."""

    def cohort(*settings: str) -> list[int]:
        config = load(private_config_file, ["privacy.sampling_probability=0.5", *settings])
        keys = assemble.node_data(config.to_json(), 0, 1).user_keys
        key = assemble.draws_key(config)
        drawn = (draw_cohort(keys, 0.5, key.fold("round", number)) + 100 * number for number in range(30))
        return np.concatenate(list(drawn)).tolist()

    same = cohort()
    assert cohort("runtime.micro_batch=7") == cohort("federated.num_nodes=3") == same
    others = [cohort(setting) for setting in ("model.dim=4", "privacy.target_epsilon=4", "runtime.seed=1")]
    assert all(0.4 < len(set(same) & set(other)) / len(same) < 0.6 for other in others), "half, as by chance"


def test_a_user_stays_on_the_same_node_whoever_else_is_there(private_config_file: Path, data_file: Path) -> None:
    """One more user or interaction changes one node, so that what nodes promise holds for all of them at once."""
    fewer = private_config_file.parent / "fewer.csv"
    lines = data_file.read_text().splitlines()
    fewer.write_text("\n".join([lines[0], *(line for line in lines[1:] if not line.startswith("u000,"))]) + "\n")

    def users(node: int, *settings: str) -> set[str]:
        config = load(private_config_file, settings)
        return set(assemble.node_data(config.to_json(), node, 3).split.train.user_ids.ids.tolist())

    whole, rest = ([users(node, *settings) for node in range(3)] for settings in ((), (f"data.path={fewer}",)))
    assert set().union(*whole) - set().union(*rest) == {"u000"}
    assert [nodes - {"u000"} for nodes in whole] == rest
    assert sum(len(nodes) for nodes in whole) == 80 and all(10 < len(nodes) < 45 for nodes in whole)


def test_node_that_lost_what_it_made_of_earlier_rounds_counts_another_answer(
    private_config_file: Path, tmp_path: Path
) -> None:
    """With an older state the answer to the same round is another one: it spends, and the plan has no room for it."""
    text = private_config_file.read_text().replace('name = "als"\ndim = 8\nrecency_weight = 5', 'name = "mf"')
    private_config_file.write_text(text + 'unit = "interaction"\nsampling_probability = 0.2\n')
    config = load(private_config_file, ["federated.local_steps=2", "federated.num_nodes=1"])
    state, refused = tmp_path / "run" / "nodes" / "0" / "private_state.safetensors", []
    app, kept = ClientApp(), dict[int, bytes]()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        number = int(str(message.content["order"]["round"]))
        reply = client.app.train(message, context)
        kept[number] = state.read_bytes()
        if number == 4:
            again = client.app.train(message, context)
            assert values(again) == values(reply), "the answer that was kept"
            for old in (1, 2):
                state.write_bytes(kept[old])
                with pytest.raises(PrivacyError, match="would raise what all runs spent here"):
                    client.app.train(message, context)
                refused.append(old)
            state.write_bytes(kept[4])
        return reply

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return client.app.evaluate(message, context)

    run(config, tmp_path / "run", app)
    assert refused == [1, 2]


def values(reply: Message) -> dict[str, bytes]:
    return {name: array.data for name, array in reply.content["values"].items()}
