"""SLIT: what comes next as a linear function of what came before, in closed form from exact sums of one round."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from fedrec.compiled import compiled_for
from fedrec.data.batches import UserBatch
from fedrec.data.catalogue import Catalogue
from fedrec.models.blocks import Contributions, Unbounded
from fedrec.models.coalescing import highest_row
from fedrec.models.ease import square_table
from fedrec.models.kernels import transitions as kernels
from fedrec.models.protocol import ReleasedBlocks, ServerState, UserState
from fedrec.randomness import Key


class SlitConfig(BaseModel):
    """Settings of `slit`.

    Args:
        regularization: ridge of the regression.
        decay: interactions after which an interaction weighs 1/e.
        floor: weight that is left to the oldest interactions.
        ranking_decay: the same at ranking; as `decay` where None.
        length_discount: a user counts with (number of interactions)^-length_discount.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    regularization: Annotated[float, Field(gt=0)] = 100.0
    decay: Annotated[float, Field(gt=0)] = 8.0
    floor: Annotated[float, Field(ge=0)] = 0.05
    ranking_decay: Annotated[float, Field(gt=0)] | None = None
    length_discount: Annotated[float, Field(ge=0, le=1)] = 0.5


class Slit:
    """Predict each next item from the weighted past by one ridge regression over all positions of all users.

        x_t = sum_{s < t} w(t - 1 - s) e_{i_s},    w(a) = exp(-a / decay) + floor
        B = argmin sum over users of n^-length_discount sum_t |e_{i_t} - x_t' B|^2 + lam |B|^2
          = (sum x_t x_t' + lam I)^-1 sum x_t e_{i_t}'
        score(u, j) = sum_s w(age of s) B_{i_s j}

    Nodes send the exact sums of x x' and x e', so the model is the one that all data in one place would give, however
    users are spread. It needs one round; every further one gives the same.

    Tables of num_items^2 numbers are sent both ways: for catalogues of up to some ten thousand items. They have no
    bounded form here, so no privacy plan accepts them.

    Source:
        Choi et al., Session-aware Linear Item-Item Models for Session-based Recommendation, 2021, section 3.2 (SLIT);
        here the next item alone is predicted, from every position.
    """

    batch_cells = 2**17
    batches_side_by_side = False
    bounded = False

    def __init__(self, config: SlitConfig) -> None:
        """Keep the settings."""
        self.config = config

    def init(self, catalogue: Catalogue, key: Key) -> ServerState:
        """Start with no weights; shared: weights (num_items, num_items) float32, row i what item i says of the next.

        Raises:
            ConfigError: where the catalogue has too many items.
        """
        return ServerState({"weights": square_table("slit", catalogue.num_items)})

    def totals(self, shared: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return zeros: past and next, both (num_items, num_items) float32."""
        return {name: torch.zeros_like(shared["weights"]) for name in ("past", "next")}

    def prepare(self, shared: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the shared parameters: there is nothing to prepare."""
        return shared

    def fit_users(self, shared: Mapping[str, Tensor], users: UserBatch, ranking: bool = True) -> UserState:
        """Fit nothing: the history itself is the user's state."""
        return {}

    def contribute(self, shared: Mapping[str, Tensor], state: UserState, users: UserBatch, key: Key) -> Contributions:
        """Return both sums over each user's positions; they have no bounded form here."""
        highest_row(users.items, len(shared["weights"]))
        lengths = users.lengths
        weights = lengths.clamp(min=1).to(torch.float64) ** -self.config.length_discount
        parts = (users.items, lengths, weights, self.config)
        return {"past": Past(*parts), "next": Next(*parts)}

    def update(self, server: ServerState, release: ReleasedBlocks) -> ServerState:
        """Solve for the weights, in float64."""
        past = release.blocks["past"].to(torch.float64) * release.divisor
        past.diagonal().add_(self.config.regularization)
        following = release.blocks["next"].to(torch.float64) * release.divisor
        weights = torch.cholesky_solve(following, torch.linalg.cholesky(past))
        return ServerState({"weights": weights.to(server.shared["weights"].dtype)}, server.memory)

    def score(self, shared: Mapping[str, Tensor], state: UserState, users: UserBatch) -> Tensor:
        """Return (B, num_items): what the weighted history says of the next item."""
        table, lengths = shared["weights"], users.lengths
        places = torch.arange(users.items.shape[1], device=table.device)
        ages = (lengths[:, None] - 1 - places).clamp(min=0).to(table.dtype)
        decay = self.config.ranking_decay or self.config.decay
        weights = torch.where(users.mask, torch.exp(-ages / decay) + self.config.floor, 0.0)
        return weights.new_zeros(users.num_users, len(table)).scatter_add_(1, users.items, weights) @ table


@dataclass(frozen=True, eq=False)
class _Positions(Unbounded):
    """Statistics over the positions of B histories, for runs without privacy.

    Args:
        ids: (B, L) int64 items, oldest first.
        lengths: (B,) int64.
        weights: (B,) float64 of each user.
        config: how the past is weighed.
    """

    ids: Tensor
    lengths: Tensor
    weights: Tensor
    config: SlitConfig

    def finite(self) -> Tensor:
        """Return (B,) bool: all True, for ids and lengths are whole numbers."""
        return torch.ones_like(self.lengths, dtype=torch.bool)

    def _pasts(self, user: int) -> tuple[Tensor, Tensor]:
        """Return (n,) items of a user and (n, n): what each weighs at each position, 0 from that position on."""
        ids = self.ids[user, : self.lengths[user]]
        places = torch.arange(len(ids), device=ids.device)
        ages = places[:, None] - 1 - places
        recency = torch.exp(-ages.clamp(min=0) / self.config.decay) + self.config.floor
        return ids, torch.where(ages >= 0, recency, 0.0).to(torch.float64)

    def _arrays(self, total: Tensor, scale: Tensor) -> tuple[object, ...]:
        tensors = (total, self.ids.contiguous(), self.lengths, scale.to(torch.float64) * self.weights)
        return tuple(tensor.numpy() for tensor in tensors)


class Past(_Positions):
    """Second moments of the past at each position but the first; the sum is (num_items, num_items)."""

    def add_to(self, total: Tensor, scale: Tensor, quantum: float = 0.0) -> None:
        """Add the scaled moments of all users to `total`."""
        if compiled_for(total, self.ids):
            kernels.add_past(*self._arrays(total, scale), math.exp(-1 / self.config.decay), self.config.floor)
            return
        for user, factor in enumerate((scale * self.weights).tolist()):
            ids, pasts = self._pasts(user)
            moments = factor * (pasts.T @ pasts)
            total.index_put_((ids[:, None], ids[None]), moments.to(total.dtype), accumulate=True)


class Next(_Positions):
    """The past of each position against the item there; the sum is (num_items, num_items)."""

    def add_to(self, total: Tensor, scale: Tensor, quantum: float = 0.0) -> None:
        """Add the scaled sums of all users to `total`."""
        if compiled_for(total, self.ids):
            ages = torch.arange(self.ids.shape[1], dtype=torch.float64)
            recency = torch.exp(-ages / self.config.decay) + self.config.floor
            kernels.add_next(*self._arrays(total, scale), recency.numpy())
            return
        for user, factor in enumerate((scale * self.weights).tolist()):
            ids, pasts = self._pasts(user)
            total.index_put_((ids[:, None], ids[None]), (factor * pasts.T).to(total.dtype), accumulate=True)
