"""Adaptive clipping: the norm that users are clipped to follows a quantile of their norms, learned privately."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from fedrec.data.batches import UserBatch
from fedrec.data.catalogue import Catalogue
from fedrec.models.blocks import Block, Contributions, Dense
from fedrec.models.protocol import (
    FederatedModel,
    ReleasedBlocks,
    ServerState,
    UserState,
    most_users,
    predicts_ratings,
)
from fedrec.randomness import Key

NORM = "adaptive_norm"
BELOW = "adaptive_below"


class AdaptiveClippingConfig(BaseModel):
    """Settings of adaptive clipping.

    Args:
        quantile: share of users whose norm should be below the clipping norm.
        learning_rate: how far the norm moves in a round, in logarithms, when all users are on one side.
        initial_norm: of the first round, in the units of the model's moves.
        count_share: share of the privacy spent on counting who is below: of a user's squared norm.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    quantile: Annotated[float, Field(gt=0, lt=1)] = 0.5
    learning_rate: Annotated[float, Field(gt=0, le=2)] = 0.2
    initial_norm: Annotated[float, Field(gt=0)] = 1.0
    count_share: Annotated[float, Field(gt=0, lt=1)] = 0.01


class AdaptivelyClipped:
    """A gradient model whose users are clipped to a norm C that follows a quantile of theirs.

    With S the plan's clipping norm and a^2 + c^2 = 1, c^2 = `count_share`, a user with the move v adds

        its blocks  a S v / max(|v|, C)                norm at most a S
        below       + c S where |v| <= C, - c S else   norm c S; 0 where v = 0

    and the server, which knows the mean m of `below` up to noise, multiplies the blocks by C / (a S) and sets

        C <- C exp(-learning_rate (1/2 + m / (2 c S) - quantile))

    Privacy:
        Unit user, add-or-remove; the joint norm is at most S, and the engine clips to it again. C is computed from
        releases alone, and what it costs is in the same Gaussian release: the noise on the moves is 1 / a times that of
        a fixed C. Where fewer users take part than declared, the mean is drawn to 0 and C to the median.

    Source:
        Andrew et al., Differentially Private Learning with Adaptive Clipping, 2021, algorithm 1; the split of the noise
        is theorem 1 there.
    """

    bounded = True

    def __init__(self, inner: FederatedModel, config: AdaptiveClippingConfig, clipping_norm: float) -> None:
        """Clip the moves of `inner`; `clipping_norm` is the plan's."""
        self.inner, self.config, self.clipping_norm = inner, config, clipping_norm
        self._move_norm = clipping_norm * math.sqrt(1 - config.count_share)
        self._count_norm = clipping_norm * math.sqrt(config.count_share)

    @property
    def batch_cells(self) -> int:
        """Return that of the model."""
        return self.inner.batch_cells

    @property
    def batches_side_by_side(self) -> bool:
        """Return that of the model."""
        return self.inner.batches_side_by_side

    @property
    def predicts_ratings(self) -> bool:
        """Return whether the model's scores are ratings."""
        return predicts_ratings(self.inner)

    def init(self, catalogue: Catalogue, key: Key) -> ServerState:
        """Return the model's state, and adaptive_norm (1,) float32, the public C, among the shared parameters."""
        state = self.inner.init(catalogue, key)
        return ServerState({**state.shared, NORM: torch.tensor([self.config.initial_norm])}, state.memory)

    def totals(self, shared: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the model's totals and adaptive_below (1,) float64."""
        count = torch.zeros(1, dtype=torch.float64, device=shared[NORM].device)
        return {**self.inner.totals(_without_norm(shared)), BELOW: count}

    def most_users(self, shared: Mapping[str, Tensor]) -> int:
        """Return the model's own bound on a batch."""
        return most_users(self.inner, _without_norm(shared))

    def prepare(self, shared: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return what the model makes of its part, and C."""
        return {**self.inner.prepare(_without_norm(shared)), NORM: shared[NORM]}

    def fit_users(self, shared: Mapping[str, Tensor], users: UserBatch, ranking: bool = True) -> UserState:
        """Fit users as the model does."""
        return self.inner.fit_users(_without_norm(shared), users, ranking)

    def contribute(self, shared: Mapping[str, Tensor], state: UserState, users: UserBatch, key: Key) -> Contributions:
        """Return the model's blocks, scaled to at most a S, and on which side of C each user is."""
        blocks = self.inner.contribute(_without_norm(shared), state, users, key)
        squares = reduce(torch.add, [block.squared_norms() for block in blocks.values()])  # in one order for everybody
        norms, norm = squares.sqrt(), shared[NORM].to(torch.float64)
        factors = self._move_norm / torch.maximum(norms, norm)
        side = torch.where(norms <= norm, self._count_norm, -self._count_norm)
        below = torch.where(norms > 0, side, torch.zeros_like(side))
        return {**{name: Scaled(block, factors) for name, block in blocks.items()}, BELOW: Dense(below[:, None])}

    def update(self, server: ServerState, release: ReleasedBlocks) -> ServerState:
        """Move the model by the rescaled moves, and C towards the quantile."""
        norm = server.shared[NORM].to(torch.float64)
        state = self.inner.update(
            ServerState(_without_norm(server.shared), server.memory),
            _Rescaled(release, float(norm) / self._move_norm),
        )
        share = (0.5 + release.blocks[BELOW] / (2 * self._count_norm)).clamp(0.0, 1.0)
        moved = norm * torch.exp(-self.config.learning_rate * (share - self.config.quantile))
        return ServerState({**state.shared, NORM: moved.clamp(1e-12, 1e12).to(torch.float32)}, state.memory)

    def score(self, shared: Mapping[str, Tensor], state: UserState, users: UserBatch) -> Tensor:
        """Score as the model does."""
        return self.inner.score(_without_norm(shared), state, users)


def _without_norm(shared: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in shared.items() if name != NORM}


@dataclass(frozen=True, eq=False)
class Scaled:
    """A block whose users are each multiplied by a factor.

    Args:
        block: of B users.
        factors: (B,) float64.
    """

    block: Block
    factors: Tensor

    def finite(self) -> Tensor:
        """Return (B,) bool: the user's part and factor are finite."""
        return self.block.finite() & torch.isfinite(self.factors)

    def squared_norms(self) -> Tensor:
        """Return (B,) float64 squared norms of the scaled parts."""
        return (self.block.squared_norms().sqrt() * self.factors).square()  # a tiny factor's square may be nothing

    def add_to(self, total: Tensor, scale: Tensor, quantum: float = 0.0) -> None:
        """Add the scaled sum; users of scale 0 add nothing, whatever their factor."""
        factors = torch.where(scale != 0, self.factors, torch.zeros_like(self.factors))
        self.block.add_to(total, scale * factors, quantum)


class _Rescaled:
    """The moves of a release in the units of the model."""

    def __init__(self, release: ReleasedBlocks, factor: float) -> None:
        kept = [name for name in release.blocks if name != BELOW]
        self.blocks = {name: release.blocks[name] * factor for name in kept}
        self.noise_std = {name: release.noise_std[name] * factor for name in kept}
        self.divisor = release.divisor
