"""A sweep: propose, run, record, again; then write down the best config and what was tried.

    plan.json      what is searched, and how; a sweep goes on in its folder only with the same
    trials.jsonl   one line a finished trial
    trials/        run folders of the trial that is running; removed when it is recorded
    sweep.json     the whole sweep
    best.toml      the config of the best trial, with the command that found it

Trials are runs like any other, but neither their server nor their nodes rank test targets.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedrec import assemble
from fedrec.config import Config, build, to_toml
from fedrec.errors import ConfigError, FedrecError
from fedrec.evaluation.counts import summarise, zero_counts
from fedrec.files import replace_file
from fedrec.run_folder import RunFolder
from fedrec.simulation import run_trial
from fedrec.tuning.search import Search
from fedrec.tuning.space import Range, check_space, with_values
from fedrec.tuning.trials import Order, Trial, TrialLog, best_of, median_floors

_LOG = logging.getLogger(__name__)

NOT_COVERED = (
    "hyper-parameters were chosen by looking at private validation data, once a trial: no epsilon of a run with them "
    "covers that choice"
)


@dataclass(frozen=True)
class Sweep:
    """What is searched, and how.

    Args:
        table: the config that is searched around, as read from its file.
        source: how errors name it.
        space: what may be set, to what.
        sampler: "tpe" or "random".
        metric: of validation; more is better.
        num_seeds: runs of a trial, with the config's seed and those after it; their mean counts.
        prune: end a trial whose first seed, at an evaluated round, is below the median of the trials before it.
        command: what a person would type, for best.toml.
    """

    table: Mapping[str, Any]
    source: str
    space: tuple[Range, ...]
    sampler: str = "tpe"
    metric: str = "ndcg@10"
    num_seeds: int = 1
    prune: bool = False
    command: str = "fedrec sweep"

    def config(self, params: Mapping[str, Any], seed: int = 0) -> Config:
        """Return the config of a point: the table with some keys set, its seed moved on by `seed`.

        Defaults are resolved before keys are set: a key of a table within the model leaves its neighbours alone.
        """
        table = self.table
        if "model.name" not in params:
            table = json.loads(build(table, self.source).to_json())
        config = build(with_values(table, params), self.source)
        runtime = config.runtime.model_copy(update={"seed": config.runtime.seed + seed})
        return config.model_copy(update={"runtime": runtime})

    def check(self) -> Config:
        """Refuse what cannot be swept, and return the config that is searched around.

        Raises:
            FedrecError: for bad input: config, data, space, metric or sampler.
        """
        config = build(self.table, self.source)
        check_space(self.table, self.space, self.source)
        Search(self.space, self.sampler, config.runtime.seed)
        metrics = summarise(zero_counts(1), assemble.cutoffs(config), 1)
        Order(self.metric).value({name: value for name, value in metrics.items() if "@" in name})
        if self.prune and not 0 < config.evaluation.every < config.federated.num_rounds:
            raise ConfigError(
                f"--prune looks at validation between rounds, evaluation.every={config.evaluation.every} of "
                f"{config.federated.num_rounds} rounds; set it to a number of rounds in between"
            )
        assemble.check(config)
        return config

    def to_dict(self) -> dict[str, Any]:
        """Return what two sweeps must have in common to be the same, as JSON values."""
        fingerprint = assemble.dataset(self.config({}).to_json()).interactions.fingerprint()
        return {
            "config": json.loads(self.config({}).to_json()),
            "data_fingerprint": fingerprint,
            "space": [one.model_dump(mode="json", exclude_defaults=True) for one in self.space],
            "sampler": self.sampler,
            "metric": self.metric,
            "seeds": self.num_seeds,
            "prune": self.prune,
        }


def run_sweep(sweep: Sweep, folder: Path, num_trials: int) -> dict[str, Any]:
    """Run the trials that are left of a sweep and write `sweep.json` and `best.toml`.

    Args:
        sweep: what is searched.
        folder: made where it is not there; a sweep that was stopped, or gets more trials, goes on in its folder.
        num_trials: trials in all, those of earlier calls included.

    Returns:
        The content of `sweep.json`.

    Raises:
        FedrecError: for bad input, or where every trial failed. A single trial that fails is recorded with its reason.

    Privacy:
        Every trial is a simulation with its own plan; the choice among them looks at private validation data and is not
        covered by any epsilon: statements say "excluding hyper-parameter selection", and `best.toml` says so, too.
    """
    config = sweep.check()
    _begin(folder, sweep.to_dict())
    log = TrialLog(folder / "trials.jsonl")
    search = Search(sweep.space, sweep.sampler, config.runtime.seed)
    for trial in log.trials:
        search.add(trial)
    while len(log.trials) < num_trials:
        params = search.propose()
        trial = _repeated(params, log.trials) or _run(sweep, folder / "trials", params, log.trials)
        log.append(trial)
        search.add(trial)
        shutil.rmtree(folder / "trials", ignore_errors=True)
        best = best_of(log.trials)
        _LOG.info(
            "trial %d of %d: %s %.4f%s",
            trial.number,
            num_trials,
            trial.state,
            trial.value,
            "" if best is None else f", best {best.value:.4f} of trial {best.number}",
        )
    return _write(sweep, folder, log.trials)


def short(value: Any) -> str:
    """Print a value of a range for people."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _begin(folder: Path, plan: Mapping[str, Any]) -> None:
    """Make the folder, or check that the same sweep was begun there."""
    file, text = folder / "plan.json", json.dumps(plan, indent=2, sort_keys=True) + "\n"
    try:
        if file.exists():
            if file.read_text(encoding="utf-8") != text:
                raise ConfigError(
                    f"{folder} holds another sweep (config, data, space, sampler, metric or seeds differ); "
                    "give another --out"
                )
            return
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise ConfigError(f"{folder} is not empty and holds no sweep; give an empty or new folder as --out")
    except OSError as error:
        raise ConfigError(f"folder {folder} can't be made or read ({error}); give another --out") from error
    replace_file(file, text.encode())


def _repeated(params: Mapping[str, Any], trials: Sequence[Trial]) -> Trial | None:
    """Return a trial that takes over what a complete one of the same point found: a run follows from its config."""
    same = next((trial for trial in trials if trial.state == "complete" and trial.params == params), None)
    if same is None:
        return None
    return replace(same, number=len(trials), rounds=0, seconds=0.0, reason=f"the same as trial {same.number}")


def _run(sweep: Sweep, folder: Path, params: Mapping[str, Any], trials: Sequence[Trial]) -> Trial:
    """Run all seeds of a point."""
    start, number = time.perf_counter(), len(trials)
    _LOG.info("trial %d: %s", number, ", ".join(f"{key}={short(value)}" for key, value in params.items()))
    order = Order(sweep.metric, median_floors(trials) if sweep.prune else {})
    found: list[dict[str, Any]] = []
    state, reason = "complete", ""
    try:
        for seed in range(sweep.num_seeds):
            found.append(_run_seed(sweep.config(params, seed), folder / f"{number}-{seed}", order))
            order = Order(sweep.metric)
            if not math.isfinite(found[-1]["value"]):
                raise ConfigError(f"validation {sweep.metric} is {found[-1]['value']}")
            if found[-1]["pruned"]:
                state = "pruned"
                break
    except (FedrecError, RuntimeError) as error:  # torch raises RuntimeErrors: singular matrices, memory
        state, reason = "failed", " ".join(f"{error}".split()) or type(error).__name__
        _LOG.warning("trial %d failed: %s", number, reason)
    return Trial(
        number,
        params,
        state,
        values=[one["value"] for one in found] if state != "failed" else [],
        curve={int(n): value for n, value in found[0]["curve"].items()} if found and state != "failed" else {},
        rounds=sum(one["rounds"] for one in found),
        seconds=time.perf_counter() - start,
        reason=reason,
    )


def _run_seed(config: Config, folder: Path, order: Order) -> dict[str, Any]:
    if folder.exists() and not (folder / "config.toml").exists():
        shutil.rmtree(folder)  # a crash while it was being made
    assemble.check(config)
    RunFolder(folder).create(config)
    return run_trial(folder, config, order)


def _write(sweep: Sweep, folder: Path, trials: Sequence[Trial]) -> dict[str, Any]:
    """Write `sweep.json`, and `best.toml` where a trial is complete.

    Raises:
        ConfigError: where none is.
    """
    best = best_of(trials)
    config = None if best is None else sweep.config(best.params)
    plan = None if config is None else assemble.plan_of(config)
    found = {
        **sweep.to_dict(),
        "command": sweep.command,
        "best": None if best is None else best.to_dict(),
        "trials": [trial.to_dict() for trial in trials],
        "privacy": None if plan is None else {"statement": plan.statement, "warning": NOT_COVERED},
    }
    replace_file(folder / "sweep.json", (json.dumps(found, indent=2, sort_keys=True) + "\n").encode())
    if best is None or config is None:
        reasons = [trial.reason for trial in trials if trial.reason]
        why = f"; the first: {reasons[0]}" if reasons else ""
        raise ConfigError(f"none of {len(trials)} trials is complete{why}")
    lines = [
        f"# Found by: {sweep.command}",
        f"# Trial {best.number} of {len(trials)}: validation {sweep.metric} {best.value:.4f}, mean of "
        f"{sweep.num_seeds} seeds (standard deviation {best.spread:.4f}).",
    ]
    if plan is not None:
        lines.append(f"# {NOT_COVERED[0].upper()}{NOT_COVERED[1:]}.")
    replace_file(folder / "best.toml", ("\n".join(lines) + "\n" + to_toml(config)).encode())
    return found
