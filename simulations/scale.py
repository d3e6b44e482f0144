"""Scale: one round of each model on more and more users, with the growth of time and memory.

    python -m simulations.scale [--users 10000 30000 100000 300000 1000000] [--items 100000] [--dim 32]
                                [--models als mf] [--threads 2] [--data DIR] [--out DIR] [--json]

Data are synthetic, 100 interactions a user on average, popularity of items skewed. They lie in memory-mapped columnar
files (item and time of every interaction), are written once in bounded memory, and are used again where they are there.
Every model and size is measured in a fresh process; what exactly is measured stands in `simulations.one_round`.

The growth exponent is the slope of log(seconds) in log(users), by least squares over all sizes. Work that does not
depend on users (solving for the items) is in it and flattens it; beside it stands that of the sum over users alone.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fedrec.data.columnar import StoredHistories, open_columnar
from fedrec.data.columnar_writer import write_columnar
from fedrec.data.interactions import Vocabulary
from fedrec.data.synthetic import Chunk, SyntheticConfig, stream
from fedrec.errors import ConfigError, DataError, FedrecError
from fedrec.files import replace_file
from fedrec.models.registry import settings_type
from fedrec.randomness import Key
from simulations.scale_plot import draw

MEAN_INTERACTIONS = 100
USERS = (10_000, 30_000, 100_000, 300_000, 1_000_000)
_CHUNK_USERS = 10_000
_ROOT = Path(__file__).resolve().parent.parent


def stored_world(folder: Path, num_users: int, num_items: int) -> StoredHistories:
    """Return the synthetic world of a size, from `folder` where it is there, else written to it first.

    Raises:
        DataError: where the folder holds another world or is damaged.
    """
    path = folder / f"users-{num_users}-items-{num_items}"
    if path.exists():
        stored = open_columnar(path)
        if (stored.num_users, stored.num_items) != (num_users, num_items):
            raise DataError(f"{path} holds {stored.num_users} users and {stored.num_items} items; delete it")
        return stored
    folder.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    world = {"num_users": num_users, "num_items": num_items, "mean_interactions": MEAN_INTERACTIONS}
    config = SyntheticConfig.model_validate(world)
    ids = Vocabulary(np.arange(num_users)), Vocabulary(np.arange(num_items))
    stored = write_columnar(path, _without_context(config), *ids)
    seconds = time.perf_counter() - start
    print(f"wrote {len(stored):,} interactions of {num_users:,} users in {seconds:.0f} s", file=sys.stderr)
    return stored


def _without_context(config: SyntheticConfig) -> Iterator[Chunk]:
    for chunk in stream(config, Key.from_seed(0), _CHUNK_USERS):
        yield replace(chunk, context={})


def in_fresh_process(folder: Path, model: str, dim: int, num_threads: int) -> dict[str, Any]:
    """Measure one round in a process of its own; see `simulations.one_round.measure`.

    Raises:
        RuntimeError: where that process fails.
    """
    threads = {name: str(num_threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    paths = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "simulations.one_round", str(folder), model, str(dim), str(num_threads)]
    done = subprocess.run(
        command, env={**os.environ, **threads, "PYTHONPATH": paths}, stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        raise RuntimeError(f"the round of {model} on {folder} ended with exit code {done.returncode}, see above")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def growth(rounds: Sequence[dict[str, Any]], name: str) -> float | None:
    """Return the slope of log(rounds[name]) in log(users) by least squares; None for fewer than two sizes.

    Example:
        >>> round(growth([{"num_users": n, "seconds": 0.1 * n} for n in (10, 20, 40)], "seconds"), 6)
        1.0
    """
    points = [(round_["num_users"], round_[name]) for round_ in rounds if round_[name]]
    if len({users for users, _ in points}) < 2:
        return None
    users, values = np.log(np.array(points, dtype=np.float64)).T
    return float(np.polyfit(users, values, 1)[0])


def summarise(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the growth of one model: exponents, and how much more memory the last tenfold of users takes.

    `memory_growth` is peak anonymous memory at the largest size over that at a tenth of it, minus 1; None where there
    is no such pair of sizes.
    """
    by_users = {round_["num_users"]: round_["peak_anonymous_bytes"] for round_ in rounds}
    largest = max(by_users)
    tenth = by_users.get(largest // 10)
    return {
        "exponent_seconds": growth(rounds, "seconds"),
        "exponent_sum_seconds": growth(rounds, "sum_seconds"),
        "exponent_peak_rss": growth(rounds, "peak_rss_bytes"),
        "exponent_peak_anonymous": growth(rounds, "peak_anonymous_bytes"),
        "memory_growth": by_users[largest] / tenth - 1 if tenth and by_users[largest] else None,
    }


def write_results(out: Path, rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Write `scale.json` and `scale.png` of the rounds so far: a run that is stopped leaves what it measured."""
    by_model: dict[str, list[dict[str, Any]]] = {}
    for found in rounds:
        by_model.setdefault(found["model"], []).append(found)
    results = {"rounds": list(rounds), "growth": {model: summarise(found) for model, found in by_model.items()}}
    replace_file(out / "scale.json", (json.dumps(results, indent=1) + "\n").encode())
    replace_file(out / "scale.png", draw(by_model))
    return results


def table(results: dict[str, Any]) -> str:
    """Return the measurements and exponents as text."""
    titles = ("model", "users", "interactions", "seconds", "sum", "update", "users/s", "peak RSS", "anonymous", "data")
    lines = ["".join(title.rjust(width) for title, width in zip(titles, _WIDTHS, strict=True))]
    for found in results["rounds"]:
        cells = (
            found["model"],
            f"{found['num_users']:,}",
            f"{found['num_interactions']:,}",
            *(f"{found[name]:.2f}" for name in ("seconds", "sum_seconds", "update_seconds")),
            f"{found['users_per_second']:,.0f}",
            *(_mib(found[name]) for name in ("peak_rss_bytes", "peak_anonymous_bytes", "data_bytes")),
        )
        lines.append("".join(cell.rjust(width) for cell, width in zip(cells, _WIDTHS, strict=True)))
    for model, found in results["growth"].items():
        lines.append(
            f"{model}: seconds ~ users^{_number(found['exponent_seconds'])} "
            f"(sum over users alone ^{_number(found['exponent_sum_seconds'])}), "
            f"peak RSS ~ users^{_number(found['exponent_peak_rss'])}, "
            f"anonymous memory ~ users^{_number(found['exponent_peak_anonymous'])}"
        )
        if found["memory_growth"] is not None:
            largest = max(r["num_users"] for r in results["rounds"] if r["model"] == model)
            lines.append(
                f"{model}: peak memory beyond the data from {largest // 10:,} to {largest:,} users: "
                f"{found['memory_growth']:+.1%}"
            )
    return "\n".join(lines)


_WIDTHS = (10, 11, 14, 10, 10, 8, 10, 11, 11, 11)


def _mib(num_bytes: int | None) -> str:
    return "-" if num_bytes is None else f"{num_bytes / 2**20:,.0f} MiB"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, nargs="+", default=list(USERS), help="numbers of users")
    parser.add_argument("--items", type=int, default=100_000, help="number of items, at least 400")
    parser.add_argument("--dim", type=int, default=32, help="length of the vectors")
    parser.add_argument("--models", nargs="+", default=["als", "mf"], help="names of the models")
    parser.add_argument("--threads", type=int, default=2, help="threads of each round")
    parser.add_argument("--data", type=Path, default=Path("runs/scale/data"), help="folder of the data")
    parser.add_argument("--out", type=Path, default=Path("runs/scale"), help="folder of scale.json and scale.png")
    parser.add_argument("--json", action="store_true", help="print the results as one JSON line, too, as the last")
    options = parser.parse_args(arguments)
    for name, least in (("items", 4 * MEAN_INTERACTIONS), ("dim", 1), ("threads", 1)):
        if getattr(options, name) < least:
            raise ConfigError(f"--{name} {getattr(options, name)} is too small; allowed is {least} or more")
    if min(options.users) < 1:
        raise ConfigError(f"--users {min(options.users)} is too small; allowed is 1 or more")
    for model in options.models:
        settings_type(model, unit=None)
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure all rounds, write and print what was found."""
    options = _options(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    rounds: list[dict[str, Any]] = []
    results: dict[str, Any] = {}
    for num_users in sorted(set(options.users)):
        stored = stored_world(options.data, num_users, options.items)
        for model in options.models:
            rounds.append(in_fresh_process(stored.folder, model, options.dim, options.threads))
            results = write_results(options.out, rounds)
            print(f"{model}, {num_users:,} users: {rounds[-1]['seconds']:.2f} s", file=sys.stderr)
    print(table(results))
    print(f"written: {options.out / 'scale.json'}, {options.out / 'scale.png'}")
    if options.json:
        print(json.dumps(results))


if __name__ == "__main__":
    try:
        main()
    except FedrecError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
