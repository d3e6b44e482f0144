"""Implicit alternating least squares in federated form, exact: for runs without privacy.

Users solve for their own vector on the device; nodes send sums of p_u, p_u p_u' and counts; the server solves for the
items.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from fedrec.data.batches import UserBatch
from fedrec.data.catalogue import Catalogue
from fedrec.models.blocks import Contributions, Dense, Entries, RowMoments, RowOuter, SecondMoments, from_moments
from fedrec.models.least_squares import solve_triangles, solve_users
from fedrec.models.protocol import ReleasedBlocks, ServerState, UserState
from fedrec.randomness import Key

Share = Annotated[float, Field(ge=0, le=1)]


class AlsConfig(BaseModel):
    """Settings of `als`; the defaults are those of iALS on data of MovieLens' size."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    dim: Annotated[int, Field(ge=1, le=1024)] = 32
    unobserved_weight: Annotated[float, Field(gt=0)] = 0.3
    regularization: Annotated[float, Field(gt=0)] = 0.01
    init_std: Annotated[float, Field(gt=0)] = 0.1
    recency_weight: Annotated[float, Field(ge=0)] = 0.0
    recency_decay: Annotated[float, Field(gt=0)] = 3.0
    norm_discount: Share = 0.0


class Als:
    """Implicit ALS with exact item statistics.

    The objective of Hu et al. in the parametrisation of Rendle et al.: every item counts with `unobserved_weight` a0
    and target 0, every interaction with weight w and target 1, and regularisation grows with frequency:

        p_u = (a0 Q'Q + sum_{i in S_u} w_ui q_i q_i' + lam (|S_u| + a0 M) I)^-1  sum_{i in S_u} w_ui q_i
        q_i = (a0 P'P + sum_{u: i in S_u} p_u p_u' + lam (count_i + a0 N) I)^-1  sum_{u: i in S_u} p_u

    Recency: at ranking, w_ui = 1 + recency_weight exp(-age_ui / recency_decay), age 0 = the user's newest interaction;
    the device chooses it freely. Training uses w = 1.

    Score: <p_u, q_i> / (|q_i| + mean |q| / 20)^norm_discount. Popular items have long vectors; dividing part of the
    length away makes room for the others. Free on the device, too.

    Source:
        Hu, Koren, Volinsky, Collaborative Filtering for Implicit Feedback Datasets, 2008, eq. 4-5;
        Rendle et al., Revisiting the Performance of iALS on Item Recommendation Benchmarks, 2021, eq. 3-7.
    """

    batch_cells = 2**20
    batches_side_by_side = False
    bounded = False

    def __init__(self, config: AlsConfig) -> None:
        """Keep the settings; the model itself is stateless."""
        self.config = config

    def init(self, catalogue: Catalogue, key: Key) -> ServerState:
        """Draw the item vectors from a normal distribution; shared: items (num_items, dim) float32."""
        shape = (catalogue.num_items, self.config.dim)
        scale = self.config.init_std / self.config.dim**0.5
        return ServerState({"items": torch.randn(shape, generator=key.fold("items").torch_generator()) * scale})

    def totals(self, shared: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return zeros: items (M, d), item_grams (M, d (d+1)/2) float32, gram, counts (M, 1) and users (1,) float64."""
        num_items, dim = shared["items"].shape
        triangle = dim * (dim + 1) // 2
        device = shared["items"].device
        return {
            "items": torch.zeros(num_items, dim, dtype=torch.float64, device=device),
            "item_grams": torch.zeros(num_items, triangle, dtype=torch.float32, device=device),
            "gram": torch.zeros(triangle, dtype=torch.float64, device=device),
            "counts": torch.zeros(num_items, 1, dtype=torch.float64, device=device),
            "users": torch.zeros(1, dtype=torch.float64, device=device),
        }

    def prepare(self, shared: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the shared parameters and the weighted Gram matrix of the items, (dim, dim) float64."""
        return {**shared, "item_gram": self._gram(shared)}

    def _gram(self, shared: Mapping[str, Tensor]) -> Tensor:
        """Return a0 Q'Q."""
        if "item_gram" in shared:
            return shared["item_gram"]
        items = shared["items"].to(torch.float64)
        return self.config.unobserved_weight * (items.T @ items)

    def fit_users(self, shared: Mapping[str, Tensor], users: UserBatch, ranking: bool = True) -> UserState:
        """Solve for the user vectors in closed form.

        Returns:
            {"vectors": (B, dim)}; zero for users without interactions.
        """
        items = shared["items"].to(torch.float32 if ranking else self._training_dtype(shared["items"]))
        weights = users.mask.to(items.dtype)
        ages = users.ages
        if ranking and self.config.recency_weight and ages is not None:
            recency = torch.exp(-ages.to(items.dtype) / self.config.recency_decay)
            weights = weights * (1 + self.config.recency_weight * recency)
        gram = self._gram(shared).to(items.dtype)
        ridge = self.config.regularization * (
            users.lengths.to(items.dtype) + self.config.unobserved_weight * len(items)
        )
        return {"vectors": solve_users(items, gram, users.items, weights, ridge)}

    def _training_dtype(self, items: Tensor) -> torch.dtype:
        """Return what user vectors are solved in for training."""
        return torch.float32

    def contribute(self, shared: Mapping[str, Tensor], state: UserState, users: UserBatch, key: Key) -> Contributions:
        """Return the exact statistics of each user; they have no bounded form."""
        vectors = state["vectors"]
        entries = Entries(users.items, users.mask.to(vectors.dtype))
        unit = torch.ones(len(vectors), 1, dtype=vectors.dtype, device=vectors.device)
        return {
            "items": RowOuter(entries, vectors),
            "item_grams": RowMoments(entries, vectors),
            "gram": SecondMoments(vectors),
            "counts": RowOuter(entries, unit),
            "users": Dense(unit),
        }

    def update(self, server: ServerState, release: ReleasedBlocks) -> ServerState:
        """Solve for all item vectors."""
        blocks = release.blocks
        weight = self.config.unobserved_weight
        ridge = self.config.regularization * (blocks["counts"][:, 0] + weight * blocks["users"])
        common = weight * from_moments(blocks["gram"], self.config.dim)
        items = solve_triangles(blocks["item_grams"], common, ridge.clamp(min=1e-12), blocks["items"])
        items = items.to(server.shared["items"].dtype)
        return ServerState({**server.shared, "items": items}, server.memory)

    def score(self, shared: Mapping[str, Tensor], state: UserState, users: UserBatch) -> Tensor:
        """Return (B, num_items) inner products of user and item vectors, discounted by the items' norms."""
        items = shared["items"]
        if self.config.norm_discount:
            norms = items.norm(dim=1, keepdim=True)
            items = items / (norms + norms.mean() / 20).clamp(min=1e-12) ** self.config.norm_discount
        return state["vectors"] @ items.T
