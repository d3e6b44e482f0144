"""Candidates: who a coin is flipped for, the data that follows from the coins, and what an attack is called."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedrec.audit.subject import generator_of
from fedrec.data.interactions import Interactions
from fedrec.errors import DataError
from fedrec.randomness import Key


@dataclass(frozen=True)
class Attack:
    """One attack on membership.

    Args:
        what: "users" or "interactions".
        view: "final model", "releases" or "node sums".
        name: how it is done.
        strongest: whether it is by design the strongest here on this view.
    """

    what: str
    view: str
    name: str
    strongest: bool


@dataclass(frozen=True, eq=False)
class Candidates:
    """Who coins are flipped for.

    Args:
        what: "users" or "interactions".
        rows: (n,) rows of the users, ascending.
        held: (n,) positions in the training data of the interaction that each coin decides about; None for users.
    """

    what: str
    rows: np.ndarray
    held: np.ndarray | None

    def world(self, train: Interactions, coins: np.ndarray) -> tuple[Interactions, np.ndarray]:
        """Return the histories, and the rows of the users that exist, under (n,) bool coins (True: in)."""
        everybody = np.arange(train.num_users)
        if self.held is None:
            return train, np.setdiff1d(everybody, self.rows[~coins])
        return _less(train, self.held[~coins]), everybody

    def without(self, train: Interactions) -> Interactions:
        """Return the histories less every held-back interaction; whole ones where the candidates are users."""
        return train if self.held is None else _less(train, self.held)

    def targets(self, train: Interactions) -> np.ndarray | None:
        """Return (n,) items of the held-back interactions; None where the candidates are users."""
        return None if self.held is None else np.asarray(train.items[self.held], dtype=np.int64)


def draw_candidates(train: Interactions, what: str, most: int, key: Key) -> Candidates:
    """Draw at most so many users to flip coins for and, for interactions, one of each history.

    Raises:
        DataError: where there are fewer than two.
    """
    shortest = 1 if what == "users" else 2
    enough = np.flatnonzero(train.lengths >= shortest)
    if len(enough) < 2:
        raise DataError(
            f"{len(enough)} users have {shortest} or more training interactions: nobody to tell apart; give more data"
        )
    generator = generator_of(key.fold("candidates", what))
    rows = np.sort(generator.choice(enough, size=min(most, len(enough)), replace=False))
    if what == "users":
        return Candidates(what, rows, None)
    return Candidates(what, rows, train.indptr[rows] + generator.integers(0, train.lengths[rows]))


def _less(train: Interactions, positions: np.ndarray) -> Interactions:
    kept = np.ones(len(train), dtype=bool)
    kept[positions] = False
    return train.take(kept, check=False)
