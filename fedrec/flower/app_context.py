"""Make what both simulation runtimes hand to the apps: the run, its configs, the server's context."""

from __future__ import annotations

from collections.abc import Mapping

from flwr.app import Context, RecordDict, UserConfig, UserConfigValue
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.supercore.constant import NOOP_FEDERATION_ID
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedrec.errors import ConfigError

RUN_ID = 1
TASK_ID = 1


def server_context(run_config: Mapping[str, UserConfigValue]) -> Context:
    """Make the context a ServerApp is called with.

    Args:
        run_config: flat; checked and copied.

    Returns:
        A context with empty state.

    Raises:
        ConfigError: a value is not a str, int, float or bool.
    """
    return Context(RUN_ID, SUPERLINK_NODE_ID, {}, RecordDict(), checked_config("run_config", run_config))


def new_run() -> Run:
    """Make the description of a run; every run of a process has the same id, so that runs reproduce.

    Returns:
        An otherwise empty run.
    """
    run = Run.create_empty(RUN_ID)
    run.primary_task_id = TASK_ID
    run.federation_id = NOOP_FEDERATION_ID
    return run


def set_identity(run_id: int) -> None:
    """Tell Flower which app this process runs; messages cannot be created without it.

    Args:
        run_id: what new messages carry.
    """
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = run_id, SUPERLINK_NODE_ID, TASK_ID


def checked_config(name: str, config: Mapping[str, UserConfigValue]) -> UserConfig:
    """Copy a config after checking that every runtime of Flower can carry it.

    Args:
        name: what messages call it.
        config: flat.

    Returns:
        A copy.

    Raises:
        ConfigError: a value is not a str, int, float or bool, or an int does not fit 64 bits.
    """
    for key, value in config.items():
        if not isinstance(value, str | int | float | bool):
            raise ConfigError(
                f"{name}[{key!r}] is a {type(value).__name__};"
                " allowed are str, int, float and bool: flatten or encode it"
            )
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise ConfigError(f"{name}[{key!r}]={value} does not fit a signed 64-bit integer; pass it as a str")
    return dict(config)
