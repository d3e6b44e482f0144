"""Reports of finished or running runs: tables, plots and one-file HTML pages, made from run folders alone."""

from __future__ import annotations

from fedrec.report.comparison import compare
from fedrec.report.page import write_report
from fedrec.report.run import Run, read_run
from fedrec.report.tables import metric_table

__all__ = ["Run", "compare", "metric_table", "read_run", "write_report"]
