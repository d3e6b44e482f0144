"""The protocol that every federated model follows: private fit, bounded contributions, public update, scores."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from fedrec.data.batches import UserBatch
from fedrec.data.catalogue import Catalogue
from fedrec.models.blocks import Block, Contributions
from fedrec.randomness import Key

UserState = Mapping[str, Tensor]
"""What is fitted for B users and never leaves their node: name -> (B, ...)."""


@dataclass(frozen=True, eq=False)
class ServerState:
    """What the server holds between rounds.

    Args:
        shared: name -> tensor, broadcast to all nodes.
        memory: name -> tensor, server-side optimiser state; stays on the server.
    """

    shared: Mapping[str, Tensor]
    memory: Mapping[str, Tensor] = field(default_factory=dict)


class ReleasedBlocks(Protocol):
    """What a model may know of a round: sums over users divided by a public number, and how noisy they are."""

    @property
    def blocks(self) -> Mapping[str, Tensor]:
        """Name -> float64 (noisy) sum over users / divisor."""
        ...

    @property
    def noise_std(self) -> Mapping[str, float]:
        """Name -> standard deviation of the noise on each coordinate of that block (0 where there is none)."""
        ...

    @property
    def divisor(self) -> float:
        """The public number that the sums were divided by."""
        ...


@dataclass(frozen=True, eq=False)
class Trained(Mapping[str, Block]):
    """Contributions of a model that trains private state, too: the node keeps it for the users' next round.

    Args:
        blocks: what each user adds to the round.
        state: name -> (B, ...), handed back as `UserBatch.state`.
    """

    blocks: Mapping[str, Block]
    state: UserState

    def __getitem__(self, name: str) -> Block:
        """Return a block."""
        return self.blocks[name]

    def __iter__(self) -> Iterator[str]:
        """Go through the names of the blocks."""
        return iter(self.blocks)

    def __len__(self) -> int:
        """Return the number of blocks."""
        return len(self.blocks)


class FederatedModel(Protocol):
    """A recommender that learns from sums of user contributions.

    Everything but `contribute`'s result and the shared parameters stays where it is computed. Implementations are
    stateless: configs in, tensors in, tensors out.
    """

    @property
    def bounded(self) -> bool:
        """Whether contributions can be clipped, so that a privacy plan accepts them."""
        ...

    @property
    def batch_cells(self) -> int:
        """How many padded history cells a batch of users should have, for speed."""
        ...

    @property
    def batches_side_by_side(self) -> bool:
        """Whether threads take whole batches, each with its own totals, or share the rows of one batch."""
        ...

    def init(self, catalogue: Catalogue, key: Key) -> ServerState:
        """Return the state before the first round, from public knowledge only."""
        ...

    def totals(self, shared: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return zero tensors with the names, shapes and dtypes of the summed blocks."""
        ...

    def prepare(self, shared: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return `shared` with what follows from it and every batch needs; the other methods take it either way."""
        ...

    def fit_users(self, shared: Mapping[str, Tensor], users: UserBatch, ranking: bool = True) -> UserState:
        """Fit the private state of users, seen before or not; `ranking` tells serving from training.

        A node hands back what it kept of users after earlier rounds as `users.state`; it may have lost it.
        """
        ...

    def contribute(self, shared: Mapping[str, Tensor], state: UserState, users: UserBatch, key: Key) -> Contributions:
        """Return what each user adds to the round, as named blocks with the names of `totals`.

        Where training changes the private state, too, it comes along as `Trained`; else the node keeps what was fitted.
        """
        ...

    def update(self, server: ServerState, release: ReleasedBlocks) -> ServerState:
        """Move the shared parameters by what was released; post-processing, so free of privacy cost."""
        ...

    def score(self, shared: Mapping[str, Tensor], state: UserState, users: UserBatch) -> Tensor:
        """Return (B, num_items) float32 scores in the contexts of `users.query`; higher is better, NaN ranks last."""
        ...


def predicts_ratings(model: FederatedModel) -> bool:
    """Return whether scores are ratings: a model says so by an attribute `predicts_ratings`; else they only rank."""
    return bool(getattr(model, "predicts_ratings", False))


def most_users(model: FederatedModel, shared: Mapping[str, Tensor]) -> int:
    """Return how many users' contributions may be held at once; few models, those of large parts, have a bound."""
    bound = getattr(model, "most_users", None)
    return sys.maxsize if bound is None else int(bound(shared))


def grown(model: FederatedModel, num_rounds: int) -> bool:
    """Return whether a model has added parameters to the shared ones after so many rounds.

    Most keep those that they have; one that adds some has a number `grows_after` and a method `grow`.
    """
    return num_rounds >= getattr(model, "grows_after", math.inf)


def grow(model: FederatedModel, shared: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return shared parameters with zeros for all that the model adds on the way; the same where it adds none."""
    added = getattr(model, "grow", None)
    grown_up: Mapping[str, Tensor] = shared if added is None else added(shared)
    return grown_up
