"""Evaluation on a node: fit, rank and count a node's own users in batches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fedrec.data.batches import UserBatch, make_batch, user_batches
from fedrec.data.interactions import Interactions
from fedrec.data.splits import Split
from fedrec.evaluation.counts import Cutoffs, add_sampled, add_users, zero_counts
from fedrec.evaluation.ranking import Targets, draw_negatives, mask_scores, sampled_ranks, target_ranks, top_items
from fedrec.models.protocol import FederatedModel
from fedrec.randomness import Key

Phase = Literal["validation", "test"]
_SCORE_CELLS = 2**22
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
) -> dict[str, np.ndarray]:
    """Rank the held-out items of all users of a node and count.

    Args:
        model: the model.
        shared: its shared parameters.
        split: the node's users; their targets in `phase` are ranked against every candidate the user has not met.
        phase: "validation" (history: training part) or "test" (history: training and validation part).
        cut: list lengths.
        repeat: rank items met before, too.
        sampled: (key, (num_users,) uint64 user keys): also rank among 99 uniform negatives, 5 draws (compatibility).
        device: where to compute; the CPU where None.

    Returns:
        Counts as of `zero_counts`, sums over this node's users.
    """
    device = device or torch.device("cpu")
    shared = {name: tensor.to(device) for name, tensor in shared.items()}
    history, held_out = (split.train, split.validation) if phase == "validation" else (split.history, split.test)
    candidates = split.candidates if phase == "test" else None
    allowed = None if candidates is None else torch.from_numpy(candidates).to(device)
    counts = zero_counts(history.num_items)
    counts["items"][0] += np.bincount(split.train.items, minlength=history.num_items)
    rows = np.flatnonzero(held_out.lengths)
    for batch in user_batches(history, rows, max_users=users_per_batch(history.num_items)):
        masked = masked_scores(model, shared, batch.to(device), repeat, allowed).cpu()
        targets = Targets.of(held_out, batch.rows)
        shown, _ = top_items(masked, cut.k)
        activity = split.train.lengths[batch.rows]
        add_users(counts, target_ranks(masked, targets), targets, shown, activity, cut)
        if sampled is not None:
            key, keys = sampled
            met = _met(split, batch)
            if allowed is not None:
                met = met | ~allowed.cpu()
            for draw in range(SAMPLED_DRAWS):
                negatives = draw_negatives(met, keys[batch.rows], key.fold("sampled_99", draw))
                add_sampled(counts, sampled_ranks(masked, targets, negatives), cut)
    return counts


def masked_scores(
    model: FederatedModel, shared: Mapping[str, Tensor], batch: UserBatch, repeat: bool, allowed: Tensor | None
) -> Tensor:
    """Return (B, num_items) scores as at test time: what may not be ranked is -inf."""
    scores = model.score(shared, model.fit_users(shared, batch), batch)
    seen_mask = torch.zeros_like(batch.mask) if repeat else batch.mask
    return mask_scores(scores, batch.items, seen_mask, allowed)


def _met(split: Split, batch: UserBatch) -> Tensor:
    met = torch.zeros(batch.num_users, split.train.num_items, dtype=torch.bool)
    for part in (split.history, split.validation, split.test):
        met |= _item_mask(part, batch.rows)
    return met


def _item_mask(interactions: Interactions, rows: np.ndarray) -> Tensor:
    batch = make_batch(interactions, rows)
    mask = torch.zeros(len(rows), interactions.num_items + 1, dtype=torch.bool)
    mask.scatter_(1, torch.where(batch.mask, batch.items, interactions.num_items), True)
    return mask[:, :-1]


def users_per_batch(num_items: int) -> int:
    """Return how many users to score at once, so that the scores stay in the cache."""
    return int(np.clip(_SCORE_CELLS // max(num_items, 1), 16, 4096))
