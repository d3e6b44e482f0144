"""Reconstruction: one user's items from what the user alone would send, and from a private release.

    clear update    what a node of one user sends: of the item rows that are not zero, those that reach at least half as
                    far as the furthest one along their main direction, on the side where they are many and alike (rows
                    of negatives are on both sides and reach less far)
    release         the noisy sums of all rounds, less everybody else's contribution, which the attacker is told. It is
                    told where the user's rows point and how many items there are, too, and names the rows that reach
                    furthest in that direction: all that is left to find are the items

Whoever knows less does worse. Item rows are those of all blocks with a row for each item, side by side.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedrec.audit.measures import Interval, mean_interval
from fedrec.audit.subject import Round, Subject, generator_of, rounds
from fedrec.data.batches import user_batches
from fedrec.federated import cohort
from fedrec.models.protocol import UserState
from fedrec.randomness import Key


@dataclass(frozen=True)
class Reconstruction:
    """How well the items of single users were found.

    Args:
        source: "clear update" or "release".
        num_users: users attacked, one at a time.
        precision: share of the items named that are the user's.
        recall: share of the user's items that were named.
        chance: precision of naming items at random.
        direction: mean |cosine| between the main direction of the rows and the user's private vector; None where there
            is none, or it was told.
    """

    source: str
    num_users: int
    precision: Interval
    recall: Interval
    chance: float
    direction: float | None = None


@dataclass(frozen=True, eq=False)
class _Update:
    """What one user sends in a round: (num_items, width) rows, and what the user keeps."""

    rows: np.ndarray
    widths: list[int]
    vector: np.ndarray | None


def attack_items(subject: Subject, num_users: int, confidence: float, key: Key) -> list[Reconstruction]:
    """Run the config once and find the items of some of the users drawn in its last round.

    Returns:
        The results on clear updates and, under a plan, on the releases; nothing for a model without item rows.
    """
    seen: list[Round] = []
    for done in rounds(subject, key, keep_sums=subject.plan is not None):
        seen = [*seen, done] if subject.plan is not None else [done]
    last, lengths = seen[-1], subject.train.lengths
    if not _item_rows(last.release.blocks, subject.train.num_items)[1]:
        return []
    users = generator_of(key.fold("users")).permutation(last.drawn[lengths[last.drawn] > 0])[:num_users]
    if not len(users):
        return []
    items = [np.unique(subject.train.items[subject.train.users == user]) for user in users]
    chance = float(np.mean([len(own) / subject.train.num_items for own in items]))
    directions, named = [], []
    for user in users.tolist():
        update = _update(subject, last, user)
        main = _main_direction(update.rows)
        named.append(_reaching_far(update.rows @ main))
        directions.append(_cosine(main, update))
    known = [cosine for cosine in directions if cosine is not None]
    cosine = float(np.mean(known)) if known else None
    found = [Reconstruction("clear update", len(users), *_compare(named, items, confidence), chance, cosine)]
    if subject.plan is not None:
        named = [_named_in_releases(subject, seen, user, own) for user, own in zip(users.tolist(), items, strict=True)]
        found.append(Reconstruction("release", len(users), *_compare(named, items, confidence), chance))
    return found


def _named_in_releases(subject: Subject, seen: list[Round], user: int, own: np.ndarray) -> np.ndarray:
    """Return as many items as the user has, by what is left of the releases once everybody else is taken off."""
    reached = np.zeros(subject.train.num_items)
    for done in seen:
        if done.others is None or user not in done.drawn:
            continue
        sums = {name: block * done.release.divisor for name, block in done.release.blocks.items()}
        noise = {name: total - done.others.totals[name] for name, total in sums.items()}
        update = _update(subject, done, user)
        told = update.rows[own].mean(axis=0)
        left = update.rows + _item_rows(noise, subject.train.num_items)[0]
        reached += left @ told / subject.noise_multiplier(done.number) ** 2
    return np.argsort(-reached, kind="stable")[: len(own)]


def _update(subject: Subject, done: Round, user: int) -> _Update:
    """Return what a node of this user alone would send."""
    states: list[UserState] = []
    batches = user_batches(subject.train, np.array([user]), keys=subject.user_keys)
    total, _ = cohort.sum_contributions(
        subject.model,
        done.shared,
        batches,
        subject.clipping_norm,
        done.key,
        subject.device,
        keep=lambda _, state: states.append(state),
    )
    rows, widths = _item_rows(total.totals, subject.train.num_items)
    vectors = [state["vectors"] for state in states if "vectors" in state]
    return _Update(rows, widths, vectors[0][0].to(torch.float64).cpu().numpy() if vectors else None)


def _item_rows(blocks: Mapping[str, Tensor], num_items: int) -> tuple[np.ndarray, list[int]]:
    """Return (num_items, sum of widths) float64 of the blocks with a row for each item, and their widths."""
    tables = [block.to(torch.float64).cpu() for block in blocks.values() if block.shape[:1] == (num_items,)]
    tables = [table for table in tables if table.ndim == 2]
    rows = torch.cat(tables, dim=1).numpy() if tables else np.zeros((num_items, 0))
    return rows, [table.shape[1] for table in tables]


def _main_direction(rows: np.ndarray) -> np.ndarray:
    """Return the (width,) unit vector along which the rows reach furthest; its sign says nothing."""
    used = rows[rows.any(axis=1)]
    return np.asarray(np.linalg.svd(used, full_matrices=False)[2][0]) if len(used) else np.zeros(rows.shape[1])


def _reaching_far(reach: np.ndarray) -> np.ndarray:
    """Return the rows that reach half as far as the furthest, on the side where those are many and alike."""
    sides = [np.flatnonzero((side > 0) & (side >= side.max() / 2)) for side in (reach, -reach)]
    sides = [side for side in sides if len(side)]
    unlike = [np.std(reach[side]) / abs(np.mean(reach[side])) + len(side) ** -0.5 for side in sides]
    return sides[int(np.argmin(unlike))] if sides else np.zeros(0, dtype=np.int64)


def _cosine(main: np.ndarray, update: _Update) -> float | None:
    """Return |cosine| of the part of the main direction that has the private vector's width with that vector."""
    if update.vector is None or len(update.vector) not in update.widths:
        return None
    start = sum(update.widths[: update.widths.index(len(update.vector))])
    part = main[start : start + len(update.vector)]
    return float(abs(part @ update.vector) / max(np.linalg.norm(part) * np.linalg.norm(update.vector), 1e-300))


def _compare(named: list[np.ndarray], items: list[np.ndarray], confidence: float) -> tuple[Interval, Interval]:
    """Return precision and recall over users."""
    hits = [len(np.intersect1d(one, own)) for one, own in zip(named, items, strict=True)]
    precision = [hit / max(len(one), 1) for hit, one in zip(hits, named, strict=True)]
    recall = [hit / len(own) for hit, own in zip(hits, items, strict=True)]
    return mean_interval(precision, confidence), mean_interval(recall, confidence)
