"""Taxes: what federation, privacy and the runtime cost over the same without; speed and scale benchmarks report them.

    python -m simulations.taxes [ml-1m] [--threads 2] [--repeats 5]

    federation   federated ALS round (all users, sums, item update) / one centralised exact iteration of `implicit`
    privacy      round with clipping and noise / the same round without, for mf and for bounded ALS
    runtime      round in the in-process Flower grid / the same round by the bare engine

Both sides of a tax take turns in one process, on the same threads, after two rounds that do not count; a tax is the
ratio of the medians.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from fedrec import assemble
from fedrec import config as configs
from fedrec.config import Config
from fedrec.data.batches import user_batches
from fedrec.errors import ConfigError
from fedrec.federated.cohort import sum_contributions
from fedrec.models.registry import build_model
from fedrec.privacy.mechanism import publish_exact
from fedrec.run_folder import RunFolder
from fedrec.simulation import run_simulation
from simulations.speed_peers import check_installed
from simulations.speed_peers.engine import EngineAls, EngineRounds, sgd_model
from simulations.speed_peers.work import ALS_DIM, CLIPPING_NORM, NOISE_MULTIPLIER, Work, load_work

WARM_UP_ROUNDS = 2
NUM_NODES = 2
NOT_MEASURED = ("runtime, real processes / in-process grid: this version has no real processes to measure",)


@dataclass(frozen=True)
class Tax:
    """One ratio.

    Args:
        name: what it is.
        with_it: seconds of each round that pays.
        without: seconds of each round that does not.
        target: what it should not exceed; None where there is no target.
    """

    name: str
    with_it: tuple[float, ...]
    without: tuple[float, ...]
    target: float | None = None

    @property
    def ratio(self) -> float:
        """Return median / median."""
        return statistics.median(self.with_it) / statistics.median(self.without)

    @property
    def spread(self) -> tuple[float, float]:
        """Return the least and the largest ratio of two rounds that took turns."""
        ratios = [one / other for one, other in zip(self.with_it, self.without, strict=True)]
        return min(ratios), max(ratios)


@dataclass(frozen=True)
class Taxes:
    """All taxes of one data set.

    Args:
        data: its name.
        threads: threads of both sides.
        taxes: what was measured.
        missing: what was not, and why.
    """

    data: str
    threads: int
    taxes: tuple[Tax, ...]
    missing: tuple[str, ...] = NOT_MEASURED

    def table(self) -> str:
        """Format the taxes."""
        lines = [f"taxes, {self.data}, {self.threads} thread(s)", f"  {'':52}{'ratio':>6}  {'spread':>12}  target"]
        for tax in self.taxes:
            low, high = tax.spread
            target = "" if tax.target is None else f"<= {tax.target:g}{'' if tax.ratio <= tax.target else '  MISSED'}"
            lines.append(f"  {tax.name:52}{tax.ratio:>6.2f}  {f'{low:.2f} .. {high:.2f}':>12}  {target}".rstrip())
        return "\n".join([*lines, *(f"  not measured: {reason}" for reason in self.missing)])

    def as_json(self) -> dict[str, Any]:
        """Return names and numbers for a record."""
        taxes = [{**asdict(tax), "ratio": tax.ratio} for tax in self.taxes]
        return {"data": self.data, "threads": self.threads, "taxes": taxes, "missing": list(self.missing)}


def measure_taxes(data: str = "ml-1m", threads: int = 2, repeats: int = 5) -> Taxes:
    """Measure all taxes of a data set.

    Args:
        data: name of a data set.
        threads: threads of torch, of the kernels and of `implicit`.
        repeats: rounds of each side.

    Raises:
        ConfigError: where `implicit` is not installed.
    """
    check_installed("implicit")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        work = load_work(data)
        taxes = (*federation(work, repeats), *privacy(work, repeats), runtime(data, threads, repeats))
    finally:
        torch.set_num_threads(before)
    return Taxes(data, threads, taxes)


def federation(work: Work, repeats: int) -> tuple[Tax, Tax]:
    """Measure the tax of federation against `implicit`'s exact and its approximate solver."""
    from simulations.speed_peers.implicit_als import ImplicitApproximate, ImplicitExact

    rounds = [EngineAls(work).round, ImplicitExact(work).round, ImplicitApproximate(work).round]
    ours, exact, approximate = take_turns(rounds, repeats)
    name = f"federation, ALS d={ALS_DIM}: round / implicit"
    return Tax(f"{name}, exact", ours, exact, 2.0), Tax(f"{name}, 3 CG steps", ours, approximate)


def privacy(work: Work, repeats: int) -> tuple[Tax, Tax]:
    """Measure the tax of clipping and noise for mf and for bounded ALS."""
    private = work.with_privacy()
    models = {
        "mf": sgd_model(private, start="solve"),
        "bounded ALS": build_model({"name": "als", "dim": ALS_DIM}, CLIPPING_NORM),
    }
    rounds = []
    for model in models.values():
        rounds.append(EngineRounds(model, work.train, CLIPPING_NORM, NOISE_MULTIPLIER).round)
        rounds.append(EngineRounds(model, work.train, math.inf).round)
    seconds = take_turns(rounds, repeats)
    first, second = (f"privacy, {name}: clipping and noise / neither" for name in models)
    return Tax(first, seconds[0], seconds[1], 1.15), Tax(second, seconds[2], seconds[3], 1.15)


def runtime(data: str, threads: int, repeats: int) -> Tax:
    """Measure the tax of the in-process grid: messages, checks, stores and checkpoints around the same engine.

    The seconds of its rounds are those in `rounds.jsonl`. Runs of a few rounds take turns with as many bare rounds.
    """
    table = {
        "data": {"name": data},
        "model": {"name": "als", "dim": ALS_DIM},
        "federated": {"num_nodes": NUM_NODES, "num_rounds": WARM_UP_ROUNDS + 1},
        "runtime": {"num_threads": threads, "device": "cpu"},
    }
    config = configs.build(table, "the config of the runtime tax")
    bare = _BareRounds(config)
    grid: list[float] = []
    engine: list[float] = []
    for _ in range(repeats):
        grid += _rounds_in_grid(config)[WARM_UP_ROUNDS:]
        engine += [_seconds(bare.round) for _ in range(WARM_UP_ROUNDS + 1)][WARM_UP_ROUNDS:]
    return Tax(f"runtime, {NUM_NODES} nodes: in-process grid / bare engine", tuple(grid), tuple(engine), 1.1)


def _rounds_in_grid(config: Config) -> list[float]:
    with tempfile.TemporaryDirectory() as directory:
        folder = RunFolder(Path(directory) / "run")
        folder.create(config)
        run_simulation(folder.path, config)
        return [float(line["seconds"]) for line in folder.rounds()]


class _BareRounds:
    """The engine alone, on the same nodes: a sum each, added up, and the update."""

    def __init__(self, config: Config) -> None:
        self._model, text = assemble.model_of(config), config.to_json()
        self._nodes = [assemble.node_data(text, node, NUM_NODES) for node in range(NUM_NODES)]
        self._key = assemble.run_key(config)
        self._state = self._model.init(assemble.dataset(text).catalogue, self._key.fold("init"))

    def round(self) -> None:
        parts = []
        for node in self._nodes:
            batches = user_batches(node.split.train, max_elements=self._model.batch_cells, keys=node.user_keys)
            parts.append(sum_contributions(self._model, self._state.shared, batches, math.inf, self._key)[0])
        total = parts[0]
        for part in parts[1:]:
            total.merge(part)
        num_users = sum(len(node.user_keys) for node in self._nodes)
        self._state = self._model.update(self._state, publish_exact(total, float(num_users)))


def take_turns(rounds: Sequence[Callable[[], None]], repeats: int) -> list[tuple[float, ...]]:
    """Time rounds in turns (A B C A B C ...).

    Args:
        rounds: each does one round.
        repeats: timed rounds of each, after `WARM_UP_ROUNDS` that are not.

    Returns:
        For each, its seconds.
    """
    for _ in range(WARM_UP_ROUNDS):
        for one in rounds:
            one()
    turns = [[_seconds(one) for one in rounds] for _ in range(repeats)]
    return list(zip(*turns, strict=True))


def _seconds(function: Callable[[], None]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", default="ml-1m", help="a named data set")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args(arguments)
    try:
        print(measure_taxes(options.data, options.threads, options.repeats).table())
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
