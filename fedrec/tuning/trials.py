"""Trials: what was tried and what came of it, one line each in an append-only file."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fedrec.errors import ConfigError, DataError
from fedrec.files import append_at

STATES = ("complete", "pruned", "failed")


@dataclass(frozen=True)
class Order:
    """What a trial run is told beside its config.

    Args:
        metric: which validation metric counts, for example "ndcg@10".
        floors: round -> validation metric; a run whose best so far is below it ends there.
    """

    metric: str
    floors: Mapping[int, float] = field(default_factory=dict)

    def to_json(self) -> str:
        """Return the order as one line, the form in which it travels to the apps."""
        return json.dumps({"metric": self.metric, "floors": {str(k): v for k, v in self.floors.items()}})

    @classmethod
    def from_json(cls, text: str) -> Order:
        """Read what `to_json` wrote."""
        table = json.loads(text)
        return cls(table["metric"], {int(number): value for number, value in table["floors"].items()})

    def curve(self, lines: Sequence[Mapping[str, Any]]) -> dict[int, float]:
        """Return round -> metric of the rounds that were evaluated; `lines` are those of rounds.jsonl.

        Raises:
            ConfigError: for a metric that validation does not have.
        """
        evaluated = {line["round"]: line.get("metrics", {}).get("validation") for line in lines}
        return {number: self.value(metrics) for number, metrics in evaluated.items() if metrics is not None}

    def value(self, validation: Mapping[str, float]) -> float:
        """Return the metric.

        Raises:
            ConfigError: for a metric that validation does not have.
        """
        if self.metric not in validation:
            known = ", ".join(name for name in validation if name != "num_users")
            raise ConfigError(f"--metric {self.metric!r} is unknown; allowed are {known}")
        return float(validation[self.metric])

    def is_hopeless(self, curve: Mapping[int, float]) -> bool:
        """Return whether the best value so far is below the floor of the last evaluated round."""
        return bool(curve) and max(curve.values()) < self.floors.get(max(curve), -math.inf)


@dataclass(frozen=True)
class Trial:
    """One point of the search space, and what came of it.

    Args:
        number: from 0.
        params: key -> value.
        state: "complete", "pruned" (ended early, as it was below the median of trials before) or "failed".
        values: the metric of each seed; of a pruned trial what it had reached.
        curve: round -> metric of the first seed, where rounds were evaluated.
        rounds: rounds run, over all seeds.
        seconds: the time it took.
        reason: why it failed, or which trial it repeats; "" else.
    """

    number: int
    params: Mapping[str, Any]
    state: str
    values: Sequence[float] = ()
    curve: Mapping[int, float] = field(default_factory=dict)
    rounds: int = 0
    seconds: float = 0.0
    reason: str = ""

    @property
    def value(self) -> float:
        """Return the mean over seeds; NaN where there is none."""
        return statistics.fmean(self.values) if self.values else math.nan

    @property
    def spread(self) -> float:
        """Return the standard deviation over seeds; 0 for one seed."""
        return statistics.stdev(self.values) if len(self.values) > 1 else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return the trial as JSON values, mean and spread included (None where there are none)."""
        mean = self.value if self.values else None
        return {**asdict(self), "value": mean, "spread": self.spread if self.values else None}

    @classmethod
    def from_dict(cls, table: Mapping[str, Any]) -> Trial:
        """Read what `to_dict` wrote."""
        known = {name: value for name, value in table.items() if name not in ("value", "spread")}
        known["curve"] = {int(number): value for number, value in known["curve"].items()}
        if known["state"] not in STATES:
            raise ValueError(f"state {known['state']!r}")
        return cls(**known)


class TrialLog:
    """The trials of a sweep on disk, in `trials.jsonl`; a torn last line, left by a crash, is not there yet.

    Args:
        file: where; made by the first `append`.

    Raises:
        DataError: where a line is damaged.
    """

    def __init__(self, file: Path) -> None:
        """Read what is there."""
        self._file, self._end = file, 0
        self.trials: list[Trial] = []
        for number, line in enumerate(file.read_bytes().split(b"\n")[:-1] if file.exists() else (), start=1):
            try:
                trial = Trial.from_dict(json.loads(line))
                if trial.number != len(self.trials):
                    raise ValueError(f"trial {trial.number} where {len(self.trials)} should be")
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise DataError(
                    f"{file} line {number} is damaged ({error}); delete it and all lines below, and sweep again"
                ) from error
            self.trials.append(trial)
            self._end += len(line) + 1

    def append(self, trial: Trial) -> None:
        """Put a trial on disk."""
        text = json.dumps(trial.to_dict(), sort_keys=True).encode() + b"\n"
        append_at(self._file, self._end, text)
        self._end += len(text)
        self.trials.append(trial)


def best_of(trials: Sequence[Trial]) -> Trial | None:
    """Return the complete trial of the greatest mean, the earliest of equals; None where none is complete."""
    complete = [trial for trial in trials if trial.state == "complete"]
    return max(complete, key=lambda trial: (trial.value, -trial.number)) if complete else None


def median_floors(trials: Sequence[Trial], num_startup: int = 5) -> dict[int, float]:
    """Return round -> median metric of the complete trials there; {} before there are `num_startup` of them.

    Source:
        Golovin et al., Google Vizier: A Service for Black-Box Optimization, 2017, section 3.2.2 (median stopping).
    """
    complete = [trial for trial in trials if trial.state == "complete"]
    if len(complete) < num_startup:
        return {}
    rounds = sorted({number for trial in complete for number in trial.curve})
    curves = {number: [trial.curve[number] for trial in complete if number in trial.curve] for number in rounds}
    return {number: statistics.median(values) for number, values in curves.items() if len(values) >= num_startup}
