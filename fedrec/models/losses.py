"""Losses of next-item prediction: over all items, or over sampled negatives."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.autograd.function import once_differentiable

from fedrec.errors import DataError

_CELLS = 2**21
"""Scores held at once by the softmax over all items: 8 MiB of float32 stay in cache."""


LossName = Literal["softmax", "sampled_softmax", "bce", "gbce", "bpr", "squared"]


class LossConfig(BaseModel):
    """Settings of a loss.

    Args:
        name: `softmax` (cross-entropy over all items), `sampled_softmax` (over the target and negatives, corrected for
            how they are drawn), `bce` (binary cross-entropy), `gbce` (calibrated for the number of negatives), `bpr`
            (pairwise), or `squared` (the score is a rating; RMSE and MAE are reported).
        num_negatives: drawn for each user, shared by the user's positions.
        calibration: t of `gbce`: 0 is `bce`, 1 estimates probabilities among all items.
        offset: of `squared`: where the mean of all ratings starts; the middle of their scale, which is public.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: LossName = "softmax"
    num_negatives: Annotated[int, Field(ge=1, le=65536)] = 256
    calibration: Annotated[float, Field(ge=0, le=1)] = 0.75
    offset: float = 0.0

    @property
    def num_drawn(self) -> int:
        """How many negatives are drawn for a user."""
        return 0 if self.name in ("softmax", "squared") else self.num_negatives


def sampled_loss(config: LossConfig, positive: Tensor, negative: Tensor, used: Tensor, num_unmet: Tensor) -> Tensor:
    """Return the (..., T) loss of each position against negatives that were drawn uniformly.

    Args:
        config: with a sampled loss.
        positive: (..., T) scores of the targets.
        negative: (..., T, K) scores of the negatives.
        used: (..., 1, K) bool, which negatives there are; a user who has met all items has none.
        num_unmet: (..., 1) items that the negatives were drawn from.

    Source:
        sampled_softmax: Bengio & Senecal, Adaptive Importance Sampling, 2008 (the correction log K q);
        gbce: Petrov & Macdonald, gSASRec, 2023, eq. 5 and 9; bpr: Rendle et al., BPR, 2009, eq. 4.
    """
    num_used = used.sum(dim=-1).to(negative.dtype)
    if config.name == "bpr":
        pairs = -F.logsigmoid(positive[..., None] - negative)
        return torch.where(used, pairs, 0.0).sum(dim=-1) / num_used.clamp(min=1)
    if config.name == "sampled_softmax":
        corrected = negative + torch.log(num_unmet.clamp(min=1) / num_used.clamp(min=1))[..., None]
        scores = torch.cat([positive[..., None], torch.where(used, corrected, -torch.inf)], dim=-1)
        return torch.logsumexp(scores, dim=-1) - positive
    against = torch.where(used, F.softplus(negative), 0.0).sum(dim=-1)
    share = (num_used / num_unmet.clamp(min=1)).clamp(max=1.0)
    calibration = config.calibration if config.name == "gbce" else 0.0
    power = (1 - calibration) + calibration * share  # eq. 9 without its 1 - 1 + share, which float32 cannot hold
    return against - power * F.logsigmoid(positive)


def squared_loss(scores: Tensor, ratings: Tensor | None) -> Tensor:
    """Return half the squared error of scores as ratings, both (..., T).

    Raises:
        DataError: where the data has no ratings.
    """
    if ratings is None:
        raise DataError("model.loss.name='squared' fits ratings, and the data has none; choose another loss")
    return 0.5 * (scores - ratings).square()


class _Softmax(torch.autograd.Function):
    """Weighted cross-entropy over all items whose scores are inner products, a slice of the rows at a time.

    Scores, probabilities and gradients share one buffer: nothing of size (n, M) outlives its slice.
    """

    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        items: Tensor,
        biases: Tensor,
        targets: Tensor,
        weights: Tensor,
        ids: Tensor,
        extra: Tensor,
    ) -> Tensor:
        total = torch.zeros((), dtype=torch.float64, device=queries.device)
        for_queries, for_items = torch.empty_like(queries), torch.zeros_like(items)
        for_biases, for_extra = torch.zeros_like(biases), torch.empty_like(extra)
        step = max(1, _CELLS // max(1, len(items)))
        for start in range(0, len(queries), step):
            part = slice(start, start + step)
            scores = torch.addmm(biases, queries[part], items.T).scatter_add_(1, ids[part], extra[part])
            target, weight = targets[part, None], weights[part, None]
            highest = scores.amax(dim=1, keepdim=True)
            own = scores.gather(1, target) - highest
            sums = scores.sub_(highest).exp_().sum(dim=1, keepdim=True)
            total += ((sums.log() - own).to(torch.float64) * weight).sum()
            scores.mul_(weight / sums).scatter_add_(1, target, -weight)
            for_extra[part] = scores.gather(1, ids[part])
            for_queries[part] = scores @ items
            for_items.addmm_(scores.T, queries[part])
            for_biases += scores.sum(dim=0)
        ctx.save_for_backward(for_queries, for_items, for_biases, for_extra)
        return total.to(queries.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        *slopes, extra = (gradients[0] * saved for saved in ctx.saved_tensors)
        return *slopes, None, None, None, extra


def softmax_over_all(
    queries: Tensor,
    items: Tensor,
    biases: Tensor,
    targets: Tensor,
    weights: Tensor,
    added: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Return the weighted sum of cross-entropies over all items; it may be differentiated once.

    Args:
        queries: (n, d).
        items: (M, d); the score of a pair is the inner product plus the item's bias.
        biases: (M,).
        targets: (n,) int64.
        weights: (n,) of the sum; not differentiated.
        added: (n, K) int64 items and (n, K) what is added to their scores in each row; None for nothing.
    """
    ids, extra = (targets[:, None][:, :0], queries[:, :0]) if added is None else added
    total: Tensor = _Softmax.apply(queries, items, biases, targets, weights, ids, extra)  # type: ignore[no-untyped-call]
    return total
