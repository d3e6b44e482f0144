"""Ranking counts: what nodes send of an evaluation. Sums over users, so that nodes add up to the whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedrec.data.interactions import Interactions
from fedrec.errors import DataError
from fedrec.evaluation.ranking import Targets

ACTIVITY_EDGES = (10, 20, 50, 100, 200)
"""Users are grouped by training interactions: below 10, 10-19, 20-49, 50-99, 100-199, 200 and more."""

POPULARITY_SHARES = (0.01, 0.05, 0.20, 0.50, 1.0)
"""Items are grouped by training count: the top 1%, the next 4% ..., the less popular half."""

_PER_USER = ("num_users", "ndcg", "hr", "recall", "mrr")
_PER_GROUP = ("num_users", "ndcg", "ndcg squared", "hr")


@dataclass(frozen=True)
class Cutoffs:
    """List lengths of the metrics: NDCG, HR, MRR, coverage and novelty at `k`, recall at `recall_k`."""

    k: int = 10
    recall_k: int = 20


def zero_counts(num_items: int, num_groups: int = 0, rated: bool = False) -> dict[str, np.ndarray]:
    """Return the counts of nobody: the names, shapes (all float64) and meaning of what nodes send.

    users (groups, 5): num_users, and sums of ndcg, hr, recall, mrr, by activity group.
    items (5, num_items): training interactions, times recommended, times a target, targets hit at k and at recall_k.
    sampled (3,): draws of users, and sums of hr and ndcg among 99 negatives.
    slices (num_groups, 4): num_users, and sums of ndcg, of its square, and of hr, by group of `Slices`; not there
    without groups.
    ratings (3,): held-out ratings, and sums of squared and of absolute errors of scores as ratings; not there unless
    `rated`, which says that the model predicts ratings and the data has them.
    """
    counts = {
        "users": np.zeros((len(ACTIVITY_EDGES) + 1, len(_PER_USER))),
        "items": np.zeros((5, num_items)),
        "sampled": np.zeros(3),
    }
    counts |= {"ratings": np.zeros(3)} if rated else {}
    return counts | ({"slices": np.zeros((num_groups, len(_PER_GROUP)))} if num_groups else {})


def add_users(
    counts: dict[str, np.ndarray],
    ranks: Tensor,
    targets: Targets,
    shown: Tensor,
    activity: np.ndarray,
    cut: Cutoffs,
    shares: np.ndarray | None = None,
) -> None:
    """Add the ranks and lists of B users to the counts in place.

    NDCG@k = sum over targets of rank <= k of 1/log2(rank + 1), over the same sum for ideal ranks 1..min(T, k).
    HR@k = 1 if any target has rank <= k. Recall = share of targets within recall_k. MRR@k = 1/best rank if <= k.

    Args:
        counts: from `zero_counts`.
        ranks: (B, T) from `target_ranks`.
        targets: (B, T); every user has at least one.
        shown: (B, k) items on the list, -1 where it is shorter.
        activity: (B,) training interactions of each user.
        cut: list lengths.
        shares: (B,) what each row counts among its user's rows, 1 together; None where a user has one row. Items count
            once a row.
    """
    ranks = torch.where(targets.mask, ranks, torch.iinfo(torch.int64).max // 2).to(torch.float64)
    num_targets = targets.mask.sum(dim=1)
    hit = ranks <= cut.k
    found = ranks <= cut.recall_k
    gains = 1.0 / torch.log2(torch.arange(2, cut.k + 2, dtype=torch.float64))
    ideal = gains.cumsum(0)[num_targets.clamp(max=cut.k) - 1]
    best = ranks.min(dim=1).values
    per_user = torch.stack(
        [
            torch.ones(len(ranks), dtype=torch.float64),
            torch.where(hit, 1.0 / torch.log2(ranks + 1.0), 0.0).sum(dim=1) / ideal,
            hit.any(dim=1).to(torch.float64),
            found.sum(dim=1).to(torch.float64) / num_targets,
            torch.where(best <= cut.k, 1.0 / best, 0.0),
        ],
        dim=1,
    )
    if shares is not None:
        per_user *= torch.from_numpy(shares)[:, None]
    np.add.at(counts["users"], np.searchsorted(ACTIVITY_EDGES, activity, side="right"), per_user.numpy())
    flat = targets.items[targets.mask].numpy()
    items = counts["items"]
    width = items.shape[1]
    items[1] += np.bincount(shown[shown >= 0].numpy(), minlength=width)
    items[2] += np.bincount(flat, minlength=width)
    items[3] += np.bincount(flat, weights=hit[targets.mask].numpy(), minlength=width)
    items[4] += np.bincount(flat, weights=found[targets.mask].numpy(), minlength=width)


def add_errors(counts: dict[str, np.ndarray], scores: Tensor, held_out: Interactions, rows: np.ndarray) -> None:
    """Add the errors of B users' scores, as ratings, to the counts in place; every held-out row counts once.

    Args:
        counts: from `zero_counts` with `rated`.
        scores: (B, num_items).
        held_out: interactions with ratings.
        rows: (B,) the users' rows in `held_out`.
    """
    lengths = held_out.lengths[rows]
    users = np.repeat(np.arange(len(rows)), lengths)
    first = np.repeat(held_out.indptr[rows] - (np.cumsum(lengths) - lengths), lengths)
    index = first + np.arange(len(users))
    cells = torch.from_numpy(users).to(scores.device), torch.from_numpy(held_out.items[index]).to(scores.device)
    if held_out.ratings is None:
        raise DataError("errors of ratings are asked for, and the data has none; evaluate a model that only ranks")
    errors = scores[cells].cpu().numpy().astype(np.float64) - held_out.ratings[index]
    counts["ratings"] += np.array([len(errors), np.square(errors).sum(), np.abs(errors).sum()])


def add_sampled(counts: dict[str, np.ndarray], ranks: Tensor, cut: Cutoffs) -> None:
    """Add (B,) ranks among sampled negatives to the counts in place."""
    ranks = ranks.to(torch.float64)
    hit = ranks <= cut.k
    ndcg = torch.where(hit, 1.0 / torch.log2(ranks + 1.0), 0.0)
    counts["sampled"] += np.array([len(ranks), hit.sum().item(), ndcg.sum().item()])


def summarise(counts: Mapping[str, np.ndarray], cut: Cutoffs, num_candidates: int) -> dict[str, float]:
    """Turn summed counts into the metrics of `result.json`.

    coverage@k = distinct items recommended / items that may be. novelty@k = mean over recommended items of
    -log2((n_i + 1) / (N + M)), n_i training interactions of item i, N their sum, M items. popularity_lift = mean n_i of
    recommended items / mean n_i of training interactions. Where ratings are predicted, rmse and mae are the root of the
    mean squared, and the mean absolute, error over held-out ratings.
    """
    users = counts["users"].sum(axis=0)
    train, shown = counts["items"][0], counts["items"][1]
    num_users, num_shown = max(users[0], 1.0), max(shown.sum(), 1.0)
    information = -np.log2((train + 1.0) / (train.sum() + len(train)))
    typical = (train @ train) / max(train.sum(), 1.0)
    return {
        f"ndcg@{cut.k}": float(users[1] / num_users),
        f"hr@{cut.k}": float(users[2] / num_users),
        f"recall@{cut.recall_k}": float(users[3] / num_users),
        f"mrr@{cut.k}": float(users[4] / num_users),
        f"coverage@{cut.k}": float((shown > 0).sum() / num_candidates),
        f"novelty@{cut.k}": float(shown @ information / num_shown),
        "popularity_lift": float(shown @ train / num_shown / typical) if typical else 0.0,
        "num_users": round(users[0]),
    } | _errors(counts)


def _errors(counts: Mapping[str, np.ndarray]) -> dict[str, float]:
    num, squared, absolute = counts.get("ratings", np.zeros(3))
    return {"rmse": float(np.sqrt(squared / num)), "mae": float(absolute / num)} if num else {}


def summarise_sampled(counts: Mapping[str, np.ndarray], cut: Cutoffs) -> dict[str, float]:
    """Turn summed counts into the compatibility metrics among 99 sampled negatives."""
    draws, hits, ndcg = counts["sampled"]
    return {f"hr@{cut.k}": float(hits / max(draws, 1)), f"ndcg@{cut.k}": float(ndcg / max(draws, 1))}


def summarise_slices(counts: Mapping[str, np.ndarray], cut: Cutoffs) -> dict[str, list[dict[str, Any]]]:
    """Turn summed counts into metrics by user activity and by item popularity; empty groups are left out."""
    edges = (0, *ACTIVITY_EDGES)
    activity = []
    for low, high, row in zip(edges, (*ACTIVITY_EDGES, None), counts["users"], strict=True):
        if row[0]:
            name = f"{low}+" if high is None else f"{low}-{high - 1}"
            values = dict(
                zip((f"ndcg@{cut.k}", f"hr@{cut.k}", f"recall@{cut.recall_k}"), row[1:4] / row[0], strict=True)
            )
            activity.append({"group": name, "num_users": round(row[0]), **{k: float(v) for k, v in values.items()}})
    order = np.argsort(-counts["items"][0], kind="stable")
    train, shown, targets, hits, found = counts["items"][:, order]
    popularity, start = [], 0
    for share in POPULARITY_SHARES:
        stop = max(round(share * len(order)), start)
        part = slice(start, stop)
        if stop > start:
            popularity.append(
                {
                    "group": f"top {share:.0%}" if not start else f"{start / len(order):.0%}-{share:.0%}",
                    "num_items": stop - start,
                    "num_targets": int(targets[part].sum()),
                    "interaction_share": float(train[part].sum() / max(train.sum(), 1)),
                    "recommendation_share": float(shown[part].sum() / max(shown.sum(), 1)),
                    f"hr@{cut.k}": float(hits[part].sum() / max(targets[part].sum(), 1)),
                    f"recall@{cut.recall_k}": float(found[part].sum() / max(targets[part].sum(), 1)),
                }
            )
        start = stop
    return {"activity": activity, "item_popularity": popularity}
