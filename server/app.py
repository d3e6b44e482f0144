"""The ServerApp: `server.app:app`, the same in every runtime."""

from __future__ import annotations

from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedrec import assemble
from server.strategy import run_rounds

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run all rounds that are left, evaluate and write the result into the run folder."""
    config = assemble.config_of_run(context.run_config)
    run_rounds(grid, config, Path(str(context.run_config["out"])).absolute())
