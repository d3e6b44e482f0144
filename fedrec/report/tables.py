"""The tables of a report, as data, and the metric table of a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedrec.report.formats import (
    METRIC_NAMES,
    MISSING,
    bytes_text,
    count_text,
    epsilon_text,
    exact_text,
    metric_name,
    metric_text,
    number_text,
    percent_text,
    seconds_text,
    shortened,
)
from fedrec.report.run import Group, Privacy, Result, Round, parse_result

SPLITS = {
    "validation": "Validation",
    "test": "Test",
    "test_sampled_99": "Test, 99 sampled negatives (compatibility)",
}
"""Split of `result.json` -> column heading."""

TERMINAL_WIDTH = 100
SHOWN_ROUNDS = 60
TERMINAL_METRICS = ("ndcg@10", "hr@10", "recall@20", "mrr@10", "coverage@10")
TERMINAL_NAMES = {"coverage@10": "coverage@10", "rmse": "RMSE", "mae": "MAE"}
RATING_METRICS = ("rmse", "mae")


@dataclass(frozen=True)
class Table:
    """A table ready to print; the first cell of a row is its heading.

    Args:
        caption: what it shows.
        columns: headings, the first one over the row headings.
        rows: as many texts as columns.
        numeric: whether the cells are numbers (set to the right).
        note: what a reader must know to read it, "" for nothing.
    """

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: bool = True
    note: str = ""


def metrics_table(result: Result) -> Table:
    """Return all metrics, a column a split."""
    splits = [split for split in SPLITS if result.metrics.get(split)]
    order = list(METRIC_NAMES)
    keys = {key for split in splits for key in result.metrics[split] if key.partition("@")[0] in METRIC_NAMES}
    rows = [
        (metric_name(key), *(metric_text(key, result.metrics[split].get(key)) for split in splits))
        for key in sorted(keys, key=lambda key: (order.index(key.partition("@")[0]), key))
    ]
    note = "Full ranking unless a column says otherwise. Novelty is in bits; popularity lift is a ratio."
    if "test_sampled_99" in splits:
        note += " The column of 99 sampled negatives is for comparison with published tables only."
    return Table("Ranking metrics", ("Metric", *(SPLITS[split] for split in splits)), tuple(rows), note=note)


def rounds_table(rounds: Sequence[Round]) -> Table:
    """Return what was logged round by round; of many rounds only some, the first and the last among them."""
    step = max(1, -(-len(rounds) // SHOWN_ROUNDS))
    shown = [entry for position, entry in enumerate(rounds) if position % step == 0 or position == len(rounds) - 1]
    cells = {
        "Seconds": [seconds_text(entry.seconds) for entry in shown],
        "NDCG@10": [metric_text("ndcg@10", entry.validation.get("ndcg@10")) for entry in shown],
        "HR@10": [metric_text("hr@10", entry.validation.get("hr@10")) for entry in shown],
        "RMSE": [metric_text("rmse", entry.validation.get("rmse")) for entry in shown],
        "Users drawn": [count_text(entry.diagnostics.get("cohort_size")) for entry in shown],
        "Clipped": [percent_text(entry.diagnostics.get("clipped_fraction")) for entry in shown],
        "Update norm": [number_text(entry.diagnostics.get("update_norm"), 4) for entry in shown],
        "Epsilon spent": [epsilon_text(entry.epsilon_spent) for entry in shown],
    }
    kept = {name: column for name, column in cells.items() if any(cell != MISSING for cell in column)}
    rows = tuple((str(entry.number), *(kept[name][row] for name in kept)) for row, entry in enumerate(shown))
    note = "" if step == 1 else f"One in {step} of {len(rounds):,} rounds, and the last."
    return Table("Rounds (metrics on the validation split)", ("Round", *kept), rows, note=note)


def activity_table(groups: Sequence[Group], min_users: int = 0) -> Table:
    """Return metrics by number of training interactions of the user; none of groups of fewer than `min_users`."""
    rows = tuple(
        (
            group.name,
            count_text(group.values.get("num_users")),
            *group_metrics(group, "num_users", ("ndcg@10", "hr@10", "recall@20"), min_users),
        )
        for group in groups
    )
    columns = ("Training interactions", "Users", "NDCG@10", "HR@10", "Recall@20")
    return Table("Test metrics by activity of the user", columns, rows)


def group_metrics(group: Group, count: str, keys: Sequence[str], min_users: int) -> tuple[str, ...]:
    """Return metrics of a group, "-" where `count` says that they are of fewer than `min_users`."""
    small = group.values.get(count, min_users) < min_users
    return tuple(MISSING if small else metric_text(key, group.values.get(key)) for key in keys)


def item_popularity_table(groups: Sequence[Group], min_users: int = 0) -> Table:
    """Return metrics and shares by popularity of the item, most popular first; no metrics of few targets."""
    rows = tuple(
        (
            group.name,
            count_text(group.values.get("num_items")),
            count_text(group.values.get("num_targets")),
            percent_text(group.values.get("interaction_share")),
            percent_text(group.values.get("recommendation_share")),
            *group_metrics(group, "num_targets", ("hr@10", "recall@20"), min_users),
        )
        for group in groups
    )
    shares = ("Share of interactions", "Share of recommendations")
    columns = ("Items", "Number", "Test targets", *shares, "HR@10", "Recall@20")
    return Table("Test metrics by popularity of the item", columns, rows)


def terms(privacy: Privacy) -> tuple[tuple[str, str], ...]:
    """Return what an epsilon must never stand without: name and value of each term."""
    unknown = "not stated"
    return (
        ("delta", unknown if privacy.delta is None else exact_text(privacy.delta)),
        ("unit", privacy.unit or unknown),
        ("neighbouring relation", privacy.neighboring_relation or unknown),
        ("trust model", privacy.trust_model or unknown),
        ("accountant", privacy.accountant or unknown),
    )


def guarantee_table(privacy: Privacy) -> Table:
    """Return epsilon with all its terms."""
    rows = [("epsilon", epsilon_text(privacy.epsilon)), *terms(privacy)]
    if privacy.max_grad_norm is None:
        rows += [("clipping norm", exact_text(privacy.clipping_norm))]
    else:
        rows += [("max grad norm (of an example)", exact_text(privacy.max_grad_norm))]
    rows += [("population size (declared)", count_text(privacy.population_size))]
    return Table("The guarantee", ("Term", "Value"), tuple(rows), numeric=False)


def events_table(privacy: Privacy) -> Table:
    """Return the noisy releases that epsilon follows from."""
    rows = tuple(
        (
            event.purpose or MISSING,
            exact_text(event.noise_multiplier),
            exact_text(event.sampling_probability),
            count_text(event.count),
        )
        for event in privacy.events
    )
    columns = ("Purpose", "Noise multiplier", "Sampling probability", "Count")
    return Table("Noisy releases", columns, rows, note="Epsilon follows from these releases and delta alone.")


def timing_table(timing: Mapping[str, float]) -> Table | None:
    """Return how long it took, None where nothing is known."""
    peak = timing.get("peak_rss_mb")
    rows = [
        ("Whole run", seconds_text(timing.get("total_seconds")), "s"),
        ("Training", seconds_text(timing.get("training_seconds")), "s"),
        ("Round (median)", seconds_text(timing.get("seconds_per_round")), "s"),
        ("Throughput", count_text(timing.get("users_per_second")), "users/s"),
        ("Peak memory", count_text(peak), "MB"),
    ]
    return _known(Table("Time and memory", ("What", "Value", "Unit"), tuple(rows)))


def communication_table(communication: Mapping[str, float]) -> Table | None:
    """Return how much a node sends and receives, None where nothing is known."""
    down, up, rounds = (communication.get(key) for key in ("download_bytes", "upload_bytes", "rounds"))
    total = None if down is None or up is None or rounds is None else (down + up) * rounds
    rows = (
        ("Download, per node and round", bytes_text(down)),
        ("Upload, per node and round", bytes_text(up)),
        ("Rounds", count_text(rounds)),
        ("Both ways, per node, all rounds (at most)", bytes_text(total)),
    )
    return _known(Table("Communication", ("What", "Value"), rows))


def environment_table(environment: Mapping[str, str]) -> Table | None:
    """Return versions, commit, seed and machine, None where nothing is known."""
    return _known(Table("Environment", ("What", "Value"), tuple(environment.items()), numeric=False))


def _known(table: Table) -> Table | None:
    rows = tuple(row for row in table.rows if row[1] != MISSING)
    return Table(table.caption, table.columns, rows, table.numeric, table.note) if rows else None


def result_cells(result: Result | None, metrics: Sequence[str]) -> tuple[str, ...]:
    """Return what every comparison shows of a run: epsilon, these test metrics and seconds."""
    if result is None:
        return ("unfinished", *[MISSING] * (len(metrics) + 1))
    test = result.metrics.get("test", {})
    return (
        "none" if result.privacy is None else epsilon_text(result.privacy.epsilon),
        *(metric_text(key, test.get(key)) for key in metrics),
        seconds_text(result.timing.get("total_seconds")),
    )


def compared_metrics(results: Iterable[Result | None]) -> tuple[str, ...]:
    """Return the test metrics that comparisons of these runs show: errors of ratings only where a run has them."""
    there = {key for result in results if result is not None for key in result.metrics.get("test", {})}
    return (*TERMINAL_METRICS, *(key for key in RATING_METRICS if key in there))


def distinct_terms(privacies: Iterable[Privacy | None]) -> dict[str, list[str]]:
    """Return the terms as one text -> the epsilons that stand under them, in the order given."""
    found: dict[str, list[str]] = {}
    for privacy in privacies:
        if privacy is not None:
            text = ", ".join(f"{name} {value}" for name, value in terms(privacy))
            epsilons = found.setdefault(text, [])
            if epsilon_text(privacy.epsilon) not in epsilons:
                epsilons.append(epsilon_text(privacy.epsilon))
    return found


def metric_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the test metrics of several runs as plain text of at most 100 columns.

    Args:
        results: label -> content of a `result.json`.

    Returns:
        A line a run, then the terms that the epsilons stand under; no newline at the end.

    Raises:
        DataError: where a known field has the wrong type.
    """
    parsed = {label: parse_result(raw, f"result of {label}") for label, raw in results.items()}
    metrics = compared_metrics(parsed.values())
    columns = ("epsilon", *(TERMINAL_NAMES.get(key, metric_name(key)) for key in metrics), "seconds")
    cells = [columns, *(result_cells(result, metrics) for result in parsed.values())]
    widths = [max(len(row[column]) for row in cells) for column in range(len(columns))]
    room = max(3, TERMINAL_WIDTH - sum(width + 2 for width in widths))
    labels = [shortened(label, room) for label in ("run", *parsed)]
    first = max(len(label) for label in labels)
    lines = [
        label.ljust(first) + "".join(f"  {cell:>{width}}" for cell, width in zip(row, widths, strict=True))
        for label, row in zip(labels, cells, strict=True)
    ]
    lines.insert(1, "-" * len(lines[0]))
    promises = distinct_terms(result.privacy for result in parsed.values())
    notes = [f"epsilon {', '.join(epsilons)}: {text}" for text, epsilons in promises.items()]
    notes.append("Test split, full ranking; computed on private data, not covered by epsilon.")
    return "\n".join([*lines, *(line for note in notes for line in textwrap.wrap(note, TERMINAL_WIDTH))])
