"""What a model knows of one of its blocks from the others, so that only the rest need be sent."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from fedrec.models.als import Als
from fedrec.models.protocol import FederatedModel

Blocks = Mapping[str, Tensor]


def predicted_moments(blocks: Blocks) -> Tensor:
    """Return the part of an item's second moments that its sum and its count tell.

    With b_i = sum_u p_u and c_i users, sum_u p_u p_u' = b_i b_i' / c_i + the scatter around the mean p: what is left is
    positive semi-definite, and much alike for all items but for their counts.

    Args:
        blocks: items (M, d) and counts (M, 1); a count below 1, as rounding may leave it, counts as 1.

    Returns:
        (M, d (d + 1) / 2) float32 upper triangles of b_i b_i' / c_i, row by row.
    """
    sums, counts = blocks["items"].to(torch.float64), blocks["counts"].to(torch.float64)
    num_items, dim = sums.shape
    means = sums / counts.clamp(min=1)
    triangles = torch.empty(num_items, dim * (dim + 1) // 2)
    start = 0
    for row in range(dim):  # slices of rows are several times faster than gathering both factors
        triangles[:, start : start + dim - row] = means[:, row : row + 1] * sums[:, row:]
        start += dim - row
    return triangles


_PREDICTIONS: dict[type, Mapping[str, Callable[[Blocks], Tensor]]] = {Als: {"item_grams": predicted_moments}}


def predictions_of(model: FederatedModel) -> Mapping[str, Callable[[Blocks], Tensor]]:
    """Return block name -> prediction from the model's other blocks; empty for models that predict none."""
    return _PREDICTIONS.get(type(model), {})
