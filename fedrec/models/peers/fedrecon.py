"""FedRecon: user vectors reconstructed anew in every round, items trained with them fixed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from fedrec.data.batches import UserBatch
from fedrec.models.blocks import Contributions
from fedrec.models.coalescing import distinct_items
from fedrec.models.peers.descent import Batch, batches, inner_products
from fedrec.models.peers.examples import HeldOut
from fedrec.models.peers.peer import Peer, PeerConfig, Rate, Times, moves_of
from fedrec.models.protocol import ReleasedBlocks, ServerState, UserState
from fedrec.randomness import Key


class FedReconConfig(PeerConfig):
    """Settings of `fedrecon`; all rates are of mean losses.

    `reconstruction_steps` steps of `learning_rate` make the user vector, `local_epochs` epochs of `item_learning_rate`
    move the items, and the server follows their mean with `server_learning_rate`.
    """

    reconstruction_steps: Times = 10
    learning_rate: Rate = 5.0
    item_learning_rate: Rate = 50.0
    server_learning_rate: Rate = 1.0


class FedRecon(Peer):
    """Partly local training without state, for matrix factorisation.

    In a round a device cuts its examples at random into a support and a query half and

        p_u  <-  k_r gradient steps from 0 on the support half, items fixed                      (reconstruction)
        Q_u  <-  gradient steps on the query half from Q, p_u fixed

    and the server moves Q by the mean of Q_u - Q. Nothing is kept. To rank, p_u is reconstructed from the whole
    history; then the drawn items are replaced by their expectation (all unmet items, weighted alike), so that lists
    don't depend on draws.

    Source:
        Singhal et al., Federated Reconstruction: Partially Local Federated Learning, NeurIPS 2021, algorithm 1
        (its matrix factorisation is of ratings; here met and drawn items have a logistic loss).
    """

    config: FedReconConfig

    def __init__(self, config: FedReconConfig, held_out: HeldOut | None = None) -> None:
        """Keep the settings; see `Peer`."""
        super().__init__(config, held_out)
        self.config = config

    def fit_users(self, shared: Mapping[str, Tensor], users: UserBatch, ranking: bool = True) -> UserState:
        """Reconstruct for ranking: {"vectors": (B, d)}; nothing is fitted before training draws its examples."""
        items = shared["items"]
        vectors = items.new_zeros(users.num_users, items.shape[1])
        if not ranking:
            return {}
        ids, met = distinct_items(users.items, users.mask)
        targets = torch.zeros(users.num_users, len(items), device=items.device)
        targets.scatter_add_(1, ids, met.to(targets.dtype))
        num_met = targets.sum(dim=1, keepdim=True)
        unmet = self.config.num_negatives * num_met / (len(items) - num_met).clamp(min=1)
        share = torch.where(targets > 0, 1.0, unmet)
        share = share / share.sum(dim=1, keepdim=True)
        share = torch.where(num_met > 0, share, 0.0)
        for _ in range(self.config.reconstruction_steps):
            errors = share * (torch.sigmoid(vectors @ items.T) - targets)
            vectors = vectors - self.config.learning_rate * (errors @ items)
        return {"vectors": vectors}

    def contribute(self, shared: Mapping[str, Tensor], state: UserState, users: UserBatch, key: Key) -> Contributions:
        """Reconstruct the user vectors, train the items, and return how far they moved."""
        config, examples = self.config, self._draw(shared, users, key)
        in_support = torch.arange(examples.num_examples, device=users.items.device) % 2 == 0  # the order is random
        support, query = (replace(examples, counted=examples.counted & half) for half in (in_support, ~in_support))
        rows = shared["items"][examples.rows]
        vectors = rows.new_zeros(users.num_users, rows.shape[2])
        batch = Batch.of(support, rows)
        for _ in range(config.reconstruction_steps):
            errors = batch.errors(inner_products(vectors, batch.vectors))
            vectors = vectors - config.learning_rate * batch.weighted(errors)
        for _ in range(config.local_epochs):
            for part in batches(query, 2 * config.local_batch_size):
                batch = Batch.of(part, rows)
                errors = batch.errors(inner_products(vectors, batch.vectors))
                batch.move(rows, -config.item_learning_rate * errors[:, :, None] * vectors[:, None])
        return {"items": moves_of(shared, rows, examples)}

    def update(self, server: ServerState, release: ReleasedBlocks) -> ServerState:
        """Move the items by the mean of what users moved them."""
        items = server.shared["items"]
        moved = items + self.config.server_learning_rate * release.blocks["items"]
        return ServerState({**server.shared, "items": moved.to(items.dtype)}, server.memory)

    def score(self, shared: Mapping[str, Tensor], state: UserState, users: UserBatch) -> Tensor:
        """Return (B, num_items) inner products."""
        return state["vectors"] @ shared["items"].T
