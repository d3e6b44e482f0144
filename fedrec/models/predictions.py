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
        (M, d (d + 1) / 2) float64 upper triangles of b_i b_i' / c_i.
    """
    sums, counts = blocks["items"].to(torch.float64), blocks["counts"].to(torch.float64)
    upper = torch.triu_indices(sums.shape[1], sums.shape[1])
    return (sums / counts.clamp(min=1))[:, upper[0]] * sums[:, upper[1]]


_PREDICTIONS: dict[type, Mapping[str, Callable[[Blocks], Tensor]]] = {Als: {"item_grams": predicted_moments}}


def predictions_of(model: FederatedModel) -> Mapping[str, Callable[[Blocks], Tensor]]:
    """Return block name -> prediction from the model's other blocks; empty for models that predict none."""
    return _PREDICTIONS.get(type(model), {})
