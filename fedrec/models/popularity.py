"""Popularity: the same list for everybody, from item counts; the baseline that every model has to beat."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from fedrec.data.batches import UserBatch
from fedrec.data.catalogue import Catalogue
from fedrec.models.blocks import Contributions, Entries, RowOuter
from fedrec.models.coalescing import distinct_items
from fedrec.models.protocol import ReleasedBlocks, ServerState, UserState
from fedrec.randomness import Key


class PopularityConfig(BaseModel):
    """`popularity` has no settings."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Popularity:
    """Rank items by how many users met them.

    Without privacy a user adds 1 to each item met. Under a plan (`clipping_norm` given) a user adds weights of joint
    norm exactly `clipping_norm`, the same for each of the user's items.

    Privacy:
        Unit user, add-or-remove, L2 norm `clipping_norm` (0 for a user without interactions).
    """

    batch_cells = 2**20
    batches_side_by_side = False
    bounded = True

    def __init__(self, config: PopularityConfig, clipping_norm: float | None = None) -> None:
        """Keep the settings."""
        self.config = config
        self.clipping_norm = clipping_norm

    def init(self, catalogue: Catalogue, key: Key) -> ServerState:
        """Start with zero counts; shared: counts (num_items, 1) float32."""
        return ServerState({"counts": torch.zeros(catalogue.num_items, 1)})

    def totals(self, shared: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return zeros: counts (num_items, 1) float64."""
        return {"counts": torch.zeros_like(shared["counts"], dtype=torch.float64)}

    def prepare(self, shared: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the shared parameters: there is nothing to prepare."""
        return shared

    def fit_users(self, shared: Mapping[str, Tensor], users: UserBatch, ranking: bool = True) -> UserState:
        """Fit nothing: popularity knows no user."""
        return {}

    def contribute(self, shared: Mapping[str, Tensor], state: UserState, users: UserBatch, key: Key) -> Contributions:
        """Return each user's weights on the items met."""
        items, weights = distinct_items(users.items, users.mask)
        if self.clipping_norm is not None:
            weights = weights * (self.clipping_norm / weights.sum(dim=1, keepdim=True).clamp(min=1).sqrt())
        one = torch.ones(users.num_users, 1, dtype=torch.float64, device=weights.device)
        return {"counts": RowOuter(Entries(items, weights), one)}

    def update(self, server: ServerState, release: ReleasedBlocks) -> ServerState:
        """Take the released counts as they are."""
        return ServerState({"counts": release.blocks["counts"].to(server.shared["counts"])}, server.memory)

    def score(self, shared: Mapping[str, Tensor], state: UserState, users: UserBatch) -> Tensor:
        """Return the counts, (B, num_items)."""
        return shared["counts"][:, 0].expand(users.num_users, -1)
