"""Whatever arrives from a node is checked before it touches the sum; a bad reply costs that node its round."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from client.app import evaluate as honest_evaluate
from client.app import train as honest_train
from fedrec.config import load
from fedrec.errors import ProtocolError
from fedrec.federated.checkpoint import read_checkpoint
from fedrec.flower.local_grid import run_in_process
from fedrec.flower.records import tensors_to_record
from fedrec.run_folder import RunFolder
from server.app import app as server_app

Attack = Callable[[Message, Message], Message]


def values(reply: Message) -> dict[str, torch.Tensor]:
    """Decode the arrays of an honest reply."""
    return {name: torch.from_numpy(array.numpy().copy()) for name, array in reply.content["values"].items()}


def answer(request: Message, tensors: dict[str, torch.Tensor], round_number: object) -> Message:
    return with_report(request, tensors, {"round": round_number, "partition": 1})


def with_report(request: Message, tensors: dict[str, torch.Tensor], numbers: dict[str, object]) -> Message:
    report = MetricRecord(numbers)  # type: ignore[arg-type]
    return Message(RecordDict({"values": tensors_to_record(tensors), "report": report}), reply_to=request)


def changed(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]], shift: int = 0) -> Attack:
    def attack(request: Message, reply: Message) -> Message:
        return answer(request, change(values(reply)), int(reply.content["report"]["round"]) + shift)

    return attack


def poisoned(name: str, value: float) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    def change(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        tensors[name].reshape(-1)[0] = value
        return tensors

    return change


def reporting(name: str, value: object) -> Attack:
    def attack(request: Message, reply: Message) -> Message:
        return with_report(request, values(reply), {**dict(reply.content["report"]), name: value})

    return attack


def crash(request: Message, reply: Message) -> Message:
    raise RuntimeError("this node is on fire")


def without_values(request: Message, reply: Message) -> Message:
    return Message(RecordDict({"report": reply.content["report"]}), reply_to=request)


def config_for_values(request: Message, reply: Message) -> Message:
    records = {"values": ConfigRecord({"a": 1}), "report": reply.content["report"]}
    return Message(RecordDict(records), reply_to=request)


def truncated(request: Message, reply: Message) -> Message:
    arrays = ArrayRecord(dict(reply.content["values"].items()))
    arrays["items"].data = arrays["items"].data[:-8]
    return Message(RecordDict({"values": arrays, "report": reply.content["report"]}), reply_to=request)


ATTACKS: dict[str, tuple[Attack, str]] = {
    "nan": (changed(poisoned("items", float("nan"))), "NaN or infinite"),
    "infinity": (changed(poisoned("gram", float("inf"))), "NaN or infinite"),
    "wrong-shape": (changed(lambda t: {**t, "items": t["items"][:-1]}), "shape"),
    "wrong-dtype": (changed(lambda t: {**t, "items": t["items"].to(torch.float32)}), "dtype"),
    "missing-block": (changed(lambda t: {k: v for k, v in t.items() if k != "counts"}), "counts"),
    "extra-block": (changed(lambda t: {**t, "trojan": t["gram"]}), "trojan"),
    "wrong-round": (changed(lambda t: t, shift=-1), "round"),
    "crash": (crash, "on fire"),
    "no-values": (without_values, "values"),
    "other-record": (config_for_values, "values"),
    "huge-but-finite": (changed(poisoned("items", 1e60)), "norm"),
    "list-for-partition": (reporting("partition", [1, 2]), "partition"),
    "another-partition": (reporting("partition", 0), "partition 0"),
    "negative-cohort": (reporting("cohort_size", -5), "cohort_size"),
    "nan-cohort": (reporting("cohort_size", float("nan")), "cohort_size"),
    "fractional-clipped": (reporting("num_clipped", 0.5), "num_clipped"),
    "truncated": (truncated, "bytes"),
}


def run(
    config_file: Path,
    out: Path,
    attack: Attack | None,
    nodes: tuple[int, ...] = (1,),
    settings: tuple[str, ...] = (),
) -> None:
    """Run with some nodes that attack in every training round after the first."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        reply = honest_train(message, context)
        hostile = context.node_config["partition-id"] in nodes and int(message.content["order"]["round"]) > 1
        return attack(message, reply) if hostile and attack is not None else reply

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return honest_evaluate(message, context)

    config = load(config_file, settings)
    run_config = {"config-json": config.to_json(), "out": str(out), "simulation": True}
    run_in_process(server_app, app, run_config, config.federated.num_nodes)


@pytest.mark.parametrize("kind", ATTACKS)
def test_bad_reply_costs_its_node_the_round_and_nothing_else(
    private_config_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    attack, reason = ATTACKS[kind]
    with caplog.at_level(logging.WARNING):
        run(private_config_file, tmp_path / "run", attack)
    rounds = RunFolder(tmp_path / "run").rounds()
    assert [line["diagnostics"]["nodes"] for line in rounds] == [2, 1, 1, 1]
    assert any(reason in record.getMessage() for record in caplog.records if record.name == "server.strategy")
    state = read_checkpoint(tmp_path / "run" / "checkpoint" / "server.safetensors").state
    assert torch.isfinite(state.shared["items"]).all()
    assert RunFolder(tmp_path / "run").result()["privacy"]["events"][0]["count"] == 4, "the plan was spent as written"


def test_round_without_any_good_reply_stops_with_the_reasons(private_config_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ProtocolError, match=r"0 of 2 nodes answered the train message of round 2.*on fire"):
        run(private_config_file, tmp_path / "run", crash, nodes=(0, 1))


def test_run_that_asks_for_all_nodes_stops_when_one_is_missing(private_config_file: Path, tmp_path: Path) -> None:
    text = private_config_file.read_text()
    private_config_file.write_text(text.replace("[federated]", "[federated]\nmin_nodes = 2"))
    with pytest.raises(ProtocolError, match=r"1 of 2 nodes answered.*min_nodes=2"):
        run(private_config_file, tmp_path / "run", crash)
    assert len(RunFolder(tmp_path / "run").rounds()) == 1, "the finished round is kept, and resume goes on from it"


def test_divisor_does_not_depend_on_who_dropped_out(private_config_file: Path, tmp_path: Path) -> None:
    from fedrec.federated import coordinator

    divisors = []
    original = coordinator.release

    def recording(*arguments: object, **options: object) -> object:
        released = original(*arguments, **options)  # type: ignore[arg-type]
        divisors.append(released.divisor)
        return released

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coordinator, "release", recording)
        run(private_config_file, tmp_path / "run", crash)
    assert divisors == [100.0] * 4, "neither the 80 users nor those who answered"


def crash_in_round_two(request: Message, reply: Message) -> Message:
    if reply.content["report"]["round"] == 2:
        raise RuntimeError("this node is on fire, for now")
    return reply


@pytest.mark.parametrize("attack", [crash, crash_in_round_two])
@pytest.mark.parametrize("trust", ["central", "local"])
def test_noise_is_not_shared_with_a_run_in_which_a_node_dropped_out(
    private_config_file: Path, tmp_path: Path, attack: Attack, trust: str
) -> None:
    """A node that was away once has changed all later parameters, so all later sums: they need other noise."""
    from client import app as nodes
    from fedrec.federated import coordinator

    owner, name, place = (coordinator, "release", 3) if trust == "central" else (nodes, "add_noise_to_users", 4)
    keys: dict[str, list[object]] = {}
    original = getattr(owner, name)
    for run_name, what in (("whole", None), ("dropped", attack)):
        found = keys.setdefault(run_name, [])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(owner, name, lambda *a, found=found: (found.append((a[2], a[place])), original(*a))[1])
            run(private_config_file, tmp_path / run_name, what, settings=(f"privacy.trust_model={trust}",))
    by_round = {run_name: {number: key for number, key in found} for run_name, found in keys.items()}
    first_changed = 2 if trust == "central" else 3
    for number in range(1, 5):
        shared = by_round["whole"][number] == by_round["dropped"][number]
        assert shared == (number < first_changed), f"round {number}"
