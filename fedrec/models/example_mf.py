"""Matrix factorisation trained example by example: the form of `mf` for plans whose unit is an interaction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from fedrec.data.batches import UserBatch
from fedrec.data.catalogue import Catalogue
from fedrec.errors import ConfigError
from fedrec.models import server_optimizer
from fedrec.models.als import Als, AlsConfig
from fedrec.models.blocks import Contributions
from fedrec.models.protocol import ReleasedBlocks, ServerState, UserState
from fedrec.models.server_optimizer import ServerOptimizerConfig
from fedrec.randomness import Key

_AVERAGING = ServerOptimizerConfig(name="sgd", learning_rate=1.0, momentum=0.0)


class ExampleMatrixFactorizationConfig(AlsConfig):
    """Settings of `mf` under an example-level plan: those of the user solve, and of an example's loss.

    `local_learning_rate` is that of the mean gradient over the expected batch: a row meets few of its examples, so
    that large rates are usual.
    """

    init_std: Annotated[float, Field(gt=0)] = 0.5
    loss: Literal["squared", "logistic"] = "squared"
    local_learning_rate: Annotated[float, Field(gt=0)] = 100.0
    num_negatives: Annotated[int, Field(ge=1, le=100)] = 8
    negative_weight: Annotated[float, Field(gt=0)] = 1.0
    server_optimizer: ServerOptimizerConfig = _AVERAGING


class ExampleMatrixFactorization(Als):
    """Matrix factorisation whose item table moves by noisy steps on the nodes, see `fedrec.federated.example_training`.

    An example is one interaction (user u, item i) with `num_negatives` items j, drawn uniformly over all items but i:

        loss = l(<p_u, q_i>, 1) + negative_weight sum_j l(<p_u, q_j>, 0)

    with l half the squared error, or the logistic loss. User vectors are trained like item vectors, from zero, and stay
    on the node. At ranking the device fits p_u by least squares, as in `Als`; that vector never takes part in training.

    Privacy:
        An example's loss follows from its own user and item, the tables and its own draws. A vector fitted to the
        user's history would put every other interaction of the user into it, and negatives that avoid the user's
        other items would, too.
    """

    bounded = False
    batch_cells = 2**15
    config: ExampleMatrixFactorizationConfig

    def __init__(self, config: ExampleMatrixFactorizationConfig) -> None:
        """Keep the settings."""
        super().__init__(config)

    def init(self, catalogue: Catalogue, key: Key) -> ServerState:
        """Draw the item vectors from a normal distribution; shared: items (num_items, dim) float32."""
        state = super().init(catalogue, key)
        return ServerState(state.shared, server_optimizer.begin(state.shared, self.config.server_optimizer))

    def totals(self, shared: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return zeros: items (M, d) float64."""
        return {"items": torch.zeros_like(shared["items"], dtype=torch.float64)}

    def contribute(self, shared: Mapping[str, Tensor], state: UserState, users: UserBatch, key: Key) -> Contributions:
        """Refuse: nothing here is summed over users.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            'this model trains on single interactions; for users as the unit set privacy.unit = "user" or leave it out'
        )

    def factors(self, users: nn.Embedding, items: nn.Embedding) -> Factors:
        """Make the module that a node trains, of its users' and the shared table."""
        return Factors(users, items, self.config.negative_weight, self.config.loss == "logistic")

    def draw_negatives(self, items: np.ndarray, num_items: int, example_keys: np.ndarray, key: Key) -> np.ndarray:
        """Draw each example's negatives, with replacement; they follow from the key, its own item and its own key.

        Args:
            items: (B,) the examples' own items.
            num_items: M.
            example_keys: (B,) uint64.
            key: of the step.

        Returns:
            (B, num_negatives) int64; (B, 0) where there is no other item.
        """
        if num_items < 2:
            return np.zeros((len(items), 0), dtype=np.int64)
        words = key.fold("negatives").user_words(example_keys, self.config.num_negatives)
        drawn = (words[:, : self.config.num_negatives].astype(np.uint64) * np.uint64(num_items - 1)) >> np.uint64(32)
        negatives = drawn.astype(np.int64)
        return np.asarray(negatives + (negatives >= items[:, None]))

    def update(self, server: ServerState, release: ReleasedBlocks) -> ServerState:
        """Move the item table by the mean move of the nodes."""
        config = self.config.server_optimizer
        return ServerState(*server_optimizer.step(server.shared, release.blocks, server.memory, config))


class Factors(nn.Module):
    """The loss of examples as a function of two tables.

    Args:
        users: (num_users, dim) vectors p.
        items: (M, dim) vectors q.
        negative_weight: weight of a negative.
        logistic: logistic loss; else half the squared error.
    """

    def __init__(self, users: nn.Embedding, items: nn.Embedding, negative_weight: float, logistic: bool) -> None:
        super().__init__()
        self.users, self.items = users, items
        self._negative_weight, self._logistic = negative_weight, logistic

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        """Return each example's loss.

        Args:
            users: (B,) rows.
            items: (B, 1 + num_negatives) rows, the positive first.

        Returns:
            (B,) float64.
        """
        scores = torch.bmm(self.items(items), self.users(users)[:, :, None])[:, :, 0]
        positive, negative = scores[:, 0], scores[:, 1:]
        if self._logistic:
            loss = functional.softplus(-positive) + self._negative_weight * functional.softplus(negative).sum(dim=1)
        else:
            loss = ((positive - 1).square() + self._negative_weight * negative.square().sum(dim=1)) / 2
        return loss
