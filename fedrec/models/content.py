"""Content-based cosine: rank items by how much their public categories resemble the user's history."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from fedrec.data.batches import UserBatch
from fedrec.data.catalogue import Catalogue
from fedrec.errors import ConfigError
from fedrec.models.blocks import Contributions, Entries, RowOuter
from fedrec.models.protocol import ReleasedBlocks, ServerState, UserState
from fedrec.randomness import Key


class ContentConfig(BaseModel):
    """`content` has no settings."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Content:
    """Score = cosine of an item's category vector and the mean of the user's.

    Nothing is learned from anybody: the model needs no round, and what nodes send is a zero.

    Source:
        Pazzani & Billsus, Content-Based Recommendation Systems, 2007, section 3.
    """

    batch_cells = 2**20
    batches_side_by_side = False
    bounded = True

    def __init__(self, config: ContentConfig) -> None:
        """Keep the settings."""
        self.config = config

    def init(self, catalogue: Catalogue, key: Key) -> ServerState:
        """Share the unit category vectors; shared: features (num_items, num_categories) float32.

        Raises:
            ConfigError: where the catalogue has no categories.
        """
        if catalogue.categories is None:
            raise ConfigError("model 'content' needs item categories and this data set has none; choose another model")
        features = torch.from_numpy(catalogue.categories).to(torch.float32)
        return ServerState({"features": features / features.norm(dim=1, keepdim=True).clamp(min=1e-12)})

    def totals(self, shared: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return one zero, (1, 1) float64: there is nothing to learn."""
        return {"nothing": torch.zeros(1, 1, dtype=torch.float64, device=shared["features"].device)}

    def prepare(self, shared: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the shared parameters: there is nothing to prepare."""
        return shared

    def fit_users(self, shared: Mapping[str, Tensor], users: UserBatch, ranking: bool = True) -> UserState:
        """Average the features of the history, {"profiles": (B, num_categories)}."""
        features = shared["features"]
        history = features[users.items] * users.mask.to(features.dtype)[:, :, None]
        return {"profiles": history.sum(dim=1) / users.lengths.clamp(min=1)[:, None]}

    def contribute(self, shared: Mapping[str, Tensor], state: UserState, users: UserBatch, key: Key) -> Contributions:
        """Return nothing but zeros."""
        zero = torch.zeros(users.num_users, 1, dtype=torch.float64, device=users.items.device)
        return {"nothing": RowOuter(Entries(zero.to(torch.int64), zero), zero)}

    def update(self, server: ServerState, release: ReleasedBlocks) -> ServerState:
        """Leave everything as it is."""
        return server

    def score(self, shared: Mapping[str, Tensor], state: UserState, users: UserBatch) -> Tensor:
        """Return (B, num_items) cosines."""
        profiles = state["profiles"]
        unit: Tensor = profiles / profiles.norm(dim=1, keepdim=True).clamp(min=1e-12)
        return unit @ shared["features"].T
