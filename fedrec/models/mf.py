"""Matrix factorisation by federated gradients: private user vectors, a shared item table, local SGD on both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedrec.compiled import compiled_for
from fedrec.data.batches import UserBatch
from fedrec.data.catalogue import Catalogue
from fedrec.models import server_optimizer
from fedrec.models.adaptive_clipping import AdaptiveClippingConfig
from fedrec.models.als import Als, AlsConfig
from fedrec.models.blocks import Contributions, RowSparse
from fedrec.models.local_sgd import LocalSgd, draw_examples, train_users
from fedrec.models.protocol import ReleasedBlocks, ServerState, UserState
from fedrec.models.server_optimizer import ServerOptimizerConfig
from fedrec.randomness import Key


class MatrixFactorizationConfig(AlsConfig):
    """Settings of `mf`: those of the user solve, and how items learn."""

    init_std: Annotated[float, Field(gt=0)] = 0.5
    loss: Literal["squared", "logistic"] = "squared"
    start: Literal["solve", "zero"] = "solve"
    local_epochs: Annotated[int, Field(ge=1, le=100)] = 1
    local_batch_size: Annotated[int, Field(ge=1)] = 256
    local_learning_rate: Annotated[float, Field(gt=0)] = 0.005
    num_negatives: Annotated[int, Field(ge=1, le=100)] = 4
    negative_weight: Annotated[float, Field(gt=0)] = 2.0
    server_optimizer: ServerOptimizerConfig = ServerOptimizerConfig()


class BoundedMatrixFactorizationConfig(MatrixFactorizationConfig):
    """Settings of `mf` under a privacy plan.

    Args:
        adaptive_clipping: lets the clipping norm follow the users' norms.
    """

    adaptive_clipping: AdaptiveClippingConfig | None = None


class MatrixFactorization(Als):
    """Matrix factorisation by local SGD, federated.

    In a round every user

        starts     p_u = the least-squares fit to the items as they are (`start = "solve"`), or 0
        draws      `num_negatives` unmet items for each positive, uniformly
        trains     p_u and the rows of the items touched, `local_epochs` over the examples, by
                   sum over the batch of (<p_u, q_i> - y)^2 / 2, or the logistic loss of <p_u, q_i>
        adds       items[i] = how far row i moved

    and the server moves the item table by the mean move through its optimiser. The vector p_u is fitted anew whenever
    it is needed: a device keeps no state that a lost round could damage, and a new user is served like any other. At
    ranking, p_u is the least-squares fit with recency weights, as in `Als`.

    Privacy:
        Unit user, add-or-remove. A user's moves of all rows are one block, clipped jointly by the engine; negatives
        depend on nothing but the user's own history and on draws. The plain form of other devices trains in float64:
        there, how a user's numbers round depends on who else is in the batch, and has to stay far below the noise; the
        compiled form takes one user after the other.

    Source:
        McMahan et al., Communication-Efficient Learning of Deep Networks, 2017, algorithm 1 (local SGD);
        Singhal et al., Federated Reconstruction, 2021 (stateless user vectors).
    """

    bounded = True
    batch_cells = 2**14
    batches_side_by_side = True
    config: MatrixFactorizationConfig

    def __init__(self, config: MatrixFactorizationConfig) -> None:
        """Keep the settings."""
        super().__init__(config)
        self._sgd = LocalSgd(
            config.local_batch_size, config.local_learning_rate, config.negative_weight, config.loss == "logistic"
        )

    def init(self, catalogue: Catalogue, key: Key) -> ServerState:
        """Draw the item vectors from a normal distribution; shared: items (num_items, dim) float32."""
        state = super().init(catalogue, key)
        return ServerState(state.shared, server_optimizer.begin(state.shared, self.config.server_optimizer))

    def totals(self, shared: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return zeros: items (M, d) float64."""
        return {"items": torch.zeros_like(shared["items"], dtype=torch.float64)}

    def fit_users(self, shared: Mapping[str, Tensor], users: UserBatch, ranking: bool = True) -> UserState:
        """Fit the user vectors: where local training starts, or what is ranked with; (B, dim)."""
        if not ranking and self.config.start == "zero":
            items = shared["items"]
            dtype = self._training_dtype(items)
            return {"vectors": torch.zeros(users.num_users, items.shape[1], dtype=dtype, device=items.device)}
        return super().fit_users(shared, users, ranking)

    def _training_dtype(self, items: Tensor) -> torch.dtype:
        return torch.float32 if compiled_for(items) else torch.float64

    def contribute(self, shared: Mapping[str, Tensor], state: UserState, users: UserBatch, key: Key) -> Contributions:
        """Train locally and return how far each touched item row moved."""
        config, items = self.config, shared["items"]
        examples = draw_examples(users, len(items), config.num_negatives, config.local_epochs, key)
        _, moves = train_users(items, state["vectors"], examples, self._sgd)
        return {"items": RowSparse(examples.rows, moves, examples.row_mask)}

    def update(self, server: ServerState, release: ReleasedBlocks) -> ServerState:
        """Move the item table by the mean move of the users."""
        config = self.config.server_optimizer
        return ServerState(*server_optimizer.step(server.shared, release.blocks, server.memory, config))
