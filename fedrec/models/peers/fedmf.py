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
from fedrec.models.peers.descent import ITEMS, Local, Loss, batches, descend
from fedrec.models.peers.examples import HeldOut
from fedrec.models.peers.peer import Peer, PeerConfig, Rate, moves_of, start
from fedrec.models.protocol import ReleasedBlocks, ServerState, Trained, UserState
from fedrec.randomness import Key


class FedMfConfig(PeerConfig):
    """Settings of `fedmf`; the defaults take one step a round on all examples, as the paper does.

    `learning_rate` is that of the user vector on the mean loss over its examples, `item_learning_rate` that of an item
    on the sum of the losses of all users' examples of it.
    """

    local_batch_size: Annotated[int, Field(ge=0)] = 0
    loss: Loss = "squared"
    learning_rate: Rate = 1.0
    item_learning_rate: Rate = 0.002
    regularization: Annotated[float, Field(ge=0, lt=1)] = 0.0


class FedMf(Peer):
    """Alternating gradient steps of F = sum (y_ui - p_u' q_i)^2 / 2 + regularisation.

    In a round each device steps on its own vector and sends the gradients of its items at where both were (algorithm 1)

        p_u  <-  p_u - gamma dF/dp_u
        q_i  <-  q_i - gamma' (sum_u dF_u/dq_i + lambda q_i)                                          on the server

    with y_ui = 1 for items met and 0 for drawn ones. User vectors stay on the device from round to round and start from
    a common random vector. With several local epochs or batches users send the sum of their steps.

    Source:
        Chai, Wang, Chen, Yang, Secure Federated Matrix Factorization, IEEE Intelligent Systems 2020, section 3
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
        local = start(shared, state, examples)
        for _ in range(config.local_epochs):
            for batch in batches(examples, config.local_batch_size):
                # Users first, though both step from where both were: rows are moved in place.
                users_rate, items_rate = {"vectors": config.learning_rate}, {ITEMS: config.item_learning_rate}
                stepped = descend(local, batch, inner_product, users_rate, config.loss).parameters["vectors"]
                moved = descend(local, batch, inner_product, items_rate, config.loss, mean=False)
                shrunk = stepped - config.learning_rate * config.regularization * local.parameters["vectors"]
                local = Local({"vectors": shrunk}, moved.rows)
        return Trained({"items": moves_of(shared, local, examples)}, local.parameters)

    def update(self, server: ServerState, release: ReleasedBlocks) -> ServerState:
        """Add the steps of all users: their sum, not their mean."""
        items = server.shared["items"]
        shrunk = items * (1 - self.config.item_learning_rate * self.config.regularization)
        moved = (shrunk + release.blocks["items"] * release.divisor).to(items.dtype)
        return ServerState({**server.shared, "items": moved}, server.memory)

    def score(self, shared: Mapping[str, Tensor], state: UserState, users: UserBatch) -> Tensor:
        """Return (B, num_items) inner products."""
        return state["vectors"] @ shared["items"].T


def inner_product(parameters: Mapping[str, Tensor], items: Tensor) -> Tensor:
    """Return (B, E): the products of the user's vector with (B, E, d) items."""
    return (items @ parameters["vectors"][:, :, None])[:, :, 0]
