"""Speed of example-level steps: how Opacus clips, timed on one node's real interactions, and what memory it takes.

    python -m simulations.example_level [ml-100k ml-1m] [--threads 1] [--repeats 3]

    ghost                norms without per-example gradients, the norm of a table by `fedrec.privacy.example_level`
    ghost, own norm      the same with the norm that Opacus has for `nn.Embedding`
    hooks                a (examples, rows, dim) gradient of each table; so many at once as was fastest of three sizes

One step is: two tables (the users of the first of two nodes, all items; d = 24), 8 negatives an example, clipping,
noise on all rows. All do the same steps on the same samples and take turns; median, after one that does not count.
Users per second: examples per second / mean history. Memory: of the per-example gradients alone.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from fedrec.data.interactions import Interactions
from fedrec.data.sources import load
from fedrec.data.splits import split
from fedrec.federated.example_training import Draws, ExampleNode
from fedrec.models.example_mf import ExampleMatrixFactorization, ExampleMatrixFactorizationConfig
from fedrec.privacy.example_level import Mode, NoisySteps, Sample, rows, train
from fedrec.randomness import Key, user_keys

DIM, NUM_NEGATIVES, EXAMPLES = 24, 8, 3000
HOOKS_AT_ONCE = (16, 64, 256)
KEY = Key.from_seed(0)


@dataclass(frozen=True)
class Way:
    """One way to clip, and what was measured of it.

    Args:
        name: as printed.
        mode: of Opacus.
        own_norm: whether the tables are plain `nn.Embedding`.
        at_once: examples whose gradients are taken together.
        seconds: of each timed step.
        megabytes: of per-example gradients at once.
    """

    name: str
    mode: Mode
    own_norm: bool
    at_once: int
    seconds: tuple[float, ...] = ()
    megabytes: float = 0.0


@dataclass(frozen=True)
class Speeds:
    """What was measured on one data set.

    Args:
        data: its name.
        threads: torch's.
        num_examples: drawn in the step.
        history: mean interactions of a user.
        ways: all of them, the library's first.
    """

    data: str
    threads: int
    num_examples: int
    history: float
    ways: tuple[Way, ...]

    def table(self) -> str:
        """Format what was measured."""
        lines = [
            f"{self.data}, {self.threads} thread(s), {self.num_examples} examples a step",
            f"  {'':18}{'examples/s':>12}{'users/s':>10}{'ratio':>8}{'MB':>9}",
        ]
        first = statistics.median(self.ways[0].seconds)
        for way in self.ways:
            median = statistics.median(way.seconds)
            speed, users = self.num_examples / median, self.num_examples / median / self.history
            lines.append(f"  {way.name:18}{speed:>12,.0f}{users:>10,.0f}{median / first:>8.1f}{way.megabytes:>9,.1f}")
        return "\n".join(lines)


def measure(data: str, threads: int = 1, repeats: int = 3, num_examples: int = EXAMPLES) -> Speeds:
    """Time a step in every way.

    Args:
        data: name of a data set.
        threads: torch's.
        repeats: timed steps of each way.
        num_examples: expected in the sample.
    """
    train_rows = split("leave_one_out", load(data).interactions, KEY).train
    node = train_rows.of_users(np.arange(0, train_rows.num_users, 2))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return measure_node(data, threads, repeats, node, num_examples / len(node))
    finally:
        torch.set_num_threads(before)


def measure_node(data: str, threads: int, repeats: int, node: Interactions, probability: float) -> Speeds:
    """Time a step on some interactions, each in the sample with this probability; see `measure`."""
    model = ExampleMatrixFactorization(ExampleMatrixFactorizationConfig(dim=DIM, num_negatives=NUM_NEGATIVES))
    sample = Draws(model, ExampleNode(node, user_keys(node.user_ids.ids)), probability, KEY).sample(0)
    num_examples, num_rows = len(sample[0]), node.num_users + node.num_items
    touched, dense = 2 + NUM_NEGATIVES, num_rows
    ghost = model.batch_cells // (1 + NUM_NEGATIVES)
    ways = [Way("ghost", "ghost", False, ghost), Way("ghost, own norm", "ghost", True, ghost)]
    quickest = min(
        (Way("hooks", "hooks", False, at_once) for at_once in HOOKS_AT_ONCE),
        key=lambda way: _seconds(way, model, node, tuple(column[:256] for column in sample)),
    )
    ways.append(quickest)
    seconds = [[_seconds(way, model, node, sample) for way in ways] for _ in range(repeats + 1)][1:]
    measured = []
    for way, times in zip(ways, zip(*seconds, strict=True), strict=True):
        width = dense if way.mode == "hooks" else touched
        size = min(way.at_once, num_examples) * width * DIM * 8 / 1e6
        measured.append(Way(way.name, way.mode, way.own_norm, way.at_once, times, size))
    return Speeds(data, threads, num_examples, len(node) / node.num_users, tuple(measured))


def _seconds(way: Way, model: ExampleMatrixFactorization, node: Interactions, sample: Sample) -> float:
    """Return the time of one step, tables made beforehand."""
    generator = KEY.torch_generator()
    users, items = (
        torch.randn(num, DIM, generator=generator, dtype=torch.float64) / DIM
        for num in (node.num_users, node.num_items)
    )
    module = model.factors(*((_plain if way.own_norm else rows)(table) for table in (users, items)))
    steps = NoisySteps(1, 1.0, 0.1, 0.4, float(len(sample[0])))
    start = time.perf_counter()
    train(module, lambda step: sample, steps, 1.0, KEY, way.at_once, way.mode)
    return time.perf_counter() - start


def _plain(table: torch.Tensor) -> nn.Embedding:
    return nn.Embedding(table.shape[0], table.shape[1], _weight=table)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="*", default=["ml-100k", "ml-1m"], help="names of data sets")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args(arguments)
    for data in options.data:
        sys.stdout.write(measure(data, options.threads, options.repeats).table() + "\n")


if __name__ == "__main__":
    main()
