"""The figure of `simulations.scale`: seconds and memory of one round against users, both axes logarithmic."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fedrec.report.plots import DOTS_PER_INCH, LIGHT, MARKERS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Rounds = Sequence[Mapping[str, Any]]


def draw(by_model: Mapping[str, Rounds]) -> bytes:
    """Return the figure as PNG bytes.

    Args:
        by_model: model -> what `simulations.one_round.measure` returned, by number of users.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 4.4), layout="constrained", facecolor=LIGHT.paper)
    seconds, memory = figure.subplots(1, 2)
    _seconds(seconds, by_model)
    _memory(memory, by_model)
    first = next(iter(by_model.values()))[0]
    figure.suptitle(
        f"One round: {first['num_items']:,} items, d = {first['dim']}, {first['num_threads']} threads, "
        "100 interactions a user",
        fontsize=11,
        color=LIGHT.ink,
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH, facecolor=LIGHT.paper, metadata={"Software": None})
    return buffer.getvalue()


def _seconds(axes: Axes, by_model: Mapping[str, Rounds]) -> None:
    for number, (model, rounds) in enumerate(by_model.items()):
        users, seconds = _column(rounds, "num_users"), _column(rounds, "seconds")
        colour = LIGHT.series[number % len(LIGHT.series)]
        label = model
        if len(users) > 1:
            slope, intercept = np.polyfit(np.log(users), np.log(seconds), 1)
            axes.plot(users, np.exp(intercept) * users**slope, color=colour, linewidth=1.2, alpha=0.6)
            label = f"{model}: users$^{{{slope:.2f}}}$"
        axes.plot(users, seconds, MARKERS[number % len(MARKERS)], color=colour, label=label)
    _style(axes, "seconds a round")


def _memory(axes: Axes, by_model: Mapping[str, Rounds]) -> None:
    for number, (model, rounds) in enumerate(by_model.items()):
        users = _column(rounds, "num_users")
        colour, marker = LIGHT.series[number % len(LIGHT.series)], MARKERS[number % len(MARKERS)]
        axes.plot(
            users, _column(rounds, "peak_rss_bytes") / 2**30, marker + "--", color=colour, label=f"{model}: peak RSS"
        )
        if all(found["peak_anonymous_bytes"] for found in rounds):
            anonymous = _column(rounds, "peak_anonymous_bytes") / 2**30
            axes.plot(users, anonymous, marker + "-", color=colour, label=f"{model}: beyond the data")
    rounds = next(iter(by_model.values()))
    users, data = _column(rounds, "num_users"), _column(rounds, "data_bytes") / 2**30
    axes.plot(users, data, ":", color=LIGHT.ink, label="data (mapped files)")
    _style(axes, "memory, GiB")


def _column(rounds: Rounds, name: str) -> np.ndarray:
    return np.array([found[name] for found in rounds], dtype=np.float64)


def _style(axes: Axes, label: str) -> None:
    axes.set(xscale="log", yscale="log", xlabel="users", ylabel=label)
    axes.grid(color=LIGHT.faint, linewidth=0.6, alpha=0.7)
    axes.set_axisbelow(True)
    axes.legend(frameon=False, fontsize=8.5, labelcolor=LIGHT.ink)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(LIGHT.faint)
