"""Slices in a report: a table for each, and one line for each gap between groups of users."""

from __future__ import annotations

from collections.abc import Sequence

from fedrec.report.formats import METRIC_NAMES, MISSING, count_text, metric_name, metric_text, number_text, plural
from fedrec.report.run import Gap, Gaps, Group, Slice
from fedrec.report.tables import Table, group_metrics

MIN_USERS = 10
"""Metrics of smaller groups are not shown by default: they are uncertain, and near to what single users did."""

MOST_GROUPS = 40
"""Groups of a slice that a table shows; of more, those with most users."""

_HEADINGS = {
    "history_length": ("Interactions known when ranking", "history length"),
    "category": ("Category", "category of the target"),
    "context": ("{name}", "{name} of the target's context"),
    "user": ("{name}", "{name} of the user (no model sees it)"),
}


def shown_groups(groups: Sequence[Group], count: str, min_users: int) -> tuple[Group, ...]:
    """Leave out groups of which `count` says that they are of fewer than `min_users`."""
    return tuple(group for group in groups if group.values.get(count, min_users) >= min_users)


def slice_table(one: Slice, min_users: int) -> Table:
    """Return the table of a slice: users and metrics by group, no metrics of groups of fewer than `min_users`."""
    groups = one.groups
    if len(groups) > MOST_GROUPS:
        least = sorted((group.values.get("num_users", 0.0) for group in groups), reverse=True)[MOST_GROUPS - 1]
        groups = tuple(group for group in groups if group.values.get("num_users", 0.0) >= least)[:MOST_GROUPS]
    order = list(METRIC_NAMES)
    keys = {key for group in groups for key in group.values if "@" in key and key.partition("@")[0] in METRIC_NAMES}
    metrics = sorted(keys, key=lambda key: (order.index(key.partition("@")[0]), key))
    heading, words = (text.replace("{name}", one.name) for text in _HEADINGS[one.kind])
    return Table(
        f"Test metrics by {words}",
        (heading, "Users", *map(metric_name, metrics)),
        tuple(
            (
                group.name,
                count_text(group.values.get("num_users")),
                *group_metrics(group, "num_users", metrics, min_users),
            )
            for group in groups
        ),
        note="" if len(groups) == len(one.groups) else f"The {len(groups)} largest of {len(one.groups):,} groups.",
    )


def gap_text(one: Gaps) -> str:
    """Return in one line how far apart the groups of a slice are served."""
    what = f"Gap by {one.name.replace('_', ' ')}"
    large = "" if one.min_users is None else f" of at least {plural(int(one.min_users), 'user')}"
    if not one.gaps:
        return f"{what}: there are not two groups{large}."
    compared = "" if one.num_groups is None else f" ({plural(int(one.num_groups), 'group')}{large})"
    return f"{what}{compared}: {'; '.join(map(_one_gap, one.gaps))}."


def _one_gap(gap: Gap) -> str:
    parts = []
    if gap.lowest and gap.highest:
        parts.append(f"{gap.lowest} lowest, {gap.highest} highest")
    if (ratio := number_text(gap.ratio, 2)) != MISSING:
        parts.append(f"ratio {ratio}")
    if gap.by_chance is not None:
        parts.append(f"{metric_text(gap.metric, gap.by_chance)} to expect by chance")
    told = f" ({', '.join(parts)})" if parts else ""
    return f"{metric_name(gap.metric)} {metric_text(gap.metric, gap.gap)}{told}"
