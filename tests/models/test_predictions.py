"""What exact ALS knows of its second moments from sums and counts."""

from __future__ import annotations

import math

import torch

from fedrec.data.batches import user_batches
from fedrec.federated.cohort import sum_contributions
from fedrec.models.least_squares import from_triangle
from fedrec.models.predictions import predicted_moments, predictions_of
from fedrec.models.registry import build_model
from fedrec.randomness import Key
from tests.worlds import checkerboard

KEY = Key.from_seed(0)


def sums() -> dict[str, torch.Tensor]:
    split, catalogue = checkerboard()
    model = build_model({"name": "als", "dim": 4}, None)
    shared = model.init(catalogue, KEY).shared
    return sum_contributions(model, shared, user_batches(split.train), math.inf, KEY)[0].totals


def test_what_is_left_of_the_moments_is_a_scatter() -> None:
    totals = sums()
    left = from_triangle(totals["item_grams"].to(torch.float64) - predicted_moments(totals), 4)
    assert float(torch.linalg.eigvalsh(left).min()) > -1e-6 * float(totals["item_grams"].max())
    assert float(left.norm()) < float(totals["item_grams"].norm())


def test_moments_of_an_item_that_one_user_met_are_known_exactly() -> None:
    vector = torch.tensor([[1.0, -2.0, 3.0]], dtype=torch.float64)
    predicted = predicted_moments({"items": vector, "counts": torch.ones(1, 1, dtype=torch.float64)})
    assert predicted.tolist() == [[1.0, -2.0, 3.0, 4.0, -6.0, 9.0]]


def test_items_nobody_met_and_counts_rounded_to_nothing_predict_finite_numbers() -> None:
    blocks = {"items": torch.tensor([[0.0, 0.0], [1.0, 1.0]]), "counts": torch.tensor([[0.0], [-0.01]])}
    assert predicted_moments(blocks).tolist() == [[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]


def test_only_the_model_whose_moments_these_are_predicts_them() -> None:
    assert list(predictions_of(build_model({"name": "als"}, None))) == ["item_grams"]
    for table, clipping_norm in (({"name": "als"}, 1.0), ({"name": "popularity"}, None), ({"name": "mf"}, None)):
        assert not predictions_of(build_model(table, clipping_norm))
