"""What a node refuses to do, whoever asks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import ServerApp

from client.app import _max_epsilon
from client.app import app as client_app
from fedrec import assemble
from fedrec.config import load
from fedrec.errors import ConfigError
from fedrec.flower.local_grid import LocalGrid, run_in_process
from fedrec.flower.records import tensors_to_record


def ask(config_file: Path, out: Path, change: Callable[[dict[str, object]], None], kind: str = "train") -> str:
    """Send one message of a changed order to node 0 and return the reason of its refusal, "" if it answered."""
    config = load(config_file)
    plan = assemble.plan_of(config)
    digest = "" if plan is None else plan.digest()
    order: dict[str, object] = {"round": 1, "run-id": assemble.run_id(config), "plan": digest}
    change(order)
    data = assemble.dataset(config.to_json())
    shared = assemble.model_of(config).init(data.catalogue, assemble.run_key(config)).shared
    reasons = []

    def server(grid: LocalGrid, context: object) -> None:
        content = RecordDict({"shared": tensors_to_record(shared), "order": ConfigRecord(order)})  # type: ignore[arg-type]
        (reply,) = grid.send_and_receive([Message(content, grid.get_node_ids()[0], kind)])
        reasons.append(reply.error.reason if reply.has_error() else "")

    app = ServerApp()
    app.main()(server)  # type: ignore[arg-type]
    run_config = {"config-json": config.to_json(), "out": str(out), "simulation": True}
    run_in_process(app, client_app, run_config, config.federated.num_nodes)
    return reasons[0]


def test_honest_order_is_answered(private_config_file: Path, tmp_path: Path) -> None:
    assert ask(private_config_file, tmp_path, lambda order: None) == ""


def test_plan_that_is_not_the_nodes_own_is_refused(private_config_file: Path, tmp_path: Path) -> None:
    reason = ask(private_config_file, tmp_path, lambda order: order.update(plan="0" * 64))
    assert "this node's own is" in reason
    assert "announced plan ''" in ask(private_config_file, tmp_path, lambda order: order.update(plan=""))


def test_run_that_is_not_the_nodes_own_is_refused(private_config_file: Path, tmp_path: Path) -> None:
    """What was spent is kept by run: under one name, a server could ask for the answers of many configs."""
    reason = ask(private_config_file, tmp_path, lambda order: order.update({"run-id": "another"}))
    assert "announced run 'another', this node's config is run" in reason


def test_round_beyond_the_plan_is_refused(private_config_file: Path, tmp_path: Path) -> None:
    for number in range(1, 5):
        assert ask(private_config_file, tmp_path, lambda order, n=number: order.update(round=n)) == ""  # type: ignore[misc]
    assert "its plan allows 4" in ask(private_config_file, tmp_path, lambda order: order.update({"round": 5}))


def test_round_asked_for_again_must_bring_the_same_absences(private_config_file: Path, tmp_path: Path) -> None:
    """A simulation's noise follows from them: with others it would be another answer that does not count."""
    for absences, reason in (("", ""), ("", ""), ("0" * 32, "again with other parameters")):
        found = ask(private_config_file, tmp_path, lambda order, a=absences: order.update(absences=a))  # type: ignore[misc]
        assert reason in found and bool(reason) == bool(found)


def test_node_does_not_look_at_how_many_users_it_has(private_config_file: Path, tmp_path: Path) -> None:
    """A refusal that one user's presence decides would move the sum by all others; public numbers decide instead."""
    text = private_config_file.read_text()
    private_config_file.write_text(text.replace("[privacy]", "[privacy]\nmin_users_per_node = 50"))
    assert ask(private_config_file, tmp_path, lambda order: None) == "", "40 users here, 100 / 2 = 50 declared"
    private_config_file.write_text(text.replace("[privacy]", "[privacy]\nmin_users_per_node = 51"))
    with pytest.raises(ConfigError, match="min_users_per_node=51"):
        load(private_config_file)


@pytest.mark.parametrize("phase", ["train", "", "Test"])
def test_unknown_phase_is_refused(config_file: Path, tmp_path: Path, phase: str) -> None:
    assert "allowed are 'validation' and 'test'" in ask(
        config_file, tmp_path, lambda order: order.update(phase=phase), kind="evaluate"
    )


def test_run_that_is_no_simulation_is_refused(config_file: Path) -> None:
    with pytest.raises(ConfigError, match="simulations only"):
        assemble.config_of_run({"config": str(config_file)})


def test_owner_of_a_node_says_a_number_or_nothing() -> None:
    assert (_max_epsilon(None), _max_epsilon("3.5"), _max_epsilon(2)) == (None, 3.5, 2.0)
    with pytest.raises(ConfigError, match="max-epsilon='lots' is not a number"):
        _max_epsilon("lots")
