"""Run the same apps in Flower's own simulation engine, one Ray actor per group of nodes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

from flwr.app import Context, Message, UserConfig, UserConfigValue
from flwr.clientapp import ClientApp
from flwr.server.superlink.fleet.vce.backend.backend import BackendConfig
from flwr.serverapp import Grid, ServerApp
from flwr.simulation.run_simulation import _run_simulation
from flwr.supercore import telemetry

from fedrec.errors import ConfigError
from fedrec.flower.app_context import checked_config, new_run, server_context, set_identity


def run_in_ray(
    server_app: ServerApp,
    client_app: ClientApp,
    run_config: Mapping[str, UserConfigValue],
    num_nodes: int,
    num_cpus_per_node: int = 1,
    node_config_extra: Mapping[str, UserConfigValue] | None = None,
) -> None:
    """Run a ServerApp to its end against nodes that are calls of a ClientApp in Ray actors.

    Ray makes as many actors as fit the machine, and never more than there are nodes. Node ids are random here:
    only `node_config["partition-id"]` tells nodes apart from run to run.

    Args:
        server_app: called once, in a thread of its own; its exceptions pass through unchanged.
        client_app: pickled for every message, so its functions must live in an importable module.
        run_config: flat; both apps see it as `context.run_config`.
        num_nodes: at least 1.
        num_cpus_per_node: at least 1; Ray sets `OMP_NUM_THREADS` of an actor to it.
        node_config_extra: more entries for every `node_config`.

    Raises:
        ConfigError: a count is below 1, or a config value is not a str, int, float or bool.
        RuntimeError: the engine itself failed, for instance because Ray did not start.
    """
    if num_nodes < 1 or num_cpus_per_node < 1:
        raise ConfigError(f"num_nodes={num_nodes} and num_cpus_per_node={num_cpus_per_node} must both be at least 1")
    server = _CapturedServerApp(server_app)
    extra = checked_config("node_config_extra", node_config_extra or {})
    client = _ConfiguredClientApp(client_app, checked_config("run_config", run_config), extra)
    try:
        _simulate(server, client, server_context(run_config), _backend(num_nodes, num_cpus_per_node), num_nodes)
    except BaseException:
        server.stop()
        raise
    if server.error is not None:
        raise server.error


class _CapturedServerApp(ServerApp):
    """Keeps what the app raised; Flower would lose a SystemExit and wait 3 s before it passed on the rest."""

    def __init__(self, app: ServerApp) -> None:
        super().__init__()
        self._app = app
        self._grid: Grid | None = None
        self.error: BaseException | None = None

    def __call__(self, grid: Grid, context: Context) -> None:
        self._grid = grid
        try:
            self._app(grid, context)
        except BaseException as error:
            self.error = error

    def stop(self) -> None:
        """Make the app's next look for replies fail: after a crash or Ctrl-C of the engine none will come."""

        def pull_messages(message_ids: Iterable[str]) -> Iterable[Message]:
            raise RuntimeError("Flower's simulation engine has stopped")

        if self._grid is not None:
            self._grid.pull_messages = pull_messages  # type: ignore[method-assign]


class _ConfiguredClientApp(ClientApp):
    """Gives the app the run config, which the engine hands to clients only from an installed app bundle."""

    def __init__(self, app: ClientApp, run_config: UserConfig, node_config: UserConfig) -> None:
        super().__init__()
        self._app = app
        self._run_config = run_config
        self._node_config = node_config

    def __call__(self, message: Message, context: Context) -> Message:
        engines = context.run_config
        context.run_config = dict(self._run_config)
        context.node_config = {**self._node_config, **context.node_config}
        reply = self._app(message, context)
        if context.run_config != self._run_config:
            raise ValueError("the ClientApp changed context.run_config; keep notes in context.state")
        context.run_config = engines  # the engine refuses a context whose run config is another
        return reply


def _backend(num_nodes: int, num_cpus_per_node: int) -> BackendConfig:
    """Size Ray so that it starts no actor that would stay idle, and at least one."""
    num_actors = min(num_nodes, max(1, (os.cpu_count() or 1) // num_cpus_per_node))
    return {
        "init_args": {"num_cpus": num_actors * num_cpus_per_node},
        "client_resources": {"num_cpus": num_cpus_per_node, "num_gpus": 0.0},
    }


def _simulate(server: ServerApp, client: ClientApp, context: Context, backend: BackendConfig, num_nodes: int) -> None:
    """Run Flower's engine, without its telemetry unless somebody asked for it."""
    run = new_run()
    set_identity(run.run_id)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # nodes see the GPUs, as in every runtime
    telemetry.FLWR_TELEMETRY_ENABLED = os.environ["FLWR_TELEMETRY_ENABLED"]  # flwr may have been imported too early
    _run_simulation(
        num_supernodes=num_nodes,
        exit_event=telemetry.EventType.PYTHON_API_RUN_SIMULATION_LEAVE,
        client_app=client,
        server_app=server,
        backend_config=backend,
        server_app_context=context,
        run=run,
    )
