"""Promises of the in-process runtime: it behaves like a network of nodes, and reproduces."""

from __future__ import annotations

import logging
import time

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from fedrec.errors import ConfigError
from fedrec.flower.local_grid import LocalGrid, run_in_process
from fedrec.flower.wire import message_bytes

client = ClientApp()


@client.train()
def add_partition(message: Message, context: Context) -> Message:
    """Change the received array in place and send it back."""
    array = message.content.array_records["arrays"].to_numpy_ndarrays()[0]
    array += int(context.node_config["partition-id"])
    content = RecordDict({"arrays": ArrayRecord([array]), "metrics": MetricRecord({"num-examples": 1})})
    return Message(content, reply_to=message)


@client.evaluate()
def count_messages(message: Message, context: Context) -> Message:
    """Count in the state, fail on partition 1 after having counted, and tell all there is to know."""
    seen = context.state.config_records.get("seen", ConfigRecord({"count": 0}))
    context.state["seen"] = ConfigRecord({"count": int(str(seen["count"])) + 1})
    if context.node_config["partition-id"] == message.content.config_records["config"]["fail"]:
        raise RuntimeError("no data")
    told = {"count": context.state.config_records["seen"]["count"], **context.node_config, **context.run_config}
    return Message(RecordDict({"told": ConfigRecord({**told})}), reply_to=message)


@client.query("slow")
def slow(message: Message, context: Context) -> Message:
    """Take a while on partition 0."""
    if context.node_config["partition-id"] == 0:
        time.sleep(0.02)
    return Message(RecordDict(), reply_to=message)


@client.query("leave")
def leave(message: Message, context: Context) -> Message:
    """Stop the process, as Ctrl-C does."""
    raise KeyboardInterrupt


@client.query("forge")
def forge(message: Message, context: Context) -> Message:
    """Answer in the name of another node."""
    message.metadata.dst_node_id += 1
    return Message(RecordDict(), reply_to=message)


@client.query("reconfigure")
def reconfigure(message: Message, context: Context) -> Message:
    """Change the run config under everybody's feet."""
    context.run_config["rounds"] = 99
    return Message(RecordDict(), reply_to=message)


@client.query("nothing")
def nothing(message: Message, context: Context) -> Message:
    """Forget to answer."""
    return None  # type: ignore[return-value]


def ask(grid: LocalGrid, fail: int = -1) -> list[Message]:
    """Send every node one evaluate message."""
    content = RecordDict({"config": ConfigRecord({"fail": fail})})
    return grid.send_and_receive(Message(content, node, "evaluate") for node in grid.get_node_ids())


def query(grid: LocalGrid, action: str, node: int = 0) -> Message:
    """Send one node a query."""
    return grid.send_and_receive([Message(RecordDict(), grid.get_node_ids()[node], f"query.{action}")])[0]


def counts(replies: list[Message]) -> list[object]:
    """Read how many messages each node has counted."""
    return [reply.content.config_records["told"]["count"] for reply in replies]


def test_a_node_cannot_change_the_servers_arrays_nor_the_server_the_nodes() -> None:
    grid = LocalGrid(client, 2, {})
    sent = ArrayRecord([np.zeros(3)])
    messages = [Message(RecordDict({"arrays": sent}), node, "train") for node in grid.get_node_ids()]

    replies = grid.send_and_receive(messages)
    received = [reply.content.array_records["arrays"] for reply in replies]

    np.testing.assert_array_equal(sent.to_numpy_ndarrays()[0], np.zeros(3))
    np.testing.assert_array_equal(received[1].to_numpy_ndarrays()[0], np.ones(3))
    messages[0].content["arrays"] = ArrayRecord()
    received[0].clear()
    np.testing.assert_array_equal(received[1].to_numpy_ndarrays()[0], np.ones(3))


def test_one_failing_node_replies_with_an_error_and_the_others_go_on(caplog: pytest.LogCaptureFixture) -> None:
    grid = LocalGrid(client, 3, {})

    with caplog.at_level(logging.DEBUG, "fedrec.flower.local_grid"):
        replies = ask(grid, fail=1)

    assert [reply.has_error() for reply in replies] == [False, True, False]
    assert replies[1].error.reason == "RuntimeError: no data"
    assert replies[1].metadata.src_node_id == grid.get_node_ids()[1]
    levels = {record.levelno: record for record in caplog.records}
    assert "RuntimeError: no data" in levels[logging.WARNING].getMessage()
    assert levels[logging.WARNING].exc_info is None
    assert levels[logging.DEBUG].exc_info is not None


def test_state_persists_over_messages_and_a_failing_message_leaves_it_alone() -> None:
    grid = LocalGrid(client, 2, {})

    assert counts(ask(grid)) == [1, 1]
    assert ask(grid, fail=1)[1].has_error()
    assert counts(ask(grid)) == [3, 2]


def test_nodes_see_their_partition_the_extras_and_the_run_config() -> None:
    grid = LocalGrid(client, 2, {"rounds": 3, "als.dim": 32}, {"state-path": "/data"})

    told = [dict(reply.content.config_records["told"]) for reply in ask(grid)]

    shared = {"num-partitions": 2, "state-path": "/data", "rounds": 3, "als.dim": 32, "count": 1}
    assert told == [{"partition-id": 0, **shared}, {"partition-id": 1, **shared}]


def test_node_ids_are_the_same_every_time_and_in_partition_order() -> None:
    first, second = LocalGrid(client, 3, {}), LocalGrid(client, 3, {})

    assert first.get_node_ids() == second.get_node_ids() == sorted(set(first.get_node_ids()))
    assert [reply.content.config_records["told"]["partition-id"] for reply in ask(first)] == [0, 1, 2]


def test_bytes_are_counted_per_node_in_both_directions() -> None:
    grid = LocalGrid(client, 2, {})
    first, second = grid.get_node_ids()
    message = Message(RecordDict({"arrays": ArrayRecord([np.zeros(1000)])}), first, "train")
    assert grid.download_bytes == grid.upload_bytes == {first: 0, second: 0}

    (reply,) = grid.send_and_receive([message])

    assert grid.download_bytes == {first: message_bytes(message), second: 0}
    assert 8000 < grid.download_bytes[first] < 8500
    assert 8000 < grid.upload_bytes[first] < 8500
    assert grid.upload_bytes[second] == 0
    assert abs(message_bytes(reply) - grid.upload_bytes[first]) < 50  # it has got its message id since
    ask(grid, fail=1)
    assert grid.upload_bytes[second] > 0


def test_replies_can_be_pulled_once() -> None:
    grid = LocalGrid(client, 2, {})
    ids = grid.push_messages(Message(RecordDict(), node, "query.slow") for node in grid.get_node_ids())

    assert [reply.metadata.reply_to_message_id for reply in grid.pull_messages(ids[1:])] == ids[1:]
    assert [reply.metadata.reply_to_message_id for reply in grid.pull_messages(ids)] == ids[:1]
    assert grid.pull_messages(ids) == []


def test_a_timeout_loses_the_reply_of_a_slow_node() -> None:
    grid = LocalGrid(client, 3, {})

    replies = grid.send_and_receive(
        [Message(RecordDict(), node, "query.slow") for node in grid.get_node_ids()], timeout=0.01
    )

    assert grid.get_node_ids()[0] not in {reply.metadata.src_node_id for reply in replies}
    assert grid.send_and_receive([Message(RecordDict(), grid.get_node_ids()[1], "query.slow")], timeout=0) == []


def test_an_unknown_node_gives_an_error_reply() -> None:
    grid = LocalGrid(client, 1, {})

    (reply,) = grid.send_and_receive([grid.create_message(RecordDict(), "query.slow", 5, "1")])

    assert "no node 5" in str(reply.error.reason)


def test_interrupts_pass_through() -> None:
    with pytest.raises(KeyboardInterrupt):
        query(LocalGrid(client, 1, {}), "leave")


@pytest.mark.parametrize(
    ("action", "reason"),
    [
        ("forge", "ValueError: the ClientApp's message is no reply"),
        ("reconfigure", "ValueError: the ClientApp changed context.run_config"),
        ("nothing", "TypeError: the ClientApp returned a NoneType"),
        ("unheard_of", "ValueError: No query function registered"),
    ],
)
def test_what_a_real_network_refuses_is_an_error_here(action: str, reason: str) -> None:
    grid = LocalGrid(client, 2, {"rounds": 3})

    assert str(query(grid, action).error.reason).startswith(reason)
    assert ask(grid)[0].content.config_records["told"]["rounds"] == 3


def test_run_in_process_gives_the_server_its_config_and_passes_its_exceptions_on() -> None:
    app = ServerApp()
    error = KeyError("mine")

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        if context.run_config["raise"]:
            raise error
        assert grid.run.run_id == context.run_id
        context.run_config["raise"] = True

    config = {"raise": False}
    grid = run_in_process(app, client, config, 2)
    assert counts(ask(grid)) == [1, 1]
    assert config == {"raise": False}
    with pytest.raises(KeyError) as caught:
        run_in_process(app, client, {"raise": True}, 2)
    assert caught.value is error


def test_flowers_own_strategies_run_unchanged() -> None:
    app = ServerApp()
    found: list[np.ndarray] = []

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        strategy = FedAvg(fraction_evaluate=0.0)
        result = strategy.start(grid=grid, initial_arrays=ArrayRecord([np.zeros(2)]), num_rounds=2)
        found.append(result.arrays.to_numpy_ndarrays()[0])

    run_in_process(app, client, {}, 4)

    np.testing.assert_allclose(found[0], [3.0, 3.0])  # twice the mean of 0, 1, 2, 3


def test_a_grid_without_nodes_is_refused() -> None:
    with pytest.raises(ConfigError, match="num_nodes=0"):
        LocalGrid(client, 0, {})
