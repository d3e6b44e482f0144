"""Flower's simulation engine on Ray with one virtual node per user."""

from __future__ import annotations

import os
import queue
import tempfile
import threading
import time
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from simulations.speed_peers.row_loop import local_rows, train_user
from simulations.speed_peers.work import Work

_TIMEOUT_SECONDS = 600.0
_POLL_SECONDS = 0.1
client = ClientApp()


class RayNodes:
    """Flower as its users write it: `FedAvg`, a `ClientApp` that keeps the user's vector in `context.state`.

    In its favour: a node trains on touched rows with the gradient by hand, and Ray is up before the clock starts.
    What it costs is the engine: every message carries the item table and is a task of a Ray actor.
    More nodes made it slower for each user, so a part of the users, as it is measured, flatters it.
    """

    def __init__(self, work: Work) -> None:
        """Start the engine and wait until it takes orders."""
        if work.private:
            raise ValueError("this peer runs without privacy; give it a work without")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
        self._work, self._table = work, work.item_vectors.copy()
        self._orders: queue.Queue[bool] = queue.Queue()
        self._done: queue.Queue[Exception | None] = queue.Queue()
        self._folder = tempfile.TemporaryDirectory()
        self._path = _save(work, Path(self._folder.name))
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def round(self) -> None:
        """Do one round."""
        self._orders.put(True)
        error = self._done.get(timeout=_TIMEOUT_SECONDS)
        if error is not None:
            raise error

    def item_vectors(self) -> np.ndarray:
        """Return the item table."""
        return self._table

    def close(self) -> None:
        """Stop the engine."""
        self._orders.put(False)
        self._thread.join(timeout=60)
        self._folder.cleanup()

    def _run(self) -> None:
        server = ServerApp()

        @server.main()
        def main(grid: Grid, context: Context) -> None:
            strategy = FedAvg(fraction_train=1.0, fraction_evaluate=0.0, min_available_nodes=self._work.num_users)
            while len(list(grid.get_node_ids())) < self._work.num_users:
                time.sleep(_POLL_SECONDS)
            number = 0
            while self._orders.get():
                number += 1
                try:
                    self._one_round(strategy, grid, number)
                except Exception as error:
                    self._done.put(error)
                    return
                self._done.put(None)

        try:
            run_simulation(server, client, num_supernodes=self._work.num_users)
        except Exception as error:
            self._done.put(error)

    def _one_round(self, strategy: FedAvg, grid: Grid, number: int) -> None:
        arrays = ArrayRecord(numpy_ndarrays=[self._table])
        config = ConfigRecord({"work": self._path})
        messages = strategy.configure_train(number, arrays, config, grid)
        replies = list(grid.send_and_receive(messages, timeout=_TIMEOUT_SECONDS))
        if len(replies) < self._work.num_users or any(reply.has_error() for reply in replies):
            broken = next((reply.error.reason for reply in replies if reply.has_error()), "")
            raise RuntimeError(f"{len(replies)} of {self._work.num_users} nodes answered; {broken}")
        averaged, _ = strategy.aggregate_train(number, replies)
        if averaged is None:
            raise RuntimeError("Flower averaged nothing")
        (self._table,) = averaged.to_numpy_ndarrays()


@client.train()
def train(message: Message, context: Context) -> Message:
    """Train the node's user; answer with the whole item table, as `FedAvg` expects it, every user weighing the same."""
    (values,) = message.content.array_records.values()
    (config,) = message.content.config_records.values()
    (before,) = values.to_numpy_ndarrays()
    work, user = _load(str(config["work"])), int(context.node_config["partition-id"])
    part = slice(work["indptr"][user], work["indptr"][user + 1])
    state = context.state.array_records.get("user")
    vector = torch.from_numpy((work["user_vectors"][user] if state is None else state.to_numpy_ndarrays()[0]).copy())
    rows, places = local_rows(torch.from_numpy(work["items"][part]))
    table = torch.from_numpy(before.copy())
    local = table[rows]
    labels = torch.from_numpy(work["labels"][part])
    train_user(local, vector, places, labels, int(work["batch_size"]), float(work["learning_rate"]))
    table[rows] = local
    context.state["user"] = ArrayRecord(numpy_ndarrays=[vector.numpy()])
    content = RecordDict()
    content["arrays"] = ArrayRecord(numpy_ndarrays=[table.numpy()])
    content["metrics"] = MetricRecord({"num-examples": 1})
    return Message(content, reply_to=message)


def _save(work: Work, folder: Path) -> str:
    """Write what nodes need to a file, as an app's own data would lie on disk."""
    path = folder / "work.npz"
    np.savez(
        path,
        indptr=work.indptr,
        items=work.items,
        labels=work.labels,
        user_vectors=work.user_vectors,
        batch_size=work.batch_size,
        learning_rate=work.learning_rate,
    )
    return str(path)


@lru_cache(maxsize=1)
def _load(path: str) -> dict[str, np.ndarray]:
    """Read it back, once an actor."""
    with np.load(path) as file:
        return {name: file[name] for name in file.files}
