"""Simulations: the server and client apps on this machine, in-process or in Flower's own engine."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from fedrec.config import Config
from fedrec.errors import ConfigError

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
    from fedrec.flower.local_grid import run_in_process

    run_config: dict[str, str | int | float | bool] = {
        "config-json": config.to_json(),
        "out": str(directory.absolute()),
        "simulation": True,
    }
    server, client = _load(SERVER_APP), _load(CLIENT_APP)
    if runtime == "local":
        run_in_process(server, client, run_config, config.federated.num_nodes)
    elif runtime == "ray":
        from fedrec.flower.ray_runtime import run_in_ray

        run_in_ray(server, client, run_config, config.federated.num_nodes)
    else:
        raise ConfigError(f"--runtime {runtime!r} is unknown; allowed are 'local' and 'ray'")


def _load(name: str) -> Any:
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)
