"""Evaluation on a node: fit, rank and count a node's own users in batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fedrec.data.batches import UserBatch, user_batches
from fedrec.data.interactions import Interactions
from fedrec.data.queries import Queries, queries_of, turns
from fedrec.data.splits import Split
from fedrec.evaluation.counts import Cutoffs, add_errors, add_sampled, add_users, zero_counts
from fedrec.evaluation.negatives import Met, draw_negatives
from fedrec.evaluation.ranking import Targets, rank
from fedrec.evaluation.slices import Slices
from fedrec.models.protocol import FederatedModel, predicts_ratings
from fedrec.randomness import Key

Phase = Literal["validation", "test"]
_SCORE_CELLS = 2**22
_FITTED_USERS = 128
SAMPLED_DRAWS = 5


def evaluate_users(
    model: FederatedModel,
    shared: Mapping[str, Tensor],
    split: Split,
    phase: Phase,
    cut: Cutoffs,
    repeat: bool = False,
    sampled: tuple[Key, np.ndarray] | None = None,
    device: torch.device | None = None,
    state: Mapping[str, Tensor] | None = None,
    slices: Slices | None = None,
) -> dict[str, np.ndarray]:
    """Rank the held-out items of all users of a node and count.

    Where the data has context fields, the list is asked for in the context of the target. A user with several targets
    is then asked about each of them, history the same, and counts by their mean, where else one list is held against
    all of them; the negatives of `sampled` are for the first one.

    Args:
        model: the model.
        shared: its shared parameters.
        split: the node's users; their targets in `phase` are ranked against every candidate the user has not met.
        phase: "validation" (history: training part) or "test" (history: training and validation part).
        cut: list lengths.
        repeat: rank items met before, too.
        sampled: (key, (num_users,) uint64 user keys): also rank among 99 uniform negatives, 5 draws (compatibility).
        device: where to compute; the CPU where None.
        state: name -> (num_users, ...) private state that the node kept of its users, see `UserBatch`.
        slices: the groups to count by, too; None for none.

    Returns:
        Counts as of `zero_counts`, sums over this node's users.
    """
    device = device or torch.device("cpu")
    shared = model.prepare({name: tensor.to(device) for name, tensor in shared.items()})
    history, held_out = (split.train, split.validation) if phase == "validation" else (split.history, split.test)
    candidates = split.candidates if phase == "test" else None
    allowed = None if candidates is None else torch.from_numpy(candidates).to(device)
    rated = predicts_ratings(model) and held_out.ratings is not None
    counts = zero_counts(history.num_items, 0 if slices is None else slices.num_groups, rated)
    counts["items"][0] += np.bincount(split.train.items, minlength=history.num_items)
    for turn, aims in enumerate(turns(held_out)):
        rows, shares = np.flatnonzero(aims.lengths), aims.lengths / held_out.lengths.clip(min=1)
        for batch, scores in score_users(model, shared, history, rows, device, None, queries_of(aims), state):
            if rated:
                add_errors(counts, scores, aims, batch.rows)
            targets = Targets.of(aims, batch.rows)
            negatives = None if sampled is None or turn else _negatives(split, batch.rows, allowed, *sampled)
            seen = torch.zeros_like(batch.mask) if repeat else batch.mask
            found = rank(scores, batch.items, seen, targets, cut.k, allowed, negatives)
            activity = split.train.lengths[batch.rows]
            add_users(counts, found.ranks, targets, found.items, activity, cut, shares[batch.rows])
            if slices is not None:
                known, part = history.lengths[batch.rows], shares[batch.rows]
                slices.add(counts["slices"], found.ranks, targets, aims, batch.rows, known, cut, part)
            for ranks in found.sampled.unbind(1):
                add_sampled(counts, ranks, cut)
    return counts


def _negatives(split: Split, rows: np.ndarray, allowed: Tensor | None, key: Key, user_keys: np.ndarray) -> Tensor:
    """Return (B, SAMPLED_DRAWS, 99) negatives of some users, see `draw_negatives`."""
    met = Met.of((split.history, split.validation, split.test), rows, allowed)
    draws = (draw_negatives(met, user_keys[rows], key.fold("sampled_99", draw)) for draw in range(SAMPLED_DRAWS))
    return torch.stack(list(draws), dim=1)


def score_users(
    model: FederatedModel,
    shared: Mapping[str, Tensor],
    history: Interactions,
    rows: np.ndarray,
    device: torch.device,
    asked: np.ndarray | None = None,
    queries: Queries | None = None,
    state: Mapping[str, Tensor] | None = None,
) -> Iterator[tuple[UserBatch, Tensor]]:
    """Fit users and score all items for them, in blocks whose scores have a bounded size.

    A fit may cost as much as the scores of many users, whatever the number of users fitted (the Gram matrix of all
    items): where there are many items, more users are fitted at once than scored.

    Args:
        model: the model.
        shared: its shared parameters, on `device`.
        history: what the users' devices know.
        rows: (n,) rows of the users wanted.
        device: where to compute.
        asked: (num_users,) bool: leave out blocks without any of these users; the others stay the same to the bit.
        queries: field -> (num_users,) the context each list is wanted in; unknown where None.
        state: name -> (num_users, ...) private state that the node kept of its users, see `UserBatch`.

    Yields:
        The batch of B users and their (B, num_items) scores, B at most `users_per_batch`.
    """
    size = users_per_batch(history.num_items)
    for batch in user_batches(history, rows, max_users=max(size, _FITTED_USERS), state=state):
        if asked is not None and not asked[batch.rows].any():
            continue
        if queries:
            query = {name: torch.from_numpy(column[batch.rows]) for name, column in queries.items()}
            batch = replace(batch, query=query)
        batch = batch.to(device)
        fitted = model.fit_users(shared, batch)
        for start in range(0, batch.num_users, size):
            part = slice(start, start + size)
            if asked is not None and not asked[batch.rows[part]].any():
                continue
            some = batch if size >= batch.num_users else batch.of(part)
            yield some, model.score(shared, {name: tensor[part] for name, tensor in fitted.items()}, some)


def users_per_batch(num_items: int) -> int:
    """Return how many users to score at once: 16 MiB of scores, but at least 16 users."""
    return int(np.clip(_SCORE_CELLS // max(num_items, 1), 16, 4096))
