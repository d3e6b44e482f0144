"""EASE: a linear item-item model in closed form; a reference for runs without privacy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from fedrec.data.batches import UserBatch
from fedrec.data.catalogue import Catalogue
from fedrec.errors import ConfigError
from fedrec.models.blocks import Contributions, PairCounts
from fedrec.models.coalescing import distinct_items
from fedrec.models.protocol import ReleasedBlocks, ServerState, UserState
from fedrec.randomness import Key

MAX_ITEMS = 30_000
"""A (num_items, num_items) table of float64 numbers has 7 GB there."""


class EaseConfig(BaseModel):
    """Settings of `ease`: ridge of the regression, and what a recent interaction weighs at ranking."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    regularization: Annotated[float, Field(gt=0)] = 500.0
    recency_weight: Annotated[float, Field(ge=0)] = 0.0
    recency_decay: Annotated[float, Field(gt=0)] = 3.0


def square_table(model: str, num_items: int) -> Tensor:
    """Return (num_items, num_items) float32 zeros.

    Args:
        model: whose table it is.
        num_items: M.

    Raises:
        ConfigError: where the catalogue has more than `MAX_ITEMS` items.
    """
    if num_items > MAX_ITEMS:
        raise ConfigError(
            f"model {model!r} keeps a table of {num_items:,} x {num_items:,} items, allowed are {MAX_ITEMS:,}; "
            "choose another model"
        )
    return torch.zeros(num_items, num_items)


class Ease:
    """Predict each item from all others by one ridge regression over all users.

        B = argmin |X - X B|^2 + lam |B|^2  with diag(B) = 0:   P = (X'X + lam I)^-1,  B_ij = -P_ij / P_jj  for i != j
        score(u, j) = sum_{i in S_u} w_ui B_ij

    X is (num_users, num_items), 1 where a user met an item. Nodes send exact sums of X'X, so the model is the one that
    all data in one place would give, however users are spread. It needs one round; every further one gives the same.

    Recency: w_ui = 1 + recency_weight exp(-age_ui / recency_decay), age 0 = the user's newest interaction, which the
    device chooses freely; of an item met twice the newest counts. B is fitted with weights of 1.

    Tables of num_items^2 numbers are sent both ways: for catalogues of up to some ten thousand items. They have no
    bounded form here, so no privacy plan accepts them.

    Source:
        Steck, Embarrassingly Shallow Autoencoders for Sparse Data, 2019, eq. 8 and algorithm 1.
    """

    batch_cells = 2**17
    batches_side_by_side = False
    bounded = False

    def __init__(self, config: EaseConfig) -> None:
        """Keep the settings."""
        self.config = config

    def init(self, catalogue: Catalogue, key: Key) -> ServerState:
        """Start with no weights; shared: weights (num_items, num_items) float32, row i what item i says of others.

        Raises:
            ConfigError: where the catalogue has more than `MAX_ITEMS` items.
        """
        return ServerState({"weights": square_table("ease", catalogue.num_items)})

    def totals(self, shared: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return zeros: pairs (num_items, num_items) float32, which counts up to 16 million users exactly."""
        return {"pairs": torch.zeros_like(shared["weights"])}

    def prepare(self, shared: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the shared parameters: there is nothing to prepare."""
        return shared

    def fit_users(self, shared: Mapping[str, Tensor], users: UserBatch, ranking: bool = True) -> UserState:
        """Fit nothing: the history itself is the user's state."""
        return {}

    def contribute(self, shared: Mapping[str, Tensor], state: UserState, users: UserBatch, key: Key) -> Contributions:
        """Return each user's pairs of items, each item once; they have no bounded form here."""
        items, weights = distinct_items(users.items, users.mask)
        return {"pairs": PairCounts(items, weights.to(torch.float32))}

    def update(self, server: ServerState, release: ReleasedBlocks) -> ServerState:
        """Solve for the weights, in float64."""
        gram = release.blocks["pairs"].to(torch.float64) * release.divisor
        gram.diagonal().add_(self.config.regularization)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram))
        weights = inverse / -inverse.diagonal()
        weights.fill_diagonal_(0.0)
        return ServerState({"weights": weights.to(server.shared["weights"].dtype)}, server.memory)

    def score(self, shared: Mapping[str, Tensor], state: UserState, users: UserBatch) -> Tensor:
        """Return (B, num_items): summed weights of the user's items."""
        table = shared["weights"]
        weights = users.mask.to(table.dtype)
        ages = users.ages
        if self.config.recency_weight and ages is not None:
            recency = torch.exp(-ages.to(weights.dtype) / self.config.recency_decay)
            weights = weights * (1 + self.config.recency_weight * recency)
        history = weights.new_zeros(users.num_users, len(table)).scatter_reduce_(1, users.items, weights, "amax")
        return history @ table
