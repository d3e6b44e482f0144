"""What `fedrec sweep` is given, as a sweep; and the command that stands in best.toml."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedrec.config import read_table
from fedrec.tuning.space import load_space
from fedrec.tuning.sweep import Sweep


def sweep_of_options(
    config: Path,
    settings: Sequence[str],
    space: Path | None,
    ranges: Sequence[str],
    how: tuple[str, str, int, bool],
    num_trials: int,
) -> Sweep:
    """Make the sweep that options of the command line describe.

    Args:
        config: TOML file to search around.
        settings: "section.key=value" each, over the file.
        space: TOML file of the search space, or None.
        ranges: further ranges, see `load_space`.
        how: sampler, metric, seeds, prune.
        num_trials: trials in all.

    Raises:
        ConfigError: where a file or an option is malformed.
    """
    sampler, metric, num_seeds, prune = how
    words = ["fedrec", "sweep", str(config)]
    words += [] if space is None else ["--space", str(space)]
    for name, values in (("--set-range", ranges), ("--set", settings)):
        words += [word for value in values for word in (name, value)]
    words += ["--trials", str(num_trials), "--sampler", sampler, "--seeds", str(num_seeds), "--metric", metric]
    words += ["--prune"] if prune else []
    table = read_table(config, settings)
    return Sweep(
        table, str(config), load_space(space, ranges), sampler, metric, num_seeds, prune, command=shlex.join(words)
    )


def warnings_of(found: Mapping[str, Any]) -> list[str]:
    """Return what a person must be told of a sweep, from its `sweep.json`."""
    return [] if found["privacy"] is None else [str(found["privacy"]["warning"])]
