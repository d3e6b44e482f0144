"""The table of an audit: what a run claims beside what attackers could show, from `audit.json` alone."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedrec.report.fields import as_list, as_number, as_table, as_text
from fedrec.report.formats import MISSING, count_text, epsilon_text, number_text, percent_text, plural
from fedrec.report.run import Privacy, parse_result
from fedrec.report.tables import terms

WIDTH = 100
ESTIMATE = "an estimate, not a bound"


@dataclass(frozen=True)
class Bound:
    """A lower bound on epsilon: `kind` of canary, its `block` ("" for all), and the guesses behind it."""

    kind: str
    block: str
    epsilon: float
    num_guesses: int
    num_correct: int
    highest: float

    @property
    def label(self) -> str:
        """Return which canaries these were."""
        if self.kind == "users":
            return "made-up users"
        return f"made-up contributions, {f'block {self.block}' if self.block else 'all blocks'}"


@dataclass(frozen=True)
class Estimate:
    """A one-shot estimate of epsilon with its interval."""

    knows_others: bool
    epsilon: float
    low: float
    high: float

    @property
    def label(self) -> str:
        """Return whose estimate this is."""
        return f"one-shot, {'knows everybody else' if self.knows_others else 'sees the releases only'}"


@dataclass(frozen=True)
class Area:
    """The AUC of an attack on membership: mean over runs, interval, and what the claim allows."""

    what: str
    view: str
    name: str
    strongest: bool
    mean: float
    low: float | None
    high: float | None
    true_positives: float
    limit: float | None


@dataclass(frozen=True)
class Items:
    """How well the items of single users were found."""

    source: str
    num_users: int
    precision: float
    recall: float
    chance: float
    direction: float | None


@dataclass(frozen=True)
class Audit:
    """The content of an `audit.json`.

    Args:
        title: data, model and size of what was audited.
        claim: None where the config claims no privacy.
        confidence: of the bounds together, and of intervals.
        num_runs: runs that membership inference attacked.
        refuted: whether a bound exceeds the claim.
        statement: what an audit does not cover.
    """

    title: str
    claim: Privacy | None
    confidence: float
    num_runs: int
    bounds: tuple[Bound, ...]
    estimates: tuple[Estimate, ...]
    areas: tuple[Area, ...]
    items: tuple[Items, ...]
    refuted: bool
    statement: str

    @property
    def best(self) -> Bound | None:
        """Return the highest lower bound."""
        return max(self.bounds, key=lambda bound: bound.epsilon, default=None)

    @property
    def claimed(self) -> float | None:
        """Return the claimed epsilon."""
        return None if self.claim is None else self.claim.epsilon


def parse_audit(raw: object, source: str) -> Audit:
    """Turn the content of an `audit.json` into an `Audit`.

    Raises:
        DataError: where a known field has the wrong type.
    """
    audit = as_table(raw, source)
    data, config = as_table(audit.get("data"), f"{source}: data"), as_table(audit.get("config"), f"{source}: config")
    model = as_table(config.get("model"), f"{source}: config.model")
    federated = as_table(config.get("federated"), f"{source}: config.federated")
    runtime = as_table(config.get("runtime"), f"{source}: config.runtime")
    settings = as_table(audit.get("settings"), f"{source}: settings")
    bounds = as_table(audit.get("lower_bounds"), f"{source}: lower_bounds")
    users, rounds = (_number(table, key, source) for table, key in ((data, "num_users"), (federated, "num_rounds")))
    return Audit(
        title=f"{as_text(data.get('name'))}, {as_text(model.get('name'))}: {plural(int(users), 'user')}, "
        f"{plural(int(rounds), 'round')}, seed {as_text(runtime.get('seed'))}",
        claim=parse_result({"privacy": audit.get("claim")}, f"{source}: claim").privacy,
        confidence=_number(settings, "confidence", source),
        num_runs=int(_number(settings, "num_runs", source)),
        bounds=tuple(_bound(entry, source) for entry in as_list(bounds.get("bounds"), f"{source}: bounds")),
        estimates=tuple(_estimate(entry, source) for entry in as_list(audit.get("one_shot"), f"{source}: one_shot")),
        areas=tuple(_area(entry, source) for entry in as_list(audit.get("membership"), f"{source}: membership")),
        items=tuple(_items(entry, source) for entry in as_list(audit.get("reconstruction"), f"{source}: items")),
        refuted=bounds.get("refuted") is True,
        statement=as_text(audit.get("statement")),
    )


def _number(table: Mapping[str, Any], key: str, where: str) -> float:
    return as_number(table.get(key), f"{where}: {key}") or 0.0


def _bound(raw: object, source: str) -> Bound:
    entry = as_table(raw, f"{source}: bounds")
    return Bound(
        kind=as_text(entry.get("kind")),
        block=as_text(entry.get("block")),
        epsilon=_number(entry, "epsilon", source),
        num_guesses=int(_number(entry, "num_guesses", source)),
        num_correct=int(_number(entry, "num_correct", source)),
        highest=_number(entry, "highest", source),
    )


def _estimate(raw: object, source: str) -> Estimate:
    entry = as_table(raw, f"{source}: one_shot")
    estimate = as_table(entry.get("estimate"), f"{source}: one_shot.estimate")
    epsilon, low, high = (_number(estimate, key, source) for key in ("epsilon", "low", "high"))
    return Estimate(entry.get("knows_others") is True, epsilon, low, high)


def _area(raw: object, source: str) -> Area:
    entry = as_table(raw, f"{source}: membership")
    area = as_table(entry.get("auc"), f"{source}: membership.auc")
    rate = as_table(entry.get("true_positive_rate"), f"{source}: membership.true_positive_rate")
    return Area(
        what=as_text(entry.get("what")),
        view=as_text(entry.get("view")),
        name=as_text(entry.get("name")),
        strongest=entry.get("strongest") is True,
        mean=_number(area, "mean", source),
        low=as_number(area.get("low"), f"{source}: low"),
        high=as_number(area.get("high"), f"{source}: high"),
        true_positives=_number(rate, "mean", source),
        limit=as_number(entry.get("limit"), f"{source}: limit"),
    )


def _items(raw: object, source: str) -> Items:
    entry = as_table(raw, f"{source}: reconstruction")
    shares = {}
    for key in ("precision", "recall"):
        interval = as_list(entry.get(key), f"{source}: {key}")
        shares[key] = as_number(interval[0] if interval else None, f"{source}: {key}") or 0.0
    return Items(
        source=as_text(entry.get("source")),
        num_users=int(_number(entry, "num_users", source)),
        chance=_number(entry, "chance", source),
        direction=as_number(entry.get("direction"), f"{source}: direction"),
        **shares,
    )


def audit_table(audit: Audit) -> str:
    """Return an audit as plain text of at most 100 columns; no newline at the end."""
    parts = [f"audit of {audit.title}", claim_text(audit)]
    if audit.bounds:
        parts += ["", *_epsilon_lines(audit), "", verdict(audit)]
    parts += ["", *_membership_lines(audit), *_item_lines(audit)]
    return "\n".join([*parts, *(["", *textwrap.wrap(audit.statement, WIDTH)] if audit.statement else [])])


def claim_text(audit: Audit) -> str:
    """Return what is claimed, with everything an epsilon must not be printed without."""
    if audit.claim is None:
        return "claim    none (no privacy)"
    stated = ", ".join(f"{name} {value}" for name, value in terms(audit.claim))
    return textwrap.fill(f"claim    epsilon {epsilon_text(audit.claimed)} ({stated})", WIDTH, subsequent_indent=" " * 9)


def verdict(audit: Audit) -> str:
    """Return what the lower bounds say about the claim, in a sentence or two."""
    best, confidence = audit.best, f"{100 * audit.confidence:g}%"
    if best is None or audit.claimed is None:
        return "There is no claim to test."
    if not audit.refuted:
        return textwrap.fill(
            f"The claim stands: what an attacker could show, at {confidence} confidence, is epsilon >= "
            f"{bound_text(best.epsilon)}, and {epsilon_text(audit.claimed)} is claimed. That proves no privacy: with "
            f"this many canaries even a perfect attack shows no more than {best.highest:.2f}, and only a mechanism "
            "that leaks several times what it claims is caught.",
            WIDTH,
        )
    return textwrap.fill(
        f"CLAIM REFUTED: at {confidence} confidence, an attacker could show epsilon >= {bound_text(best.epsilon)} "
        f"({best.label}), and {epsilon_text(audit.claimed)} is claimed. The mechanism is broken, or this is chance, "
        f"which has a probability of at most {1 - audit.confidence:.3g}: repeat it with another runtime.seed.",
        WIDTH,
    )


def bound_text(epsilon: float) -> str:
    """Return a lower bound to two decimals, rounded **down**: what is printed was shown.

    Example:
        >>> bound_text(2.409)
        '2.40'
    """
    return f"{math.floor(100 * epsilon) / 100:.2f}"


def _epsilon_lines(audit: Audit) -> list[str]:
    delta = "-" if audit.claim is None or audit.claim.delta is None else f"{audit.claim.delta:g}"
    rows = [("claimed", epsilon_text(audit.claimed), "", "the plan's upper bound")]
    rows += [
        (
            bound.label,
            f">= {bound_text(bound.epsilon)}",
            f"{count_text(bound.num_correct)} of {count_text(bound.num_guesses)} guesses right",
            f"lower bound (perfect: {bound.highest:.2f})",
        )
        for bound in audit.bounds
    ]
    rows += [(one.label, f"~ {one.epsilon:.2f}", f"{one.low:.2f}-{one.high:.2f}", ESTIMATE) for one in audit.estimates]
    heading = (f"epsilon at delta {delta}", "epsilon", "evidence", "what it is")
    return _lines(heading, rows, "<>><")


def _membership_lines(audit: Audit) -> list[str]:
    rows = [
        (
            f"{area.what}, {area.view}: {area.name}{' *' if area.strongest else ''}",
            f"{area.mean:.3f}",
            MISSING if area.low is None or area.high is None else f"{area.low:.3f}-{area.high:.3f}",
            percent_text(area.true_positives),
            number_text(area.limit, 3),
        )
        for area in audit.areas
    ]
    heading = ("membership inference by coin flip", "AUC", "interval", "TPR", "limit")
    notes = (
        f"AUC: mean of {plural(audit.num_runs, 'run')} with its {100 * audit.confidence:g}% interval; 0.5 is chance. "
        "TPR: members found at 1% false positives. Limit: the largest AUC that the claim allows; it says nothing of "
        "node sums, which the server is trusted with. *: the strongest attack here on that view, fixed beforehand."
    )
    return [*_lines(heading, rows, "<>>>>"), *textwrap.wrap(notes, WIDTH)]


def _item_lines(audit: Audit) -> list[str]:
    if not audit.items:
        return []
    names = {
        "clear update": "from what a node of one user sends",
        "release": "from the releases, told everything but the items",
    }
    rows = [
        (names.get(one.source, one.source), *(f"{value:.3f}" for value in (one.precision, one.recall, one.chance)))
        for one in audit.items
    ]
    heading = (f"one user's items ({plural(audit.items[0].num_users, 'user')})", "precision", "recall", "chance")
    lines = ["", *_lines(heading, rows, "<>>>")]
    for one in audit.items:
        if one.direction is not None:
            lines.append(f"The update also points along the user's private vector: |cosine| {one.direction:.4f}.")
    return lines


def _lines(heading: Sequence[str], rows: Sequence[Sequence[str]], sides: str) -> list[str]:
    """Return the lines of a table with a rule below its heading; "<" sets a column to the left, ">" to the right."""
    widths = [max(len(row[place]) for row in (heading, *rows)) for place in range(len(heading))]
    lines = [
        "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, widths, strict=True)).rstrip()
        for row in (heading, *rows)
    ]
    return [lines[0], "-" * max(map(len, lines)), *lines[1:]]
