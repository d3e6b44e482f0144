"""The figures of a report: each function draws one with matplotlib's object API and returns it unsaved."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fedrec.report.formats import count_text, epsilon_text, shortened
from fedrec.report.run import Group, Round

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 7.2
DOTS_PER_INCH = 160
LABEL_WIDTH = 28


@dataclass(frozen=True)
class Theme:
    """Colours of a figure; the series colours stay apart for colour-blind readers (Okabe & Ito, 2008)."""

    paper: str
    ink: str
    faint: str
    series: tuple[str, ...]


LIGHT = Theme("#ffffff", "#1f2328", "#c9ced6", ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#7a6a00", "#56b4e9"))
DARK = Theme("#15181d", "#e6e8eb", "#454b54", ("#56b4e9", "#e69f00", "#2fc39b", "#e79ac6", "#f0e442", "#8aa6ff"))
MARKERS = "osD^vP"
HATCHES = ("", "////", "....")
CURVES = (("ndcg@10", "NDCG@10"), ("hr@10", "HR@10"))


@dataclass(frozen=True)
class Bar:
    """One category of a bar chart: a value a series, with the lowest and highest of its repeats if there are any."""

    label: str
    values: tuple[float | None, ...]
    spans: tuple[tuple[float, float] | None, ...] = ()


@dataclass(frozen=True)
class BarLabels:
    """What the two axes of a bar chart say, and how a value is written beside its bar."""

    values: str
    categories: str
    write: Callable[[float], str]


@dataclass(frozen=True)
class Point:
    """One private run, or the mean of its repeats, on the privacy-utility plane."""

    series: str
    epsilon: float
    value: float
    span: tuple[float, float] | None = None


def png(draw: Callable[[Theme], Figure], theme: Theme) -> bytes:
    """Return the figure that `draw` makes as PNG bytes."""
    buffer = io.BytesIO()
    figure = draw(theme)
    figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH, facecolor=theme.paper, metadata={"Software": None})
    return buffer.getvalue()


def learning_curve(rounds: Sequence[Round], theme: Theme) -> Figure:
    """Draw validation NDCG@10 and HR@10 against the round, the last value written beside the end of each line."""
    from matplotlib.ticker import MaxNLocator

    figure, axes = _canvas(theme, 3.4, grid="y")
    ends = []
    for place, (key, name) in enumerate(CURVES):
        points = curve_points(rounds, key)
        if points:
            colour, many = theme.series[place], len(points) > 40
            axes.plot(*zip(*points, strict=True), color=colour, marker="" if many else MARKERS[place], markersize=4.5)
            ends.append((f"{name} {points[-1][1]:.4f}", points[-1][1], colour))
    axes.set_xlabel("Round")
    axes.set_ylabel("Validation score")
    axes.set_ylim(0, 1.08 * axes.get_ylim()[1])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    _write_at_right(axes, ends)
    return figure


def curve_points(rounds: Sequence[Round], key: str) -> list[tuple[int, float]]:
    """Return (round, value) wherever a validation metric was computed and is finite."""
    values = [(entry.number, entry.validation.get(key)) for entry in rounds]
    return [(number, value) for number, value in values if value is not None and math.isfinite(value)]


def bars(rows: Sequence[Bar], series: Sequence[str], labels: BarLabels, theme: Theme) -> Figure:
    """Draw horizontal bars, the first row on top, every value written at the end of its bar.

    Args:
        rows: the categories, each with a value for every series.
        series: names of the values of a row; a legend appears where there are several.
        labels: what the axes say and how values are written.
        theme: colours.
    """
    figure, axes = _canvas(theme, 0.95 + 0.2 * (len(series) > 1) + len(rows) * (0.16 + 0.22 * len(series)), grid="x")
    for place, name in enumerate(series):
        thickness = 0.82 / len(series)
        heights = [row + (place - (len(series) - 1) / 2) * thickness for row in range(len(rows))]
        known = [(height, row) for height, row in zip(heights, rows, strict=True) if _finite(row.values[place])]
        axes.barh(
            [height for height, _ in known],
            [row.values[place] or 0.0 for _, row in known],
            thickness * 0.9,
            label=name,
            color=theme.series[place],
            edgecolor=theme.paper,
            hatch=HATCHES[place],
            linewidth=0,
        )
        for height, row in known:
            _write_bar(axes, height, row, place, labels.write, theme)
    axes.set_yticks(range(len(rows)), [_plain(shortened(row.label, LABEL_WIDTH)) for row in rows])
    axes.set_ylim(len(rows) - 0.45, -0.55)
    axes.set_xlabel(labels.values)
    axes.set_ylabel(labels.categories)
    axes.set_xlim(0, 1.12 * max(axes.get_xlim()[1], 1e-9))
    axes.tick_params(axis="y", length=0)
    if len(series) > 1:
        _legend(figure, theme, len(series))
    return figure


def popularity_shares(groups: Sequence[Group], theme: Theme) -> Figure:
    """Draw each item group's share of the training interactions beside its share of the recommendations."""
    keys = ("interaction_share", "recommendation_share")
    rows = [Bar(group.name, tuple(_percent(group.values.get(key)) for key in keys)) for group in groups]
    labels = BarLabels("Share (%)", "Items, most popular first", "{:.1f}".format)
    return bars(rows, ("of interactions", "of recommendations"), labels, theme)


def recall_by_group(groups: Sequence[Group], count: str, noun: str, categories: str, theme: Theme) -> Figure:
    """Draw Recall@20 of each group; `count` is the key of its size, `noun` what is counted."""
    rows = [
        Bar(f"{group.name}  ({count_text(group.values.get(count))} {noun})", (group.values.get("recall@20"),))
        for group in groups
    ]
    return bars(rows, ("Recall@20",), BarLabels("Recall@20 (test)", categories, "{:.4f}".format), theme)


def privacy_utility(points: Sequence[Point], lines: Sequence[tuple[str, float]], metric: str, theme: Theme) -> Figure:
    """Draw a metric against epsilon (logarithmic), runs without privacy as horizontal lines named at the right."""
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

    figure, axes = _canvas(theme, 3.9, grid="y")
    names = list(dict.fromkeys(point.series for point in points))
    best = max(points, key=lambda point: point.value).series
    for place, name in enumerate(names):
        series = sorted((point for point in points if point.series == name), key=lambda point: point.epsilon)
        style = (theme.series[place % len(theme.series)], MARKERS[place % len(MARKERS)])
        _draw_series(axes, series, style, above=name == best)
    for place, (_, value) in enumerate(lines):
        axes.axhline(value, color=theme.ink, linewidth=1.2, linestyle=("--", ":", "-.")[place % 3])
    epsilons = sorted({point.epsilon for point in points})
    axes.set_xscale("log")
    axes.set_xlim(epsilons[0] / 1.5, epsilons[-1] * 1.5)
    ticks = _apart(epsilons)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(FixedFormatter([epsilon_text(epsilon) for epsilon in ticks]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylim(0, 1.1 * max([value for _, value in lines] + [point.value for point in points] + [1e-9]))
    axes.set_xlabel("Epsilon (logarithmic; smaller is more private)")
    axes.set_ylabel(f"{metric} (test)")
    _write_at_right(axes, [(f"{shortened(name, LABEL_WIDTH)} {value:.4f}", value, theme.ink) for name, value in lines])
    if len(names) > 1:
        _legend(figure, theme, len(names))
    return figure


def _apart(epsilons: Sequence[float]) -> list[float]:
    """Leave out what would be written over its larger neighbour, such as 7.998 beside 8."""
    kept: list[float] = []
    for epsilon in sorted(epsilons, reverse=True):
        if not kept or epsilon * 1.15 < kept[-1]:
            kept.append(epsilon)
    return kept[::-1]


def _draw_series(axes: Axes, series: Sequence[Point], style: tuple[str, str], above: bool) -> None:
    """Draw one model's points in (colour, marker); a line joins them only where each epsilon occurs once."""
    colour, marker = style
    epsilons = [point.epsilon for point in series]
    line = "-" if len(set(epsilons)) == len(epsilons) else "none"
    name = _plain(shortened(series[0].series, LABEL_WIDTH))
    values = [point.value for point in series]
    axes.plot(epsilons, values, color=colour, marker=marker, markersize=7, linestyle=line, label=name)
    for point in series:
        span = point.span or (point.value, point.value)
        if point.span:
            axes.plot((point.epsilon, point.epsilon), span, color=colour, marker="_", markersize=9)
        axes.annotate(
            f"{point.value:.4f}",
            (point.epsilon, span[1] if above else span[0]),
            xytext=(0, 7 if above else -7),
            textcoords="offset points",
            ha="center",
            va="bottom" if above else "top",
            fontsize=9,
            color=colour,
        )


def _write_bar(axes: Axes, height: float, row: Bar, place: int, write: Callable[[float], str], theme: Theme) -> None:
    value = row.values[place] or 0.0
    span = row.spans[place] if row.spans else None
    if span:
        axes.plot(span, (height, height), color=theme.ink, linewidth=1.2, marker="|", markersize=5)
    end = max(value, *span) if span else value
    axes.annotate(
        write(value), (end, height), xytext=(4, 0), textcoords="offset points", va="center", fontsize=9, color=theme.ink
    )


def _write_at_right(axes: Axes, labels: Sequence[tuple[str, float, str]]) -> None:
    """Write (text, height, colour) outside the right edge, moved up just enough not to overlap."""
    low, high = axes.get_ylim()
    taken = -math.inf
    for text, value, colour in sorted(labels, key=lambda label: label[1]):
        taken = max((value - low) / (high - low), taken + 0.075)
        axes.annotate(_plain(text), (1.015, taken), xycoords="axes fraction", va="center", fontsize=9.5, color=colour)


def _canvas(theme: Theme, height: float, grid: Literal["x", "y"]) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained", facecolor=theme.paper)
    axes = figure.subplots()
    axes.set_facecolor(theme.paper)
    axes.grid(axis=grid, color=theme.faint, linewidth=0.6, alpha=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(colors=theme.ink, labelsize=9.5)
    axes.xaxis.label.set_color(theme.ink)
    axes.yaxis.label.set_color(theme.ink)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(theme.faint)
    return figure, axes


def _legend(figure: Figure, theme: Theme, columns: int) -> None:
    figure.legend(loc="outside upper left", ncols=min(columns, 3), frameon=False, labelcolor=theme.ink, fontsize=9.5)


def _plain(text: str) -> str:
    """Return text that matplotlib shows as it is: a lone "$" would start a formula."""
    return text.replace("$", r"\$")


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share
