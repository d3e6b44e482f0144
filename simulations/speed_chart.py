"""The bar chart of `simulations.speed`: users a second on a log axis, one panel for each data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from simulations.speed_peers import PEERS

if TYPE_CHECKING:
    from simulations.speed import Measurement

_OURS, _THEIRS = "#1b7f5c", "#8a94a6"


def draw(measurements: Sequence[Measurement], path: Path) -> None:
    """Draw the figures of the smallest number of threads measured; bars are medians, whiskers slowest to fastest."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(dict.fromkeys(one.data for one in measurements))
    threads = min(one.threads for one in measurements)
    most = max(sum((one.data, one.threads) == (data, threads) for one in measurements) for data in names)
    figure, axes = pyplot.subplots(
        1, len(names), figsize=(4.2 + 4.8 * len(names), 1.4 + 0.36 * most), squeeze=False, layout="constrained"
    )
    for axis, data in zip(axes[0], names, strict=True):
        rows = [one for one in measurements if (one.data, one.threads) == (data, threads)]
        _panel(axis, sorted(rows, key=lambda one: (not PEERS[one.system].closed_form, one.users_per_second)))
        axis.set_title(f"{data}, {threads} thread{'s' if threads > 1 else ''}", loc="left")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _panel(axis, rows: Sequence[Measurement]) -> None:  # type: ignore[no-untyped-def]  # matplotlib has no types here
    speeds = [one.users_per_second for one in rows]
    whiskers = [
        [speed - one.spread[0] for speed, one in zip(speeds, rows, strict=True)],
        [one.spread[1] - speed for speed, one in zip(speeds, rows, strict=True)],
    ]
    colours = [_OURS if PEERS[one.system].is_ours else _THEIRS for one in rows]
    axis.barh([PEERS[one.system].label for one in rows], speeds, xerr=whiskers, color=colours, ecolor="#333333")
    axis.set_xscale("log")
    axis.set_xlim(min(speeds) / 2, max(one.spread[1] for one in rows) * 4)
    for place, (speed, one) in enumerate(zip(speeds, rows, strict=True)):
        axis.annotate(
            f"{speed:,.0f}", (one.spread[1], place), xytext=(6, 0), textcoords="offset points", va="center", fontsize=9
        )
    axis.set_xlabel("users per second (log scale)")
    axis.spines[["top", "right"]].set_visible(False)
