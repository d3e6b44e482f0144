"""FedMF: matrix factorisation whose users send the gradients of their items."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from fedrec.data.batches import UserBatch
from fedrec.data.catalogue import Catalogue
from fedrec.models.blocks import Contributions
from fedrec.models.peers.descent import Batch, Loss, batches, inner_products
from fedrec.models.peers.examples import HeldOut
from fedrec.models.peers.peer import Peer, PeerConfig, Rate, moves_of
from fedrec.models.protocol import ReleasedBlocks, ServerState, Trained, UserState
from fedrec.randomness import Key


class FedMfConfig(PeerConfig):
    """Settings of `fedmf`; the defaults take one step a round on all examples, as the paper does.

    `learning_rate` is that of a user vector on the mean loss of the user's examples, `item_learning_rate` that of an
    item on the sum of these means over all users.
    """

    local_batch_size: Annotated[int, Field(ge=0)] = 0
    loss: Loss = "squared"
    learning_rate: Rate = 3.0
    item_learning_rate: Rate = 1.0
    regularization: Annotated[float, Field(ge=0, lt=1)] = 0.0


class FedMf(Peer):
    """Gradient steps on F = sum_u F_u, F_u = mean_i (y_ui - p_u' q_i)^2 / 2 + regularisation.

    In a round each device steps on its own vector and sends the gradients of its items at where both were

        p_u  <-  p_u - gamma dF/dp_u
        q_i  <-  q_i - gamma' (sum_u dF_u/dq_i + lambda q_i)                                          on the server

    with y_ui = 1 for items met and 0 for drawn ones. User vectors stay on the device from round to round and start from
    a common random vector. With several local epochs or batches users send the sum of their steps.

    Source:
        Chai, Wang, Chen, Yang, Secure Federated Matrix Factorization, IEEE Intelligent Systems 2020, algorithm 1
        ("PartText": gradients of the user's own items; its homomorphic encryption would hide each from the server).
    """

    config: FedMfConfig

    def __init__(self, config: FedMfConfig, held_out: HeldOut | None = None) -> None:
        """Keep the settings; see `Peer`."""
        super().__init__(config, held_out)
        self.config = config

    def init(self, catalogue: Catalogue, key: Key) -> ServerState:
        """Draw the items and the common start of users; shared: items (M, d), start (d,), float32."""
        state = super().init(catalogue, key)
        first = torch.randn(self.config.dim, generator=key.fold("start").torch_generator()) * self.config.init_std
        return ServerState({**state.shared, "start": first})

    def fit_users(self, shared: Mapping[str, Tensor], users: UserBatch, ranking: bool = True) -> UserState:
        """Take up the vectors that the devices kept: {"vectors": (B, d)}."""
        return {"vectors": users.kept("vectors", shared["start"])}

    def contribute(self, shared: Mapping[str, Tensor], state: UserState, users: UserBatch, key: Key) -> Contributions:
        """Step on the user vectors and the items at once, and return the steps of the items."""
        config, examples = self.config, self._draw(shared, users, key)
        vectors, rows = state["vectors"], shared["items"][examples.rows]
        for _ in range(config.local_epochs):
            for part in batches(examples, config.local_batch_size):
                batch = Batch.of(part, rows)
                errors = batch.errors(inner_products(vectors, batch.vectors), config.loss)
                batch.move(rows, -config.item_learning_rate * errors[:, :, None] * vectors[:, None])
                gradients = batch.weighted(errors) + config.regularization * vectors
                vectors = vectors - config.learning_rate * gradients
        return Trained({"items": moves_of(shared, rows, examples)}, {"vectors": vectors})

    def update(self, server: ServerState, release: ReleasedBlocks) -> ServerState:
        """Add the steps of all users: their sum, not their mean."""
        items = server.shared["items"]
        shrunk = items * (1 - self.config.item_learning_rate * self.config.regularization)
        moved = (shrunk + release.blocks["items"] * release.divisor).to(items.dtype)
        return ServerState({**server.shared, "items": moved}, server.memory)

    def score(self, shared: Mapping[str, Tensor], state: UserState, users: UserBatch) -> Tensor:
        """Return (B, num_items) inner products."""
        return state["vectors"] @ shared["items"].T
