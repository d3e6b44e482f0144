"""Published federated recommenders beside ours: one engine, one protocol, equally tuned, in one table.

    python -m simulations.peers [ml-100k] [--ours FILE.toml ...] [--only fcf,als] [--trials 4] [--seeds 3] [--out DIR]

Every row is tuned by the same number of settings: first the one that is its paper's or its authors' (for ours: the
committed one), then random ones of its space; of all settings and evaluated rounds the best on validation (NDCG@10,
full ranking) is run again for each seed, from start to that round. Configs given with `--ours` run as they are.

Two more runs show the leak (see `simulations.leak`): the same settings for all rounds, and the paper's settings, which
are how published `sampled_99` figures came about. What is finished is not run again: call it again with the same --out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from fedrec import config as configs
from fedrec.config import Config
from fedrec.errors import ConfigError, FedrecError
from fedrec.run_folder import RunFolder
from fedrec.simulation import run_simulation, run_trial
from fedrec.tuning.search import Search
from fedrec.tuning.space import with_values
from fedrec.tuning.trials import Order, Trial
from simulations.contenders import Contender, contenders
from simulations.leak import leaking

SELECTED_BY = "ndcg@10"
SHOWN = ("ndcg@10", "hr@10")


@dataclass(frozen=True)
class Choice:
    """What tuning came to.

    Args:
        params: key -> value over the base.
        rounds: after how many rounds validation was best.
        validation: NDCG@10 there.
        trials: all settings tried: {"params", "curve" or "reason"}.
    """

    params: Mapping[str, Any]
    rounds: int
    validation: float
    trials: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class Row:
    """One row of the table; metrics are lists, a value for each seed.

    Args:
        label: which system.
        choice: its settings.
        test: full ranking, metric -> values.
        sampled_99: metric -> values.
        seconds_per_round: median of the first seed.
        published: sampled_99 of the paper, metric -> value; None where there is none.
        source: of the published figures.
        leak: the same settings with the leak, {"rounds", "test", "sampled_99"}; None where there is none.
        leak_of_paper: the paper's settings with the leak.
    """

    label: str
    choice: Choice
    test: Mapping[str, Sequence[float]]
    sampled_99: Mapping[str, Sequence[float]]
    seconds_per_round: float
    published: Mapping[str, float] | None = None
    source: str = ""
    leak: Mapping[str, Any] | None = None
    leak_of_paper: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Plan:
    """What is run, where.

    Args:
        data: name of the data set.
        num_trials: settings tried for each row.
        num_seeds: runs of the chosen one.
        out: folder.
        max_rounds: cut for quick looks; 0 for none.
        settings: "section.key" -> value, set in every config.
        num_threads: of every run.
    """

    data: str
    num_trials: int
    num_seeds: int
    out: Path
    max_rounds: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    num_threads: int = 1

    def rounds(self, contender: Contender) -> int:
        """Return how many rounds a contender may train."""
        return min(contender.rounds, self.max_rounds) if self.max_rounds else contender.rounds

    def config(self, contender: Contender, params: Mapping[str, Any], rounds: int, seed: int, every: int) -> Config:
        """Return the config of one run."""
        table = {
            "data": {"name": self.data},
            "model": dict(contender.model),
            "federated": {"num_nodes": 2, "num_rounds": rounds},
            "evaluation": {"sampled_99": True, "every": every},
            "runtime": {"seed": seed, "num_threads": self.num_threads},
        }
        return configs.build(with_values(table, {**self.settings, **params}), contender.label)


def tune(plan: Plan, contender: Contender) -> Choice:
    """Try settings and choose by validation alone: nodes of a trial refuse to rank test items.

    Raises:
        ConfigError: where no setting finishes.
    """
    rounds = plan.rounds(contender)
    every = max(1, rounds // 10)
    search = Search(contender.space, "random", 0) if contender.space else None
    tried: list[dict[str, Any]] = []
    choices = []
    for number in range(plan.num_trials if search else 1):
        params = search.propose() if search and number else {}
        folder = plan.out / contender.label / f"trial-{number}"
        try:
            config = plan.config(contender, params, rounds, 0, every)
            found = run_trial(_begun(folder, config).path, config, Order(SELECTED_BY))
            curve = {int(round_number): value for round_number, value in found["curve"].items()}
            tried.append({"params": params, "curve": curve})
            best = max(curve, key=lambda round_number: (curve[round_number], -round_number))
            choices.append(Choice(params, best, curve[best]))
        except FedrecError as error:  # a rate that is too large, say
            tried.append({"params": params, "reason": str(error)})
        if search and number:
            values = [choices[-1].validation] if "curve" in tried[-1] else []
            search.add(Trial(number - 1, params, "complete" if values else "failed", values))
        print(f"{contender.label}: {json.dumps(tried[-1])}", file=sys.stderr, flush=True)
    if not choices:
        raise ConfigError(
            f"none of {len(tried)} settings of {contender.label} finished; the first: {tried[0]['reason']}"
        )
    chosen = max(choices, key=lambda choice: choice.validation)
    return Choice(chosen.params, chosen.rounds, chosen.validation, tried)


def run(folder: Path, config: Config) -> dict[str, Any]:
    """Run a config, or read its result where it was run before."""
    place = _begun(folder, config)
    if not (folder / "result.json").exists():
        run_simulation(folder, config)
    return place.result()


def _begun(folder: Path, config: Config) -> RunFolder:
    """Make a run's folder; where it is there, it must be of the same run.

    Raises:
        SystemExit: where another run is there: settings or spaces have changed since.
    """
    place = RunFolder(folder)
    if (folder / "config.toml").exists() and place.config() != config:
        raise SystemExit(f"{folder} holds a run with other settings; give another --out, or delete the folder")
    place.create(config)
    return place


def run_leaking(folder: Path, config: Config) -> dict[str, Any]:
    """Run a config with the leak; its result says so."""
    place = _begun(folder, config)
    if not (folder / "result.json").exists():
        with leaking(config):
            run_simulation(folder, config)
        place.write_result({**place.result(), "leak": "held-out items were never drawn as negatives"})
    found = place.result()
    test, sampled = _metrics([found])
    return {"rounds": config.federated.num_rounds, "test": test, "sampled_99": sampled}


def _metrics(results: Sequence[Mapping[str, Any]]) -> list[dict[str, list[float]]]:
    """Return metric -> values of full ranking and of sampled_99."""
    parts = ("test", "test_sampled_99")
    return [{metric: [one["metrics"][part][metric] for one in results] for metric in SHOWN} for part in parts]


def measure(plan: Plan, contender: Contender) -> Row:
    """Tune a contender and run what was chosen."""
    choice, place = tune(plan, contender), plan.out / contender.label
    last = plan.rounds(contender)
    results = [
        run(place / f"seed-{seed}", plan.config(contender, choice.params, choice.rounds, seed, 0))
        for seed in range(plan.num_seeds if contender.draws else 1)
    ]
    leaks: dict[str, Any] = {}
    if contender.leaks:
        leaks["leak"] = run_leaking(place / "leak", plan.config(contender, choice.params, last, 0, 0))
        leaks["leak_of_paper"] = (
            run_leaking(place / "leak-of-paper", plan.config(contender, {}, last, 0, 0))
            if choice.params
            else leaks["leak"]
        )
    seconds = results[0]["timing"]["seconds_per_round"]
    published = contender.published.get(plan.data)
    test, sampled = _metrics(results)
    return Row(contender.label, choice, test, sampled, seconds, published, contender.source, **leaks)


def measure_ours(plan: Plan, file: Path) -> Row:
    """Run a committed config as it is, but for the seed and the number of threads."""
    results = []
    for seed in range(plan.num_seeds):
        runtime = (f"runtime.seed={seed}", f"runtime.num_threads={plan.num_threads}")
        config = configs.load(file, (*runtime, "evaluation.sampled_99=true", "evaluation.every=0"))
        results.append(run(plan.out / file.stem / f"seed-{seed}", config))
    rounds = len(RunFolder(plan.out / file.stem / "seed-0").rounds())
    choice = Choice({}, rounds, results[0]["metrics"]["validation"][SELECTED_BY])
    test, sampled = _metrics(results)
    return Row(file.stem, choice, test, sampled, results[0]["timing"]["seconds_per_round"])


def table(rows: Sequence[Row], plan: Plan) -> Table:
    """Return the rows as a table for people."""
    found = Table(title=f"{plan.data}: leave-one-out, threads: {plan.num_threads}, seeds: {plan.num_seeds}")
    titles = ("NDCG@10", "HR@10", "99: NDCG@10", "99: HR@10", "99: published", "leak", "99: leak", "99: paper + leak")
    for name in ("", *titles, "of published", "s/round", "rounds", "tried"):
        found.add_column(name, justify="right" if name else "left", no_wrap=name in ("", *titles))
    for row in rows:
        cells = [spread(values[metric]) for values in (row.test, row.sampled_99) for metric in SHOWN]
        cells.append("-" if row.published is None else pair(row.published))
        cells += ["-"] * 4 if row.leak is None or row.leak_of_paper is None else _leak_cells(row)
        tried = len(row.choice.trials)
        cells += [f"{row.seconds_per_round:.2f}", str(row.choice.rounds), str(tried) if tried else "committed"]
        found.add_row(row.label, *cells)
    found.caption = (
        "NDCG@10 and HR@10, full ranking and (99) among 99 sampled negatives; leak: the same settings, all rounds, "
        "held-out items never drawn as negatives; of published: HR@10 of the better of both runs with the leak"
    )
    return found


def _leak_cells(row: Row) -> list[str]:
    if row.leak is None or row.leak_of_paper is None:
        return []
    first = {name: {metric: values[0] for metric, values in row.leak[name].items()} for name in ("test", "sampled_99")}
    paper = {metric: values[0] for metric, values in row.leak_of_paper["sampled_99"].items()}
    share = "-" if row.published is None else f"{reached(row):.0%}"
    return [pair(first["test"]), pair(first["sampled_99"]), pair(paper), share]


def reached(row: Row) -> float:
    """Return the larger of both leaking runs' sampled_99 HR@10 as a share of the published one; NaN without one."""
    if row.published is None or row.leak is None or row.leak_of_paper is None:
        return float("nan")
    found = [float(leak["sampled_99"]["hr@10"][0]) for leak in (row.leak, row.leak_of_paper)]
    return max(found) / row.published["hr@10"]


def pair(metrics: Mapping[str, float]) -> str:
    """Print NDCG@10 and HR@10 side by side."""
    return " / ".join(f"{metrics[metric]:.3f}" for metric in SHOWN)


def spread(values: Sequence[float]) -> str:
    """Print mean and standard deviation over seeds."""
    if len(values) < 2:
        return f"{values[0]:.4f}"
    return f"{statistics.fmean(values):.4f} ± {statistics.stdev(values):.4f}"


def as_json(rows: Sequence[Row], plan: Plan) -> str:
    """Return everything, all settings tried included."""
    return json.dumps(
        {
            "data": plan.data,
            "seeds": plan.num_seeds,
            "threads": plan.num_threads,
            "rows": [asdict(row) for row in rows],
        },
        indent=2,
    )


def main() -> None:
    """Run all rows, print the table and write peers.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", default="ml-100k", help="a named data set")
    parser.add_argument("--ours", nargs="*", type=Path, default=[], help="configs that run as they are")
    parser.add_argument("--only", default=None, help="labels, comma-separated; all where not given")
    parser.add_argument("--trials", type=int, default=4, help="settings tried for each row")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=0, help="at most so many; 0 for each method's own number")
    parser.add_argument("--out", type=Path, default=None, help="folder for the runs; goes on with what is there")
    options = parser.parse_args()
    out = options.out or Path(tempfile.mkdtemp(prefix="peers-"))
    plan = Plan(options.data, options.trials, options.seeds, out, options.rounds, {}, options.threads)
    rows = [measure(plan, contender) for contender in contenders(options.only)]
    rows += [measure_ours(plan, file) for file in options.ours]
    Console(width=220).print(table(rows, plan))
    (out / "peers.json").write_text(as_json(rows, plan) + "\n", encoding="utf-8")
    print(f"json: {out / 'peers.json'}")


if __name__ == "__main__":
    main()
