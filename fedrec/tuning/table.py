"""The table of trials that a person sees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fedrec.tuning.sweep import short
from fedrec.tuning.trials import Trial, best_of


def show(tables: Sequence[Mapping[str, Any]], metric: str, num_shown: int = 30) -> None:
    """Print the best trials to stderr: complete ones, best first, then pruned, then failed; as in `sweep.json`."""
    trials = [Trial.from_dict(table) for table in tables]
    order = {"complete": 0, "pruned": 1, "failed": 2}
    ranked = sorted(trials, key=lambda trial: (order[trial.state], -trial.value if trial.values else 0.0, trial.number))
    best = best_of(trials)
    table = Table(title=f"Validation {metric}")
    for name in ("trial", metric, "state", *(key.split(".")[-1] for key in trials[0].params), "seconds", "note"):
        table.add_column(name, justify="left" if name in ("state", "note") else "right", overflow="fold")
    for trial in ranked[:num_shown]:
        value = "" if not trial.values else f"{trial.value:.4f}"
        value += f" ± {trial.spread:.4f}" if len(trial.values) > 1 else ""
        settings = [escape(short(one)) for one in trial.params.values()]
        cells = [str(trial.number), value, trial.state, *settings, f"{trial.seconds:.1f}", escape(trial.reason)]
        table.add_row(*cells, style="bold" if trial is best else None)
    console = Console(stderr=True)
    console.print(table)
    if len(ranked) > num_shown:
        console.print(f"{len(ranked) - num_shown} more in trials.jsonl")
