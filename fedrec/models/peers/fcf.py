"""FCF: federated collaborative filtering, closed-form users and gradients for items."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from fedrec.data.batches import UserBatch
from fedrec.data.catalogue import Catalogue
from fedrec.models import server_optimizer
from fedrec.models.blocks import Contributions, Entries, RowOuter, SecondMoments, from_moments
from fedrec.models.coalescing import distinct_items
from fedrec.models.least_squares import solve_users
from fedrec.models.peers.peer import Rate, Size
from fedrec.models.protocol import ReleasedBlocks, ServerState, UserState
from fedrec.models.server_optimizer import ServerOptimizerConfig
from fedrec.randomness import Key


class FcfConfig(BaseModel):
    """Settings of `fcf`: `confidence` is the paper's alpha, `learning_rate` that of Adam on the server."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    dim: Size = 32
    init_std: Rate = 0.1
    confidence: Rate = 1.0
    regularization: Annotated[float, Field(ge=1e-6)] = 1.0
    learning_rate: Rate = 0.05


class Fcf:
    """Implicit matrix factorisation whose item step is a gradient that users add up.

    With c_ui = 1 + alpha and y_ui = 1 for items met, c_ui = 1 and y_ui = 0 for all others,

        p_u   = (Q' C_u Q + lambda I)^-1 Q' C_u y_u                                       on the device
        f_ui  = c_ui (y_ui - p_u' q_i) p_u                                                on the device
        q_i  <- q_i - Adam step of  -2 sum_u f_ui + 2 lambda q_i                          on the server

    No negatives are drawn: all items take part. The sum of f_ui over all items is sent in parts that are small and give
    the same sum: (c_ui (1 - s) + s) p_u with s = p_u' q_i for items met, and p_u p_u', of which the server knows
    -sum_u (p_u' q_i) p_u for every item.

    Privacy:
        None is claimed: runs without a plan, as published.

    Source:
        Ammad-ud-din et al., Federated Collaborative Filtering for Privacy-Preserving Personalized Recommendation
        System, 2019, section 3 and algorithm 1.
    """

    bounded = False
    batch_cells = 2**18
    batches_side_by_side = False

    def __init__(self, config: FcfConfig) -> None:
        """Keep the settings."""
        self.config = config
        self._optimizer = ServerOptimizerConfig(name="adam", learning_rate=config.learning_rate)

    def init(self, catalogue: Catalogue, key: Key) -> ServerState:
        """Draw the item vectors from a normal distribution; shared: items (num_items, dim) float32."""
        generator = key.fold("items").torch_generator()
        shared = {"items": torch.randn(catalogue.num_items, self.config.dim, generator=generator)}
        shared = {"items": shared["items"] * self.config.init_std}
        return ServerState(shared, server_optimizer.begin(shared, self._optimizer))

    def totals(self, shared: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return zeros: items (M, d) and gram (d (d + 1) / 2,), float64."""
        num_items, dim = shared["items"].shape
        zeros = shared["items"].new_zeros
        return {
            "items": zeros((num_items, dim), dtype=torch.float64),
            "gram": zeros(dim * (dim + 1) // 2, dtype=torch.float64),
        }

    def prepare(self, shared: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the shared parameters with Q'Q, (d, d)."""
        return {**shared, "item_gram": shared["items"].T @ shared["items"]}

    def fit_users(self, shared: Mapping[str, Tensor], users: UserBatch, ranking: bool = True) -> UserState:
        """Solve for the user vectors: {"vectors": (B, d)}; zero for users without interactions."""
        items = shared["items"]
        gram = shared["item_gram"] if "item_gram" in shared else items.T @ items
        ids, weights = distinct_items(users.items, users.mask)
        alpha = self.config.confidence
        ridge = items.new_full((users.num_users,), self.config.regularization)
        vectors = solve_users(items, gram, ids, weights.to(items.dtype) * alpha, ridge)
        return {"vectors": vectors * ((1 + alpha) / alpha)}  # solved for Q' (C_u - I) y_u

    def contribute(self, shared: Mapping[str, Tensor], state: UserState, users: UserBatch, key: Key) -> Contributions:
        """Return the parts of each user's gradients."""
        vectors = state["vectors"]
        ids, met = distinct_items(users.items, users.mask)
        scores = (shared["items"][ids] @ vectors[:, :, None])[:, :, 0]
        weights = met.to(vectors.dtype) * ((1 + self.config.confidence) * (1 - scores) + scores)
        return {"items": RowOuter(Entries(ids, weights), vectors), "gram": SecondMoments(vectors)}

    def update(self, server: ServerState, release: ReleasedBlocks) -> ServerState:
        """Take one step of Adam along the gradient of the whole objective."""
        items = server.shared["items"].to(torch.float64)
        gram = from_moments(release.blocks["gram"], self.config.dim)
        ridge = self.config.regularization / release.divisor
        gradient = -2 * (release.blocks["items"] - items @ gram) + 2 * ridge * items
        moved, memory = server_optimizer.step(
            {"items": server.shared["items"]}, {"items": -gradient}, server.memory, self._optimizer
        )
        return ServerState({**server.shared, **moved}, memory)

    def score(self, shared: Mapping[str, Tensor], state: UserState, users: UserBatch) -> Tensor:
        """Return (B, num_items) inner products."""
        return state["vectors"] @ shared["items"].T
