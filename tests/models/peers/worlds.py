"""Train a peer as nodes do, with what users keep from round to round."""

from __future__ import annotations

import math

from torch import Tensor

from fedrec.data.batches import user_batches
from fedrec.data.catalogue import Catalogue
from fedrec.data.splits import Split
from fedrec.device.store import PrivateState
from fedrec.evaluation.counts import Cutoffs, summarise
from fedrec.evaluation.nodes import evaluate_users
from fedrec.federated.cohort import sum_contributions
from fedrec.models.protocol import FederatedModel, ServerState
from fedrec.privacy.mechanism import publish_exact
from fedrec.randomness import Key, user_keys


def train_keeping(
    model: FederatedModel, catalogue: Catalogue, split: Split, num_rounds: int, micro_batch: int = 2**17
) -> tuple[ServerState, dict[str, Tensor]]:
    """Run rounds in one place; return the server's state and what the node kept of all users."""
    key, keys = Key.from_seed(0), user_keys(split.train.user_ids.ids)
    server, kept = model.init(catalogue, key.fold("init")), dict[str, Tensor]()
    for number in range(1, num_rounds + 1):
        state = PrivateState(len(keys), kept)
        batches = user_batches(split.train, None, micro_batch, keys=keys, state=kept)
        total, _ = sum_contributions(model, server.shared, batches, math.inf, key.fold("round", number), keep=state.put)
        server, kept = model.update(server, publish_exact(total, float(len(keys)))), state.tensors
    return server, kept


def hit_rate(model: FederatedModel, server: ServerState, kept: dict[str, Tensor], split: Split) -> float:
    """Return in how many lists of two the validation item is."""
    cut = Cutoffs(k=2, recall_k=2)
    counts = evaluate_users(model, server.shared, split, "validation", cut, state=kept)
    return summarise(counts, cut, split.train.num_items)["hr@2"]
