"""The figure of audits: claimed epsilon against what attackers could show, and how well they told members apart."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedrec.report.audit import Audit, bound_text
from fedrec.report.formats import epsilon_text
from fedrec.report.plots import MARKERS, WIDTH, Theme
from fedrec.report.tables import distinct_terms

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


VIEWS = {"final model": "final model", "releases": "noisy releases", "node sums": "clear node sums"}
"""What is attacked -> how the figure calls it."""

VISIBLE_LIMIT = 0.995
"""A claim that allows more than this AUC allows everything, as far as can be seen."""


@dataclass(frozen=True)
class _Row:
    """One line of the upper panel."""

    label: str
    value: float
    span: tuple[float, float] | None
    claim: float


def audit_plot(audits: Mapping[str, Audit], theme: Theme) -> Figure:
    """Draw one audit, or several of the same kind with different claims.

    The upper panel has bars for lower bounds, dots with intervals for one-shot estimates, and the claim as a line; the
    lower one the AUC of the strongest attack on each thing attacked. A panel without anything to show is left out.

    Args:
        audits: label -> audit; a single label is not shown.
        theme: colours.
    """
    from matplotlib.figure import Figure

    rows = [row for label, audit in audits.items() for row in _rows(audit, label if len(audits) > 1 else "")]
    found = {(area.what, area.view) for audit in audits.values() for area in audit.areas}
    attacked = [(what, view) for what in ("users", "interactions") for view in VIEWS if (what, view) in found]
    spacing = 0.26 + 0.09 * len(audits)
    heights = [1.2 + 0.16 * len(_terms(audits)) + 0.3 * len(rows)] if rows else []
    heights += [1.1 + spacing * len(attacked)] if attacked else []
    figure = Figure(figsize=(WIDTH + 0.8, sum(heights) or 1.0), layout="constrained", facecolor=theme.paper)
    panels = figure.subplots(len(heights) or 1, 1, height_ratios=heights or [1.0], squeeze=False)[:, 0]
    for axes in panels:
        _style(axes, theme)
    if rows:
        _draw_epsilons(panels[0], rows, theme)
        panels[0].set_xlabel("\n".join(["Epsilon", *_terms(audits)]), fontsize=9)
    if attacked:
        _draw_areas(panels[-1], audits, attacked, theme)
    return figure


def _terms(audits: Mapping[str, Audit]) -> list[str]:
    """Return what the epsilons stand under, in lines that fit below the axis."""
    stated = distinct_terms(audit.claim for audit in audits.values())
    return [line for text in stated for line in textwrap.wrap(text, 76)]


def _rows(audit: Audit, label: str) -> list[_Row]:
    """Return the best bound of each kind of canary and the estimates."""
    if audit.claimed is None:
        return []
    best = {}
    for bound in sorted(audit.bounds, key=lambda bound: bound.epsilon):
        best[bound.kind] = bound
    names = {"contributions": "lower bound, made-up contributions", "users": "lower bound, made-up users"}
    shown = f"{label}: " if label else ""
    bounds = [_Row(shown + names[kind], best[kind].epsilon, None, audit.claimed) for kind in names if kind in best]
    return bounds + [
        _Row(f"{shown}estimate, {one.label}", one.epsilon, (one.low, one.high), audit.claimed)
        for one in audit.estimates
    ]


def _draw_epsilons(axes: Axes, rows: list[_Row], theme: Theme) -> None:
    for place, row in enumerate(rows):
        if row.span is None:
            axes.barh(place, row.value, 0.55, color=theme.series[0])
            _write(axes, f"\u2265 {bound_text(row.value)}", row.value, place, theme)
        else:
            _dot(axes, row.value, row.span, place, (theme.series[1], "D"))
            _write(axes, f"\u2248 {row.value:.2f}", row.span[1], place, theme)
    first = 0
    for place, row in enumerate(rows):
        if place + 1 == len(rows) or rows[place + 1].claim != row.claim:
            ends = (first - 0.45, place + 0.45)
            axes.plot((row.claim, row.claim), ends, color=theme.ink, linewidth=1.6, linestyle="--", zorder=1.5)
            text = f"claimed: {epsilon_text(row.claim)}"
            axes.annotate(text, (row.claim, first - 0.62), ha="center", va="center", fontsize=9, color=theme.ink)
            first = place + 1
    axes.set_yticks(range(len(rows)), [row.label for row in rows])
    axes.set_ylim(len(rows) - 0.45, -0.9)
    axes.set_xlim(0, 1.16 * max([row.claim for row in rows] + [row.span[1] if row.span else row.value for row in rows]))
    axes.set_title("What attackers could show (bars), and estimates (dots: no bounds)", **_title(theme))


def _draw_areas(axes: Axes, audits: Mapping[str, Audit], attacked: list[tuple[str, str]], theme: Theme) -> None:
    axes.axvline(0.5, color=theme.ink, linewidth=1.0, linestyle=":", ymax=1 - 0.45 / (len(attacked) + 0.3))
    axes.annotate("chance", (0.5, -0.72), ha="center", va="center", fontsize=9, color=theme.ink)
    for number, (label, audit) in enumerate(audits.items()):
        shift = (number - (len(audits) - 1) / 2) * 0.8 / len(audits)
        style = (theme.series[number % len(theme.series)], MARKERS[number % len(MARKERS)])
        for area in audit.areas:
            if not area.strongest:
                continue
            place = attacked.index((area.what, area.view)) + shift
            span = None if area.low is None or area.high is None else (area.low, area.high)
            _dot(axes, area.mean, span, place, style)
            _write(axes, f"{area.mean:.3f}", area.high or area.mean, place, theme)
            if area.limit is not None and area.limit < VISIBLE_LIMIT:
                ends = (place - 0.36 / len(audits), place + 0.36 / len(audits))
                axes.plot((area.limit, area.limit), ends, color=style[0], linewidth=1.6)
        if len(audits) > 1:
            axes.plot([], [], color=style[0], marker=style[1], linestyle="none", label=label)
    axes.set_yticks(range(len(attacked)), [f"{what}, {VIEWS[view]}" for what, view in attacked])
    axes.set_ylim(len(attacked) - 0.4, -0.95)
    axes.set_xlim(0.42, 1.08)
    limits = [area.limit for audit in audits.values() for area in audit.areas if area.limit is not None]
    note = "; upright strokes: the most that the claim allows" if min(limits, default=1.0) < VISIBLE_LIMIT else ""
    axes.set_xlabel(f"AUC, strongest attack{note}")
    axes.set_title("Membership inference by coin flip", **_title(theme))
    if len(audits) > 1:
        axes.legend(frameon=False, labelcolor=theme.ink, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _dot(axes: Axes, value: float, span: tuple[float, float] | None, place: float, style: tuple[str, str]) -> None:
    """Draw a value with its interval, in (colour, marker)."""
    if span is not None:
        axes.plot(span, (place, place), color=style[0], linewidth=1.6, marker="|", markersize=6)
    axes.plot([value], [place], color=style[0], marker=style[1], markersize=6, linestyle="none")


def _write(axes: Axes, text: str, end: float, place: float, theme: Theme) -> None:
    """Write a value at the right of its mark, on the colour of the paper: a line may pass behind it."""
    axes.annotate(
        text,
        (end, place),
        xytext=(6, 0),
        textcoords="offset points",
        va="center",
        fontsize=9,
        color=theme.ink,
        bbox={"facecolor": theme.paper, "edgecolor": "none", "pad": 1.0},
    )


def _title(theme: Theme) -> dict[str, Any]:
    return {"loc": "left", "fontsize": 10, "color": theme.ink}


def _style(axes: Axes, theme: Theme) -> None:
    axes.set_facecolor(theme.paper)
    axes.grid(axis="x", color=theme.faint, linewidth=0.6, alpha=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(colors=theme.ink, labelsize=9)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.label.set_color(theme.ink)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(theme.faint)
