"""Which point of the search space comes next: optuna's samplers, as a function of seed, number and what was found."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

from fedrec.errors import ConfigError
from fedrec.randomness import Key
from fedrec.tuning.space import Range
from fedrec.tuning.trials import Trial

SAMPLERS = ("tpe", "random")


class Search:
    """Proposes points and learns from trials.

    A proposal follows from the seed, the number of the trial and all trials before it, and from nothing else: a sweep
    that was stopped goes on as if it had not been.

    Args:
        space: what may be set.
        sampler: "tpe" or "random".
        seed: what proposals are drawn from.

    Raises:
        ConfigError: for an unknown sampler, or where optuna is not installed.

    Source:
        Bergstra et al., Algorithms for Hyper-Parameter Optimization, 2011 (TPE); Akiba et al., Optuna, 2019.
    """

    def __init__(self, space: Sequence[Range], sampler: str, seed: int) -> None:
        """Start with no trial."""
        if sampler not in SAMPLERS:
            raise ConfigError(f"--sampler {sampler!r} is unknown; allowed are {', '.join(SAMPLERS)}")
        check_installed()
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna, self._space, self._sampler = optuna, space, sampler
        self._key = Key.from_seed(seed).fold("sweep")
        self._trials: list[Any] = []
        self._distributions = {one.key: self._distribution(one) for one in space}

    def propose(self) -> dict[str, Any]:
        """Return key -> value of the next trial; the same until `add` is called."""
        seed = int.from_bytes(self._key.fold(len(self._trials)).secret[:4], "little")
        samplers = self._optuna.samplers
        sampler = samplers.RandomSampler(seed=seed) if self._sampler == "random" else samplers.TPESampler(seed=seed)
        study = self._optuna.create_study(direction="maximize", sampler=sampler)
        study.add_trials(self._trials)
        params = study.ask(self._distributions).params
        return {one.key: params[one.key] if one.values is None else one.values[params[one.key]] for one in self._space}

    def add(self, trial: Trial) -> None:
        """Learn from a trial, run now or read from a file."""
        states = self._optuna.trial.TrialState
        state = {"complete": states.COMPLETE, "pruned": states.PRUNED, "failed": states.FAIL}[trial.state]
        self._trials.append(
            self._optuna.trial.create_trial(
                state=state,
                value=trial.value if trial.state == "complete" else None,
                params=self._indices(trial.params),
                distributions=self._distributions,
                intermediate_values=dict(trial.curve) if trial.state == "pruned" else None,
            )
        )

    def _indices(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Turn a value of a list into its place: optuna takes lists of numbers and texts only."""
        return {
            one.key: params[one.key] if one.values is None else one.values.index(params[one.key]) for one in self._space
        }

    def _distribution(self, one: Range) -> Any:
        distributions = self._optuna.distributions
        if one.values is not None:
            return distributions.CategoricalDistribution(range(len(one.values)))
        if isinstance(one.low, int) and isinstance(one.high, int):
            return distributions.IntDistribution(one.low, one.high, log=one.log)
        return distributions.FloatDistribution(one.low, one.high, log=one.log)


def check_installed() -> None:
    """Raise a `ConfigError` where optuna is not installed."""
    if importlib.util.find_spec("optuna") is None:
        raise ConfigError("fedrec sweep needs optuna, which is not installed; run: pip install 'fedrec[tune]'")
