"""Ranks, lists and metrics: cases computed by hand, and the definitions of ranx."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch

from fedrec.evaluation.counts import Cutoffs, add_users, summarise, summarise_slices, zero_counts
from fedrec.evaluation.nodes import evaluate_users
from fedrec.evaluation.ranking import Targets, mask_scores, sampled_ranks, target_ranks, top_items
from fedrec.models.registry import build_model
from tests.training import train
from tests.worlds import checkerboard, make

NAN, INF = math.nan, math.inf


def targets(*rows: list[int]) -> Targets:
    width = max(map(len, rows))
    padded = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in rows])
    return Targets(padded, mask)


def metrics(scores: list[list[float]], *wanted: list[int], k: int = 2, recall_k: int = 3) -> dict[str, float]:
    masked = mask_scores(
        torch.tensor(scores), torch.zeros(len(scores), 0, dtype=torch.int64), torch.zeros(len(scores), 0).bool()
    )
    counts, cut = zero_counts(masked.shape[1]), Cutoffs(k, recall_k)
    aims = targets(*wanted)
    shown, _ = top_items(masked, k)
    add_users(counts, target_ranks(masked, aims), aims, shown, np.zeros(len(scores), dtype=int), cut)
    return summarise(counts, cut, masked.shape[1])


def test_rank_is_one_plus_the_items_at_least_as_good() -> None:
    found = metrics([[0.9, 0.5, 0.7, 0.1]], [2])
    assert found["ndcg@2"] == pytest.approx(1 / math.log2(3))
    assert found["hr@2"] == 1 and found["mrr@2"] == 0.5 and found["recall@3"] == 1


def test_ties_count_against_the_target() -> None:
    assert metrics([[0.5, 0.5, 0.5, 0.5]], [0])["hr@2"] == 0
    assert metrics([[0.9, 0.5, 0.5, 0.1]], [1])["hr@2"] == 0, "a tie puts the target on rank 3"


def test_nan_and_infinite_scores_rank_where_they_should() -> None:
    assert metrics([[NAN, 0.1, 0.0, NAN]], [0])["hr@2"] == 0
    assert metrics([[INF, 0.1, 0.0, 0.2]], [0])["mrr@2"] == 1
    assert metrics([[-INF, 0.1, 0.0, 0.2]], [0])["recall@3"] == 0
    assert metrics([[NAN, NAN, NAN, NAN]], [0])["recall@3"] == 0


def test_several_targets_share_the_ideal() -> None:
    found = metrics([[0.9, 0.8, 0.7, 0.6]], [0, 2])
    assert found["ndcg@2"] == pytest.approx(1 / (1 + 1 / math.log2(3)))
    assert found["recall@3"] == 1 and found["hr@2"] == 1
    assert metrics([[0.9, 0.8, 0.7, 0.6]], [0, 1, 3])["recall@3"] == pytest.approx(2 / 3)


def test_item_held_out_twice_is_one_target() -> None:
    held_out = make([(0, 3), (0, 1), (0, 3), (1, 2)], 2, 4)
    found = Targets.of(held_out, np.array([0, 1]))
    assert [items[mask].tolist() for items, mask in zip(found.items, found.mask, strict=True)] == [[3, 1], [2]]


def test_mean_is_over_users() -> None:
    found = metrics([[0.9, 0.1, 0.0], [0.9, 0.1, 0.0]], [0], [2])
    assert found["hr@2"] == 0.5 and found["num_users"] == 2


def test_seen_items_and_items_outside_the_candidates_are_not_ranked() -> None:
    scores, seen = torch.tensor([[0.9, 0.8, 0.7, 0.6]]), torch.tensor([[0, 3]])
    masked = mask_scores(scores, seen, torch.tensor([[True, False]]), torch.tensor([True, True, False, True]))
    assert torch.isneginf(masked).tolist() == [[True, False, True, False]]
    assert target_ranks(masked, targets([3])).tolist() == [[2]]
    assert target_ranks(masked, targets([0])).tolist() == [[5]], "a target that may not be ranked is last"
    items, _ = top_items(masked, 3)
    assert items.tolist() == [[1, 3, -1]]


def test_list_breaks_ties_by_item_row() -> None:
    items, scores = top_items(torch.tensor([[0.5, 0.9, 0.5, 0.9]]), 4)
    assert items.tolist() == [[1, 3, 0, 2]] and scores[0].tolist() == pytest.approx([0.9, 0.9, 0.5, 0.5])


def test_list_that_ends_within_a_tie_takes_the_first_items() -> None:
    scores = torch.full((3, 500), 0.5)
    scores[1, 400], scores[2, 7] = 0.9, NAN
    items, _ = top_items(mask_scores(scores, torch.zeros(3, 0, dtype=torch.int64), torch.zeros(3, 0).bool()), 3)
    assert items.tolist() == [[0, 1, 2], [400, 0, 1], [0, 1, 2]]


def test_constant_scorer_gets_almost_nothing() -> None:
    found = metrics([[0.0] * 50] * 20, *[[user] for user in range(20)], k=10, recall_k=20)
    assert found["hr@10"] < 0.001 and found["recall@20"] == 0


def test_coverage_novelty_and_popularity_lift_by_hand() -> None:
    counts = zero_counts(4)
    counts["items"][0] = [6, 3, 1, 0]
    counts["items"][1] = [2, 0, 2, 0]
    counts["users"][0] = [2, 0, 0, 0, 0]
    found = summarise(counts, Cutoffs(2, 3), 4)
    assert found["coverage@2"] == 0.5
    assert found["novelty@2"] == pytest.approx(-(math.log2(7 / 14) + math.log2(2 / 14)) / 2)
    assert found["popularity_lift"] == pytest.approx(((6 + 1) / 2) / ((36 + 9 + 1) / 10))


def test_slices_add_up_to_the_whole() -> None:
    split, catalogue = checkerboard(60, 40)
    model = build_model({"name": "popularity"}, None)
    shared = train(model, catalogue, split.train, 1).shared
    cut = Cutoffs()
    counts = evaluate_users(model, shared, split, "test", cut)
    whole, slices = summarise(counts, cut, 40), summarise_slices(counts, cut)
    assert sum(group["num_users"] for group in slices["activity"]) == whole["num_users"] == 60
    weighted = sum(group["num_users"] * group["hr@10"] for group in slices["activity"]) / 60
    assert weighted == pytest.approx(whole["hr@10"])
    assert sum(group["num_items"] for group in slices["item_popularity"]) == 40
    for share in ("interaction_share", "recommendation_share"):
        assert sum(group[share] for group in slices["item_popularity"]) == pytest.approx(1)
    hits = sum(group["num_targets"] * group["hr@10"] for group in slices["item_popularity"])
    assert hits == pytest.approx(60 * whole["hr@10"])


def test_rank_among_sampled_negatives_by_hand() -> None:
    masked = torch.tensor([[0.9, 0.8, 0.7, 0.7, 0.1]])
    assert sampled_ranks(masked, targets([2]), torch.tensor([[1, 3, 4]])).tolist() == [3], "a tie counts against it"
    assert sampled_ranks(masked, targets([2]), torch.tensor([[4, -1, -1]])).tolist() == [1]


def test_metrics_agree_with_ranx_on_scores_without_ties() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ranx import Qrels, Run
        from ranx import evaluate as ranx_evaluate

    rng = np.random.default_rng(0)
    scores = np.stack([rng.permutation(60) for _ in range(40)]).astype(np.float32)
    wanted = [rng.choice(60, size=int(rng.integers(1, 4)), replace=False).tolist() for _ in range(40)]
    ours = metrics(scores.tolist(), *wanted, k=10, recall_k=20)
    qrels = Qrels({str(u): {str(i): 1 for i in items} for u, items in enumerate(wanted)})
    run = Run({str(u): {str(i): float(s) for i, s in enumerate(row)} for u, row in enumerate(scores)})
    theirs = ranx_evaluate(qrels, run, ["ndcg@10", "hit_rate@10", "recall@20", "mrr@10"])
    assert [ours["ndcg@10"], ours["hr@10"], ours["recall@20"], ours["mrr@10"]] == pytest.approx(
        list(theirs.values()), abs=1e-9
    )
