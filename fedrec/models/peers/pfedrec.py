"""PFedRec: a shared item table, and on each device a scoring layer and an item table of its own."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fedrec.data.batches import UserBatch
from fedrec.data.catalogue import Catalogue
from fedrec.models.blocks import Contributions
from fedrec.models.peers.descent import Batch, batches, inner_products
from fedrec.models.peers.examples import HeldOut
from fedrec.models.peers.peer import Peer, PeerConfig, Rate, moves_of
from fedrec.models.protocol import ServerState, Trained, UserState
from fedrec.randomness import Key


class PFedRecConfig(PeerConfig):
    """Settings of `pfedrec`; the defaults are those of the authors.

    `learning_rate` is of the mean loss of a batch; items learn with learning_rate x number of items x `item_rate`.
    """

    init_std: Rate = 1.0
    learning_rate: Rate = 0.1
    item_rate: Rate = 80.0


class PFedRec(Peer):
    """Dual personalisation: the scoring function and the view of the items are the user's own.

        y_ui = sigmoid(w_u' e_i^u + c_u)

    In a round a device takes the shared items as its own, e^u = e, and for each batch of its examples

        w_u, c_u  <-  one step on the loss with e^u as it is                    (personal scoring function)
        e^u       <-  one step on the loss with the new w_u, c_u                (personal view of the items)

    The server takes the mean of all e^u. The scoring function stays on the device, and so does e^u, which the device
    ranks with: of it the device keeps the scores of all items, all that ranking takes. A user who never trained scores
    with the start of the scoring function, drawn once for all, and the shared items.

    Source:
        Zhang et al., Dual Personalization on Federated Recommendation, IJCAI 2023, algorithm 1; batch by batch
        alternation, start and rates as in the authors' code.
    """

    config: PFedRecConfig

    def __init__(self, config: PFedRecConfig, held_out: HeldOut | None = None) -> None:
        """Keep the settings; see `Peer`."""
        super().__init__(config, held_out)
        self.config = config

    def init(self, catalogue: Catalogue, key: Key) -> ServerState:
        """Draw the items and the common start of scoring; shared: items (M, d), start (d + 1,), float32, uniform."""
        state = super().init(catalogue, key)
        dim = self.config.dim
        uniform = torch.rand(dim + 1, generator=key.fold("start").torch_generator())
        return ServerState({**state.shared, "start": (2 * uniform - 1) / dim**0.5})

    def fit_users(self, shared: Mapping[str, Tensor], users: UserBatch, ranking: bool = True) -> UserState:
        """Take up what the device kept.

        Returns:
            For training {"weights": (B, d), "offsets": (B,)}, for ranking {"scores": (B, M)}.
        """
        weights, offset = shared["start"][:-1], shared["start"][-1]
        if ranking:
            return {"scores": users.kept("scores", shared["items"] @ weights + offset)}
        return {"weights": users.kept("weights", weights), "offsets": users.kept("offsets", offset)}

    def contribute(self, shared: Mapping[str, Tensor], state: UserState, users: UserBatch, key: Key) -> Contributions:
        """Train scoring and items in turn, and return how far the items moved."""
        config, examples = self.config, self._draw(shared, users, key)
        weights, offsets = state["weights"], state["offsets"]
        rows = shared["items"][examples.rows]
        item_rate = config.learning_rate * len(shared["items"]) * config.item_rate
        for _ in range(config.local_epochs):
            for part in batches(examples, config.local_batch_size):
                batch = Batch.of(part, rows)
                errors = batch.errors(inner_products(weights, batch.vectors) + offsets[:, None])
                weights = weights - config.learning_rate * batch.weighted(errors)
                offsets = offsets - config.learning_rate * errors.sum(dim=1)
                errors = batch.errors(inner_products(weights, batch.vectors) + offsets[:, None])
                batch.move(rows, -item_rate * errors[:, :, None] * weights[:, None])
        scores = weights @ shared["items"].T + offsets[:, None]
        own_scores = inner_products(weights, rows) + offsets[:, None]
        change = torch.where(examples.row_mask, own_scores - scores.gather(1, examples.rows), 0.0)
        scores = scores.scatter_add(1, examples.rows, change)
        moves = moves_of(shared, rows, examples)
        return Trained({"items": moves}, {"weights": weights, "offsets": offsets, "scores": scores})

    def score(self, shared: Mapping[str, Tensor], state: UserState, users: UserBatch) -> Tensor:
        """Return (B, num_items): the scores of the device's own items."""
        return state["scores"]
