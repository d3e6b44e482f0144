"""Simulations: the server and client apps on this machine, in-process or in Flower's own engine."""

from __future__ import annotations

import importlib
import importlib.util
import json
from pathlib import Path
from typing import Any

from fedrec.config import Config
from fedrec.errors import ConfigError
from fedrec.tuning.trials import Order

SERVER_APP = "server.app:app"
CLIENT_APP = "client.app:app"


def run_simulation(directory: Path, config: Config, runtime: str = "local") -> None:
    """Run what is left of a run.

    Args:
        directory: the run folder, with its config in it.
        config: the resolved config.
        runtime: "local" for the in-process grid, "ray" for Flower's simulation engine; both give the same result.

    Raises:
        ConfigError: for an unknown runtime.
        FedrecError: whatever stopped the run; all finished rounds are on disk.
    """
    check_runtime(runtime)
    run_config = _run_config(directory, config)
    server, client = _load(SERVER_APP), _load(CLIENT_APP)
    if runtime == "ray":
        from fedrec.flower.ray_runtime import run_in_ray

        run_in_ray(server, client, run_config, config.federated.num_nodes)
    else:
        from fedrec.flower.local_grid import run_in_process

        run_in_process(server, client, run_config, config.federated.num_nodes)


def run_trial(directory: Path, config: Config, order: Order) -> dict[str, Any]:
    """Run what is left of a trial of a sweep, in-process: validation is all that server and nodes look at.

    Args:
        directory: the trial's folder, with its config in it; one that is finished is only read.
        config: the resolved config.
        order: what counts, and when to give up.

    Returns:
        value (of the metric), pruned, rounds, and curve: round (as text) -> metric.

    Raises:
        FedrecError: whatever stopped the run.
    """
    from fedrec.flower.local_grid import run_in_process

    found = directory / "trial.json"
    if not found.exists():
        run_config = {**_run_config(directory, config), "trial": order.to_json()}
        run_in_process(_load(SERVER_APP), _load(CLIENT_APP), run_config, config.federated.num_nodes)
    return dict(json.loads(found.read_text(encoding="utf-8")))


def _run_config(directory: Path, config: Config) -> dict[str, str | int | float | bool]:
    return {"config-json": config.to_json(), "out": str(directory.absolute()), "simulation": True}


def check_runtime(runtime: str) -> None:
    """Raise a `ConfigError` for an unknown runtime, or one whose package is not installed."""
    if runtime not in ("local", "ray"):
        raise ConfigError(f"--runtime {runtime!r} is unknown; allowed are 'local' and 'ray'")
    if runtime == "ray" and importlib.util.find_spec("ray") is None:
        raise ConfigError("--runtime ray needs Ray, which is not installed; run: pip install 'fedrec[ray]'")


def _load(name: str) -> Any:
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)
