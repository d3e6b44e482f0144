"""Promise of the Ray runtime: the same apps give the same as in process."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedrec.errors import ConfigError
from fedrec.flower.local_grid import run_in_process
from fedrec.flower.ray_runtime import run_in_ray

client = ClientApp()


@client.train()
def step(message: Message, context: Context) -> Message:
    """Add rate x partition, count the rounds in the state, and fail on partition 1 in round 2."""
    rounds = context.state.config_records.get("rounds", ConfigRecord({"count": 0}))
    context.state["rounds"] = ConfigRecord({"count": int(str(rounds["count"])) + 1})
    partition = int(context.node_config["partition-id"])
    if partition == 1 and message.metadata.group_id == "2":
        raise RuntimeError("no data")
    array = message.content.array_records["arrays"].to_numpy_ndarrays()[0]
    array += float(context.run_config["rate"]) * partition
    told = ConfigRecord({**context.state.config_records["rounds"], **context.node_config})
    return Message(RecordDict({"arrays": ArrayRecord([array]), "told": told}), reply_to=message)


def recording_server(record: list[object]) -> ServerApp:
    """Make a server that runs three rounds, writes down what it sees, and leaves with an exception."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        deadline = time.monotonic() + 30
        while len(nodes := list(grid.get_node_ids())) < 3 and time.monotonic() < deadline:
            time.sleep(0.05)
        for number in range(1, 4):
            content = RecordDict({"arrays": ArrayRecord([np.full(2, float(number))])})
            messages = [Message(content, node, "train", group_id=str(number)) for node in nodes]
            replies = list(grid.send_and_receive(messages, timeout=30))
            good = [reply.content for reply in replies if reply.has_content()]
            record.append((number, len(replies) - len(good)))
            good.sort(key=lambda content: int(str(content.config_records["told"]["partition-id"])))
            for content in good:
                array = content.array_records["arrays"].to_numpy_ndarrays()[0]
                record.append((dict(content.config_records["told"]), array.tolist()))
        record.append(dict(context.run_config))
        raise SystemExit(7)

    return app


@pytest.mark.slow
def test_a_run_in_ray_equals_the_run_in_process() -> None:
    from ray import cloudpickle

    # Workers need not be able to import the tests.
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # type: ignore[no-untyped-call]
    records: list[list[object]] = []
    runs: list[Callable[..., object]] = [run_in_process, run_in_ray]
    for run in runs:
        records.append([])
        with pytest.raises(SystemExit, match="7"):
            run(recording_server(records[-1]), client, {"rate": 0.5}, 3, node_config_extra={"state-path": "/data"})

    assert records[0] == records[1]
    assert len(records[0]) == 3 + 8 + 1
    assert records[0][:2] == [
        (1, 0),
        ({"count": 1, "partition-id": 0, "num-partitions": 3, "state-path": "/data"}, [1.0, 1.0]),
    ]


def test_impossible_counts_are_refused_before_ray_starts() -> None:
    with pytest.raises(ConfigError, match="num_cpus_per_node=0"):
        run_in_ray(recording_server([]), client, {}, 2, num_cpus_per_node=0)
