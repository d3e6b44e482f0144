"""The work that every peer does: one round of federated matrix factorisation, from the same examples."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from fedrec.data.interactions import Interactions
from fedrec.data.sources import load
from fedrec.data.splits import leave_one_out
from fedrec.randomness import Key

DIM = 32
NUM_NEGATIVES = 4
BATCH_SIZE = 256
LEARNING_RATE = 0.05
CLIPPING_NORM = 1.0
NOISE_MULTIPLIER = 1.0

ALS_DIM = 64
ALS_UNOBSERVED_WEIGHT = 0.5
ALS_REGULARIZATION = 0.003


@dataclass(frozen=True, eq=False)
class Work:
    """One round: every user's examples, what is trained, and how.

    Each user goes once over the user's own examples, in order, in batches of `batch_size`, the last one smaller. A
    batch moves the user's vector p and the touched item rows q_i jointly, by SGD on the sum of logistic losses:

        g_e = sigmoid(<p, q_i(e)>) - label_e
        p <- p - lr sum_e g_e q_i(e)          q_i <- q_i - lr sum_{e: i(e) = i} g_e p

    The change of the item table is clipped to an L2 norm of `clipping_norm`, summed over users, given Gaussian noise
    and divided by the number of users; the user's vector stays with the user for the next round.

    Args:
        train: the users' interactions, for systems that draw negatives themselves.
        indptr: (num_users + 1,) int64: the examples of user u are indptr[u]:indptr[u + 1].
        items: (num_examples,) int64 item rows.
        labels: (num_examples,) float32, 1 for an interaction and 0 for a negative.
        item_vectors: (num_items, dim) float32 at the start.
        user_vectors: (num_users, dim) float32 at the start.
        batch_size: examples a step.
        learning_rate: lr above.
        clipping_norm: `math.inf` without privacy.
        noise_multiplier: noise std / clipping_norm; 0 without privacy.
    """

    train: Interactions
    indptr: np.ndarray
    items: np.ndarray
    labels: np.ndarray
    item_vectors: np.ndarray
    user_vectors: np.ndarray
    batch_size: int = BATCH_SIZE
    learning_rate: float = LEARNING_RATE
    clipping_norm: float = math.inf
    noise_multiplier: float = 0.0

    @property
    def num_users(self) -> int:
        """Return the number of users."""
        return len(self.user_vectors)

    @property
    def num_items(self) -> int:
        """Return the number of items."""
        return len(self.item_vectors)

    @property
    def private(self) -> bool:
        """Return whether contributions are clipped and their sum gets noise."""
        return math.isfinite(self.clipping_norm)

    @property
    def noise_std(self) -> float:
        """Return the standard deviation of the noise on each coordinate of the sum; 0 without privacy."""
        return self.noise_multiplier * self.clipping_norm if self.private else 0.0

    @property
    def lengths(self) -> np.ndarray:
        """Return (num_users,) int64: examples of each user."""
        return np.diff(self.indptr)

    def with_privacy(self, clipping_norm: float = CLIPPING_NORM, noise_multiplier: float = NOISE_MULTIPLIER) -> Work:
        """Return the same work with clipping and noise."""
        return replace(self, clipping_norm=clipping_norm, noise_multiplier=noise_multiplier)


class Peer(Protocol):
    """A system that does the work; made from a `Work`, outside all timings."""

    def round(self) -> None:
        """Do one round: every user, the sum, noise where the work says so, and the new item table."""
        ...

    def item_vectors(self) -> np.ndarray:
        """Return the (num_items, dim) item table after the last round."""
        ...

    def close(self) -> None:
        """Let go of processes and threads."""
        ...


def make_work(train: Interactions, seed: int = 0, dim: int = DIM) -> Work:
    """Draw the examples and the starting point.

    Every interaction is an example with label 1 and brings `NUM_NEGATIVES` examples with label 0, drawn uniformly from
    the items that the user has not met; a user's examples are shuffled.

    Args:
        train: the users' interactions.
        seed: of all draws.
        dim: length of the vectors.
    """
    generator = np.random.default_rng(seed)
    items = [_examples(train, user, generator) for user in range(train.num_users)]
    return Work(
        train=train,
        indptr=np.concatenate([[0], np.cumsum([len(rows) for rows, _ in items])]).astype(np.int64),
        items=np.concatenate([rows for rows, _ in items]),
        labels=np.concatenate([labels for _, labels in items]),
        item_vectors=generator.normal(0, 0.1, (train.num_items, dim)).astype(np.float32),
        user_vectors=generator.normal(0, 0.1, (train.num_users, dim)).astype(np.float32),
    )


def load_work(data: str, max_users: int | None = None) -> Work:
    """Make the work of a named data set's training part under leave-one-out.

    Args:
        data: name of a data set.
        max_users: take so many users, spread evenly over the lengths of histories; all where None.
    """
    train = leave_one_out(load(data).interactions, Key.from_seed(0)).train
    if max_users is not None and max_users < train.num_users:
        order = np.argsort(train.lengths, kind="stable")
        middles = ((np.arange(max_users) + 0.5) * train.num_users / max_users).astype(np.int64)
        train = train.of_users(np.sort(order[middles]))
    return make_work(train)


def clip_factor(norm: float, clipping_norm: float) -> float:
    """Return what a contribution of this norm is multiplied with: min(1, clipping_norm / norm)."""
    return min(1.0, clipping_norm / max(norm, 1e-12))


def _examples(train: Interactions, user: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    positives = train.items[train.indptr[user] : train.indptr[user + 1]]
    unmet = np.setdiff1d(np.arange(train.num_items), positives)
    negatives = generator.choice(unmet, NUM_NEGATIVES * len(positives))
    items = np.concatenate([positives, negatives])
    labels = np.concatenate([np.ones(len(positives), np.float32), np.zeros(len(negatives), np.float32)])
    order = generator.permutation(len(items))
    return items[order], labels[order]
