"""Peers side by side: one round of the same work in every system, in one table with spread and ratios.

    python -m simulations.speed [ml-100k ml-1m] [--peers fedrec,pfl] [--threads 1 2] [--repeats 5] [--out DIR]

A machine drifts by tens of percent over minutes, so only ratios within one run count: every system sits in a process
of its own, bound to its cores, and repeats go round the systems (A B C A B C ...); Flower, which brings processes of
its own, comes last on all cores. Imports, data, compilation and the first two rounds come before the clock starts.
What the work is stands in simulations/speed_peers/work.py, what each peer does in its favour in its module.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedrec.errors import ConfigError
from simulations.speed_peers import PEERS, check_installed
from simulations.speed_peers.worker import Worker


@dataclass(frozen=True)
class Measurement:
    """How fast one system was.

    Args:
        system: name in `PEERS`.
        data: name of the data set.
        threads: threads it ran on.
        num_users: users of a round.
        num_examples: examples of a round, negatives included.
        seconds: one a repeat.
    """

    system: str
    data: str
    threads: int
    num_users: int
    num_examples: int
    seconds: tuple[float, ...]

    @property
    def users_per_second(self) -> float:
        """Return the median over the repeats."""
        return self.num_users / statistics.median(self.seconds)

    @property
    def spread(self) -> tuple[float, float]:
        """Return the slowest and the fastest repeat, in users a second."""
        return self.num_users / max(self.seconds), self.num_users / min(self.seconds)


def measure(data: str, names: Sequence[str], threads: int, repeats: int) -> list[Measurement]:
    """Measure systems against each other.

    Args:
        data: name of a data set.
        names: of `PEERS`.
        threads: threads; with more than one only the systems that can use them run.
        repeats: timed rounds of each.
    """
    names = [name for name in names if threads == 1 or PEERS[name].threaded]
    together = [name for name in names if not PEERS[name].whole_machine]
    alone = [[name] for name in names if PEERS[name].whole_machine]
    return [one for group in [together, *alone] for one in _interleaved(data, group, threads, repeats)]


def _interleaved(data: str, names: Sequence[str], threads: int, repeats: int) -> list[Measurement]:
    workers: list[Worker] = []
    try:
        for name in names:
            print(f"-- {data}, {threads} thread(s): starting {name}", file=sys.stderr)
            workers.append(Worker(name, data, threads))
        seconds = [[worker.round() for worker in workers] for _ in range(repeats)]
    finally:
        for worker in workers:
            worker.close()
    return [
        Measurement(worker.name, data, threads, worker.num_users, worker.num_examples, times)
        for worker, times in zip(workers, zip(*seconds, strict=True), strict=True)
    ]


def ratio(measurements: Sequence[Measurement], one: Measurement) -> float | None:
    """Return how many times faster our system is than this one at the same work; None where ours was not measured.

    Both on the same data and threads, with privacy against with, without against without.
    """
    ours = _find(measurements, PEERS[one.system].against, one.data, one.threads)
    return None if ours is None else ours.users_per_second / one.users_per_second


def speedup(measurements: Sequence[Measurement], one: Measurement) -> float | None:
    """Return how many times faster a system is than itself on one thread; None where that was not measured."""
    alone = _find(measurements, one.system, one.data, 1)
    return None if alone is None or one.threads == 1 else one.users_per_second / alone.users_per_second


def _find(measurements: Sequence[Measurement], system: str, data: str, threads: int) -> Measurement | None:
    wanted = (system, data, threads)
    return next((one for one in measurements if (one.system, one.data, one.threads) == wanted), None)


def table(measurements: Sequence[Measurement]) -> str:
    """Format the measurements, one block for each data set and number of threads."""
    blocks = []
    for data, threads in dict.fromkeys((one.data, one.threads) for one in measurements):
        rows = [one for one in measurements if (one.data, one.threads) == (data, threads)]
        most = max(rows, key=lambda one: one.num_users)
        each = most.num_examples / most.num_users
        title = f"{data}, {threads} thread(s): {most.num_users} users, {each:.0f} examples each"
        lines = [title, f"  {'':38}{'users/s':>9}  {'slowest .. fastest':>18}  {'fedrec is':>10}"]
        lines += [_line(measurements, one) for one in rows]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _line(measurements: Sequence[Measurement], one: Measurement) -> str:
    times, scaled = ratio(measurements, one), speedup(measurements, one)
    low, high = one.spread
    shown = "" if times is None or one.system == PEERS[one.system].against else f"{times:>9.1f}x"
    label = PEERS[one.system].label
    note = "" if scaled is None else f"  {scaled:.2f}x its one thread"
    note += f"  ({one.num_users} users, all cores)" if PEERS[one.system].whole_machine else ""
    return f"  {label:38}{one.users_per_second:>9,.0f}  {f'{low:,.0f} .. {high:,.0f}':>18}  {shown:>10}{note}"


def as_json(measurements: Sequence[Measurement]) -> list[dict[str, Any]]:
    """Return the measurements with what follows from them."""
    return [
        {
            **asdict(one),
            "label": PEERS[one.system].label,
            "users_per_second": one.users_per_second,
            "slowest": one.spread[0],
            "fastest": one.spread[1],
            "fedrec_is_faster_by": ratio(measurements, one),
            "speedup_over_one_thread": speedup(measurements, one),
        }
        for one in measurements
    ]


def environment() -> dict[str, str]:
    """Return versions and machine, for the record."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version(), "machine": platform.machine(), "processor": _processor()}
    for package in ("fedrec", "torch", "numba", "jax", "fedjax", "pfl", "flwr", "ray", "opacus", "implicit"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def chosen(peers: str | None) -> list[str]:
    """Return the peers named, or all.

    Raises:
        ConfigError: for a name that is unknown or a library that is not installed.
    """
    names = list(PEERS) if peers is None else peers.split(",")
    for name in names:
        check_installed(name)
    return names


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the tables, write JSON and chart."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="*", default=["ml-100k", "ml-1m"], help="named data sets")
    parser.add_argument("--peers", default=None, help=f"comma-separated, of {', '.join(PEERS)}; all where not given")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-taxes", action="store_true", help="leave out simulations.taxes")
    parser.add_argument("--out", type=Path, default=Path("runs/speed"), help="folder for speed.json and speed.png")
    options = parser.parse_args(arguments)
    try:
        names = chosen(options.peers)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    measurements: list[Measurement] = []
    for data in options.data:
        for threads in options.threads:
            measurements += measure(data, names, threads, options.repeats)
    print(table(measurements))
    record: dict[str, Any] = {"environment": environment(), "measurements": as_json(measurements)}
    if not options.no_taxes:
        from simulations.taxes import measure_taxes

        taxes = measure_taxes(options.data[-1], max(options.threads), options.repeats)
        print(f"\n{taxes.table()}")
        record["taxes"] = taxes.as_json()
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "speed.json").write_text(json.dumps(record, indent=2) + "\n")
    from simulations.speed_chart import draw

    draw(measurements, options.out / "speed.png")
    print(f"\nwritten: {options.out / 'speed.json'}, {options.out / 'speed.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
