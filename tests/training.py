"""Train a model without any runtime: the plain loop that everything else is compared with."""

from __future__ import annotations

import math

from fedrec.data.batches import user_batches
from fedrec.data.catalogue import Catalogue
from fedrec.data.interactions import Interactions
from fedrec.federated.cohort import sum_contributions
from fedrec.models.protocol import FederatedModel, ServerState
from fedrec.privacy.mechanism import publish_exact
from fedrec.randomness import Key, user_keys


def train(
    model: FederatedModel,
    catalogue: Catalogue,
    interactions: Interactions,
    num_rounds: int,
    clipping_norm: float = math.inf,
    micro_batch: int = 2**17,
) -> ServerState:
    """Run rounds in one place, without noise."""
    key = Key.from_seed(0)
    server = model.init(catalogue, key.fold("init"))
    for number in range(1, num_rounds + 1):
        total, _ = sum_contributions(
            model,
            server.shared,
            user_batches(interactions, max_elements=micro_batch, keys=user_keys(interactions.user_ids.ids)),
            clipping_norm,
            key.fold("round", number),
        )
        server = model.update(server, publish_exact(total, float(interactions.num_users)))
    return server
