"""Slices: the same metrics by history length, context, category of the target, and attributes of the user.

A group holds, of each user, the targets that belong to it, and a user counts in every group that holds any of them. By
history length and by attributes of the user that is one group for all targets of a user; by context and category it is
where the target belongs. So every number is a mean over users, as the headline is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedrec.data.catalogue import Catalogue
from fedrec.data.interactions import Interactions
from fedrec.data.reading.values import UNKNOWN_CATEGORY
from fedrec.evaluation.counts import Cutoffs
from fedrec.evaluation.ranking import Targets

HISTORY_EDGES = (5, 10, 20, 50, 100, 200)
"""Users are grouped by what their device knows when it ranks: below 5 interactions, 5-9, ..., 200 and more."""

MOST_VALUES = 20
"""Values of a context field that are told apart in a result; those met by fewer users are one group."""

MIN_GAP_USERS = 50
"""Groups with fewer users are left out of a gap: the extremes of many small groups differ by chance alone."""

OTHER_VALUES = "(other values)"
NO_CATEGORY = "(no category)"


@dataclass(frozen=True)
class Slice:
    """One way to tell users or targets apart.

    Args:
        kind: "history_length", "context", "category" or "user".
        name: the field; "" where a kind has only one.
        groups: names of the groups, in the order of tables.
    """

    kind: str
    name: str
    groups: Sequence[str]


@dataclass(frozen=True, eq=False)
class Slices:
    """All slices of a data set; which groups there are is public, and so the same on every node.

    Args:
        fields: in the order of the rows of a table of counts.
        categories: (num_items, num_categories + 1) bool, the last column where an item has none; (num_items, 0) where
            nothing is known of any.
    """

    fields: Sequence[Slice]
    categories: np.ndarray

    @classmethod
    def of(cls, interactions: Interactions, catalogue: Catalogue) -> Slices:
        """Name the slices of a data set: its vocabularies and catalogue are looked at, no interaction is."""
        edges = (0, *HISTORY_EDGES)
        lengths = [f"{low}-{high - 1}" for low, high in zip(edges, HISTORY_EDGES, strict=False)]
        fields = [Slice("history_length", "", [*lengths, f"{edges[-1]}+"])]
        for name, vocabulary in interactions.user_attribute_ids.items():
            fields.append(Slice("user", name, _texts(vocabulary.ids)))
        for name, vocabulary in interactions.context_ids.items():
            fields.append(Slice("context", name, _texts(vocabulary.ids)))
        categories = np.zeros((catalogue.num_items, 0), dtype=bool)
        if catalogue.categories is not None:
            known = catalogue.categories
            categories = np.concatenate([known, ~known.any(axis=1, keepdims=True)], axis=1)
            fields.append(Slice("category", "", [*catalogue.category_names, NO_CATEGORY]))
        return cls(fields, categories)

    @property
    def num_groups(self) -> int:
        """Return the number of groups of all slices."""
        return sum(len(field.groups) for field in self.fields)

    def add(
        self,
        table: np.ndarray,
        ranks: Tensor,
        targets: Targets,
        held_out: Interactions,
        rows: np.ndarray,
        lengths: np.ndarray,
        cut: Cutoffs,
        shares: np.ndarray | None = None,
    ) -> None:
        """Add the ranks of B users to a table of counts in place.

        Args:
            table: (num_groups, 4) of `zero_counts`; for NDCG and HR see `add_users`.
            ranks: (B, T) from `rank`.
            targets: (B, T), `Targets.of(held_out, rows)`. An item held out several times stands in its first context.
            held_out: the node's held-out interactions, with the attributes of its users.
            rows: (B,) rows of the users.
            lengths: (B,) interactions that a device knows when it ranks.
            cut: list lengths; `cut.k` counts.
            shares: (B,) what each row counts among its user's rows, 1 together; None where a user has one row.
        """
        mask = targets.mask.numpy()
        user, position = np.nonzero(mask)
        found = ranks.numpy()[mask]
        hit = found <= cut.k
        gain = np.where(hit, 1.0 / np.log2(found + 1.0), 0.0)
        source = held_out.indptr[rows][user] + position
        weights = np.ones(len(rows)) if shares is None else shares
        for field, part in self.parts(table):
            if field.kind == "category":
                target, group = np.nonzero(self.categories[held_out.items[source]])
                _add(part, user[target], group, gain[target], hit[target], weights, cut.k)
            else:
                _add(part, user, _groups(field, held_out, rows, lengths, user, source), gain, hit, weights, cut.k)

    def parts(self, table: np.ndarray) -> Iterator[tuple[Slice, np.ndarray]]:
        """Go through the slices and the rows of a table that belong to each."""
        start = 0
        for field in self.fields:
            yield field, table[start : start + len(field.groups)]
            start += len(field.groups)


def _texts(ids: np.ndarray) -> list[str]:
    return [str(value) for value in ids.tolist()]


def _groups(
    field: Slice, held_out: Interactions, rows: np.ndarray, lengths: np.ndarray, user: np.ndarray, source: np.ndarray
) -> np.ndarray:
    """Return the (n,) group of each target; user: (n,) position in `rows`, source: (n,) row in `held_out`."""
    if field.kind == "context":
        return np.asarray(held_out.context[field.name][source])
    if field.kind == "user":
        return np.asarray(held_out.user_attributes[field.name][rows][user])
    return np.asarray(np.searchsorted(HISTORY_EDGES, lengths, side="right")[user])


def _add(
    part: np.ndarray,
    user: np.ndarray,
    group: np.ndarray,
    gain: np.ndarray,
    hit: np.ndarray,
    weights: np.ndarray,
    k: int,
) -> None:
    """Add (n,) pairs of target and group: metrics of each user within each group, as `add_users` has them overall."""
    num_groups = len(part)
    pairs, index, num_targets = np.unique(user * num_groups + group, return_inverse=True, return_counts=True)
    ideal = np.cumsum(1.0 / np.log2(np.arange(2, k + 2)))[np.minimum(num_targets, k) - 1]
    ndcg = np.bincount(index, gain, len(pairs)) / ideal
    hr = (np.bincount(index, hit, len(pairs)) > 0).astype(np.float64)
    weights = weights[pairs // num_groups]
    for column, values in enumerate((weights, weights * ndcg, weights * ndcg**2, weights * hr)):
        part[:, column] += np.bincount(pairs % num_groups, values, num_groups)


def summarise_groups(slices: Slices, table: np.ndarray, cut: Cutoffs) -> dict[str, Any]:
    """Turn summed counts into metrics by group; groups without a user are left out.

    Of a context field with more than `MOST_VALUES` values those that most users were tested in are told apart, besides
    "unknown"; the rest is one group, in which a user with targets in several of them counts as often.

    Returns:
        history_length, category: a list of groups {group, num_users, ndcg@k, hr@k}; category only where items have any.
        context, user: field -> such a list.
        gaps: "history_length" and "user.FIELD" -> see `gap_between`.
    """
    found: dict[str, Any] = {"context": {}, "user": {}, "gaps": {}}
    for field, part in slices.parts(table):
        names, rows = list(field.groups), part
        if field.kind == "context":
            names, rows = _most_met(names, part)
        listed = [
            {"group": name, "num_users": round(row[0]), **_metrics(row, cut)}
            for name, row in zip(names, rows, strict=True)
            if row[0]
        ]
        if field.name:
            found[field.kind][field.name] = listed
        else:
            found[field.kind] = listed
        if field.kind in ("user", "history_length"):
            name = f"{field.kind}.{field.name}" if field.name else field.kind
            found["gaps"][name] = gap_between(names, rows, cut)
    return found


def _metrics(row: np.ndarray, cut: Cutoffs) -> dict[str, float]:
    return {f"ndcg@{cut.k}": float(row[1] / row[0]), f"hr@{cut.k}": float(row[3] / row[0])}


def _most_met(names: list[str], part: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Put the values that few users met together; unknown stays apart, and comes after those that are known."""
    if (part[:, 0] > 0).sum() <= MOST_VALUES:
        return names, part
    unknown = np.array([name == UNKNOWN_CATEGORY for name in names])
    order = np.argsort(np.where(unknown, np.inf, -part[:, 0]), kind="stable")
    kept, rest = order[:MOST_VALUES], order[MOST_VALUES:]
    other, known = rest[unknown[rest]], rest[~unknown[rest]]
    rows = np.concatenate([part[kept], part[other], part[known].sum(axis=0, keepdims=True)])
    return [*(names[row] for row in [*kept, *other]), OTHER_VALUES], rows


def gap_between(names: Sequence[str], part: np.ndarray, cut: Cutoffs) -> dict[str, Any]:
    """Return how far apart groups of users are served.

    gap = highest - lowest mean, ratio = lowest / highest (None where the highest is 0), over the groups with at least
    `MIN_GAP_USERS` users whose value is known. gap_by_chance is the gap to expect if all groups were served alike: the
    mean of n_g users, who have variance s^2, is nearly normal with variance s^2 / n_g; see `expected_range`. Where
    users have several targets in turn, s^2 is that of targets, and gap_by_chance is an upper bound.

    Args:
        names: (groups,) names.
        part: (groups, 4) counts.
        cut: list lengths.

    Returns:
        min_users, num_groups, and for each metric gap, ratio, lowest, highest (names of groups) and gap_by_chance; no
        metric where fewer than two groups are large enough.
    """
    large = [row for row, name in enumerate(names) if part[row, 0] >= MIN_GAP_USERS and name != UNKNOWN_CATEGORY]
    found: dict[str, Any] = {"min_users": MIN_GAP_USERS, "num_groups": len(large)}
    if len(large) < 2:
        return found
    users = part[large, 0]
    # a hit is 0 or 1, so the sum of squares of hr is its sum
    for name, sums, squares in ((f"ndcg@{cut.k}", 1, 2), (f"hr@{cut.k}", 3, 3)):
        means = part[large, sums] / users
        mean = part[large, sums].sum() / users.sum()
        variance = max(part[large, squares].sum() / users.sum() - mean**2, 0.0)
        low, high = int(means.argmin()), int(means.argmax())
        found[name] = {
            "gap": float(means[high] - means[low]),
            "ratio": float(means[low] / means[high]) if means[high] > 0 else None,
            "lowest": names[large[low]],
            "highest": names[large[high]],
            "gap_by_chance": expected_range(np.sqrt(variance / users)),
        }
    return found


def expected_range(stds: np.ndarray) -> float:
    """Return the expected highest minus lowest of independent normal values of mean 0.

    That is the integral of 1 - prod F_g - prod (1 - F_g) over the line, F_g the distribution functions.

    Args:
        stds: (n,) standard deviations, 0 or more.

    Example:
        >>> round(expected_range(np.ones(2)), 4), round(2 / np.pi**0.5, 4)
        (1.1284, 1.1284)

    Source:
        Tippett, On the extreme individuals and the range of samples, 1925; here for unequal spreads.
    """
    largest = float(stds.max(initial=0.0))
    if not largest:
        return 0.0
    grid = np.linspace(-9, 9, 3601) * largest
    scaled = grid / np.maximum(stds, 1e-6 * largest)[:, None]
    below = torch.special.ndtr(torch.from_numpy(scaled)).numpy()
    return float(np.trapezoid(1 - below.prod(axis=0) - (1 - below).prod(axis=0), grid))
