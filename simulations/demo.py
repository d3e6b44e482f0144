"""The demo: federated ALS on the built-in data, without privacy and at epsilon 8, beside popularity.

Prints one table, writes the three run folders, a page and plots, and says where.
"""

from __future__ import annotations

import logging
import shutil
import sys
import time
from pathlib import Path

from fedrec import config as configs
from fedrec.report.comparison import compare
from fedrec.report.page import write_report
from fedrec.report.tables import metric_table
from fedrec.run_folder import RunFolder
from fedrec.simulation import run_simulation

_HERE = Path(__file__).parent
RUNS = {
    "popularity": ("synthetic-popularity.toml", ()),
    "als, no privacy": ("synthetic.toml", ()),
    "als, epsilon 8": ("synthetic-dp8.toml", ()),
}


def main(out: Path = Path("demo-results")) -> None:
    """Train the three models on the same users, 20,000 x 1,000, on one machine."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(message)s")
    logging.getLogger("server").setLevel(logging.INFO)
    start = time.perf_counter()
    results, folders = {}, []
    for label, (file, settings) in RUNS.items():
        print(f"-- {label}", file=sys.stderr)
        directory = out / label.replace(", ", "-").replace(" ", "-")
        shutil.rmtree(directory, ignore_errors=True)
        config = configs.load(_HERE / file, settings)
        folder = RunFolder(directory)
        folder.create(config)
        run_simulation(directory, config)
        results[label] = folder.result()
        write_report(directory)
        folders.append(directory)
    page = compare(folders, out, labels=list(RUNS))
    print(metric_table(results))
    for result in results.values():
        if result["privacy"]:
            print(result["privacy"]["statement"])
    plots = ", ".join(sorted(path.name for path in page.parent.glob("*.png")))
    print(f"\npage: {page}\nplots beside it: {plots}\neach run: {out}/*/report/report.html")
    print(f"{time.perf_counter() - start:.0f} s in all")


if __name__ == "__main__":
    main()
