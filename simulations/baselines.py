"""Baselines and federated ALS on one data set, under one protocol, in one table.

    python -m simulations.baselines ml-100k [--seeds 3] [--out DIR]

ALS takes the settings of simulations/DATA-als.toml; "centralised" is the same code with one node. EASE, the
factorisation machine, the regression on features and the towers stand beside it where there is a
simulations/DATA-NAME.toml: ease, fm, logistic, decayed, gru, lstm, mlp (decayed history, scores by an MLP), gsasrec.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from fedrec import config as configs
from fedrec.report.comparison import compare
from fedrec.report.tables import metric_table
from fedrec.run_folder import RunFolder
from fedrec.simulation import run_simulation

_HERE = Path(__file__).parent
_DRAWN = ("fm", "logistic", "decayed", "gru", "lstm", "mlp", "gsasrec")


def tables(data: str) -> dict[str, dict[str, Any]]:
    """Return label -> config table of every run."""
    als = configs.load(_HERE / f"{data}-als.toml").model_dump(mode="json", exclude_none=True)
    runs = {"ALS, federated": als, "ALS, centralised": {**als, "federated": {**als["federated"], "num_nodes": 1}}}
    for name in ("popularity", "item_knn", "content"):
        runs[name] = {**als, "model": {"name": name}, "federated": {**als["federated"], "num_rounds": 1}}
    for name in ("ease", "slit", *_DRAWN):
        if (file := _HERE / f"{data}-{name}.toml").exists():
            runs[name] = configs.load(file).model_dump(mode="json", exclude_none=True)
    return runs


def main() -> None:
    """Run them all and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="a data set that has a simulations/DATA-als.toml")
    parser.add_argument("--seeds", type=int, default=1, help="seeds of the runs that draw anything")
    parser.add_argument("--out", type=Path, default=None, help="folder for the runs and the comparison page")
    options = parser.parse_args()
    out = options.out or Path(tempfile.mkdtemp(prefix="baselines-"))
    results, folders, labels = {}, [], []
    for label, table in tables(options.data).items():
        for seed in range(options.seeds if label.startswith("ALS") or label in _DRAWN else 1):
            config = configs.build({**table, "runtime": {**table["runtime"], "seed": seed}}, label)
            folder = RunFolder(out / f"{label.replace(', ', '-')}-{seed}")
            folder.create(config)
            run_simulation(folder.path, config)
            results[f"{label}, seed {seed}"] = folder.result()
            folders.append(folder.path)
            labels.append(label)
    print(metric_table(results))
    print(f"page: {compare(folders, out / 'comparison', labels)}")


if __name__ == "__main__":
    main()
