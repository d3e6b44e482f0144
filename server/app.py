"""The ServerApp: `server.app:app`, the same in every runtime."""

from __future__ import annotations

from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedrec import assemble
from fedrec.tuning.trials import Order
from server.strategy import run_rounds, run_trial

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run all rounds that are left, evaluate and write the result into the run folder; a trial of a sweep validates."""
    config = assemble.config_of_run(context.run_config)
    out = Path(str(context.run_config["out"])).absolute()
    if trial := context.run_config.get("trial"):
        run_trial(grid, config, out, Order.from_json(str(trial)))
    else:
        run_rounds(grid, config, out)
