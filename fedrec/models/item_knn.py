"""Item-kNN: items are near when the same users met them; a baseline for runs without privacy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from fedrec.data.batches import UserBatch
from fedrec.data.catalogue import Catalogue
from fedrec.models.blocks import Contributions, PairCounts
from fedrec.models.protocol import ReleasedBlocks, ServerState, UserState
from fedrec.randomness import Key


class ItemKnnConfig(BaseModel):
    """Settings of `item_knn`: neighbours kept for each item, and the shrinkage of similarities of rare items."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    num_neighbors: Annotated[int, Field(ge=1)] = 10
    shrinkage: Annotated[float, Field(ge=0)] = 0.0


class ItemKnn:
    """Score an item by its cosine similarity to the user's items, over co-occurrence counts.

        sim(i, j) = n_ij / (sqrt(n_i n_j) + shrinkage),    score(u, i) = sum_{j in S_u} sim(i, j)

    Nodes send co-occurrence counts, (num_items, num_items): for catalogues of up to some ten thousand items.

    Source:
        Deshpande & Karypis, Item-Based Top-N Recommendation Algorithms, 2004.
    """

    batch_cells = 2**17
    batches_side_by_side = False
    bounded = False

    def __init__(self, config: ItemKnnConfig) -> None:
        """Keep the settings."""
        self.config = config

    def init(self, catalogue: Catalogue, key: Key) -> ServerState:
        """Start with no neighbours; shared: neighbors (num_items, k) int64 and similarities (num_items, k) float32."""
        width = min(self.config.num_neighbors, catalogue.num_items)
        shape = (catalogue.num_items, width)
        return ServerState({"neighbors": torch.zeros(shape, dtype=torch.int64), "similarities": torch.zeros(shape)})

    def totals(self, shared: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return zeros: pairs (num_items, num_items) float32."""
        num_items = len(shared["neighbors"])
        return {"pairs": torch.zeros(num_items, num_items, device=shared["neighbors"].device)}

    def prepare(self, shared: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the shared parameters: there is nothing to prepare."""
        return shared

    def fit_users(self, shared: Mapping[str, Tensor], users: UserBatch, ranking: bool = True) -> UserState:
        """Fit nothing: the history itself is the user's state."""
        return {}

    def contribute(self, shared: Mapping[str, Tensor], state: UserState, users: UserBatch, key: Key) -> Contributions:
        """Return each user's pairs of items; they have no bounded form here."""
        return {"pairs": PairCounts(users.items, users.mask.to(torch.float32))}

    def update(self, server: ServerState, release: ReleasedBlocks) -> ServerState:
        """Turn co-occurrence counts into the nearest neighbours of each item."""
        counts = release.blocks["pairs"].to(torch.float64) * release.divisor
        norms = counts.diagonal().clone().sqrt()
        counts.fill_diagonal_(0.0)
        similarity = counts / (norms[:, None] * norms + self.config.shrinkage).clamp(min=1e-12)
        values, neighbors = torch.topk(similarity, server.shared["neighbors"].shape[1], dim=1)
        return ServerState({"neighbors": neighbors, "similarities": values.to(torch.float32)}, server.memory)

    def score(self, shared: Mapping[str, Tensor], state: UserState, users: UserBatch) -> Tensor:
        """Return (B, num_items): summed similarities to the user's items."""
        neighbors, similarities = shared["neighbors"], shared["similarities"]
        num_items, width = neighbors.shape
        table = torch.sparse_coo_tensor(
            torch.stack(
                [neighbors.reshape(-1), torch.arange(num_items, device=neighbors.device).repeat_interleave(width)]
            ),
            similarities.reshape(-1),
            (num_items, num_items),
            check_invariants=False,
        )
        history = torch.zeros(users.num_users, num_items + 1, device=similarities.device)
        history.scatter_(1, torch.where(users.mask, users.items, num_items), 1.0)
        scores: Tensor = torch.sparse.mm(table, history[:, :-1].T).T
        return scores
