"""Our own engine doing the work, and its closed form: the round between a broadcast and the next."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from fedrec.data.batches import user_batches
from fedrec.data.catalogue import Catalogue
from fedrec.data.interactions import Interactions
from fedrec.federated.cohort import sum_contributions
from fedrec.models.protocol import FederatedModel
from fedrec.models.registry import build_model
from fedrec.privacy.mechanism import publish_exact, release
from fedrec.privacy.plan import PrivacyEvent, PrivacyPlan
from fedrec.randomness import Key, user_keys
from simulations.speed_peers.work import ALS_DIM, ALS_REGULARIZATION, ALS_UNOBSERVED_WEIGHT, NUM_NEGATIVES, Work

_MOST_ROUNDS = 10**6
_DELTA = 1e-9


class EngineRounds:
    """Rounds of a model over all users: gather batches, fit, contribute, clip, sum, release, update."""

    def __init__(
        self, model: FederatedModel, train: Interactions, clipping_norm: float = math.inf, noise_multiplier: float = 0.0
    ) -> None:
        """Draw the first state.

        Args:
            model: the model.
            train: all users' interactions.
            clipping_norm: `math.inf` for neither clipping nor noise.
            noise_multiplier: of the plan; only looked at where there is a norm.
        """
        self._model, self._train, self._clipping_norm = model, train, clipping_norm
        self._plan = None
        if math.isfinite(clipping_norm):
            event = PrivacyEvent(noise_multiplier, 1.0, _MOST_ROUNDS)
            self._plan = PrivacyPlan((event,), _DELTA, clipping_norm, train.num_users)
        self._keys = user_keys(train.user_ids.ids)
        self._key = Key.from_seed(0)
        self._number = 0
        self.state = model.init(Catalogue(train.item_ids), self._key.fold("init"))

    def round(self) -> None:
        """Do one round."""
        self._number += 1
        key = self._key.fold("round", self._number)
        batches = user_batches(self._train, max_elements=self._model.batch_cells, keys=self._keys)
        total, _ = sum_contributions(self._model, self.state.shared, batches, self._clipping_norm, key)
        if self._plan is None:
            released = publish_exact(total, float(self._train.num_users))
        else:
            released = release(total, self._plan, self._number, key)
        self.state = self._model.update(self.state, released)

    def item_vectors(self) -> np.ndarray:
        """Return the item table."""
        return self.state.shared["items"].numpy()

    def close(self) -> None:
        """Do nothing."""


def sgd_model(work: Work, **settings: Any) -> FederatedModel:
    """Build `mf` with the settings of the work; further settings override them."""
    table = {
        "name": "mf",
        "dim": work.item_vectors.shape[1],
        "loss": "logistic",
        "start": "zero",
        "local_epochs": 1,
        "local_batch_size": work.batch_size,
        "local_learning_rate": work.learning_rate,
        "num_negatives": NUM_NEGATIVES,
        "negative_weight": 1.0,
        "server_optimizer": {"name": "sgd", "learning_rate": 1.0, "momentum": 0.0},
    }
    return build_model({**table, **settings}, work.clipping_norm if work.private else None)


class EngineSgd(EngineRounds):
    """`mf` at the same work. It draws its negatives inside the round; the others get theirs ready.

    It keeps no user state: each round starts from p_u = 0 where the others read and write 32 floats a user. The steps
    are the same; but the first batch of a user then moves no item (its gradient is a multiple of p_u).
    """

    start = "zero"

    def __init__(self, work: Work) -> None:
        """Start from the item table of the work."""
        model = sgd_model(work, start=self.start)
        super().__init__(model, work.train, work.clipping_norm, work.noise_multiplier)
        shared = {**self.state.shared, "items": torch.from_numpy(work.item_vectors.copy())}
        self.state = type(self.state)(shared, self.state.memory)


class EngineSgdFitted(EngineSgd):
    """The same with the model's default start: each user begins at the least-squares fit to the items. More work."""

    start = "solve"


class EngineAls(EngineRounds):
    """`als` in its exact form: user solves, sums of statistics, item solves."""

    def __init__(self, work: Work) -> None:
        """Draw the first item vectors."""
        table = {
            "name": "als",
            "dim": ALS_DIM,
            "unobserved_weight": ALS_UNOBSERVED_WEIGHT,
            "regularization": ALS_REGULARIZATION,
        }
        super().__init__(build_model(table, None), work.train)
