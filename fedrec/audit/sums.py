"""Attacks on sums: who, or which interaction, is in what nodes send and what a plan releases."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
from torch import Tensor

from fedrec.assemble import nodes_of
from fedrec.audit.candidates import Attack, Candidates
from fedrec.audit.decoding import decode, inner_products
from fedrec.audit.subject import Round, Subject, sum_over
from fedrec.audit.vectors import Layout, contribution_rows
from fedrec.data.interactions import Interactions

SMALL_NODE = 10


class SumAttacks:
    """Attacks on the sums of one run.

    Args:
        subject: what is audited.
        candidates: who coins were flipped for.
        included: (n,) bool, the coins; used to make the sums of small nodes, never to score.
    """

    def __init__(self, subject: Subject, candidates: Candidates, included: np.ndarray) -> None:
        self.subject, self.candidates, self.included = subject, candidates, included
        self.scores: dict[Attack, np.ndarray] = {}
        """(n,) scores of each attack, added up over rounds."""

    def look_at(self, done: Round, train: Interactions) -> None:
        """Attack what a round released, and its node sums where it is the last.

        Args:
            done: the round.
            train: the histories it ran on.
        """
        last = done.number == self.subject.num_rounds
        if self.subject.plan is not None:
            self._look_at_release(done)
        if last:
            self._look_at_nodes(done, train)
            self._look_at_small_nodes(done)

    def _look_at_release(self, done: Round) -> None:
        expected = Expected(self.subject, self.candidates, done, np.arange(self.subject.train.num_users))
        noise = self.subject.noise_multiplier(done.number)
        left = expected.left_over({name: block * done.release.divisor for name, block in done.release.blocks.items()})
        joint = decode(expected.rows, left, noise * self.subject.clipping_norm, expected.variance)
        self._add("releases", "inner product", False, expected.spread(inner_products(expected.rows, left)) / noise**2)
        self._add("releases", "joint decoding", True, expected.spread(joint) / noise**2)

    def _look_at_nodes(self, done: Round, train: Interactions) -> None:
        num_nodes, num_users = self.subject.config.federated.num_nodes, self.subject.train.num_users
        nodes = nodes_of(self.subject.user_keys, num_nodes)
        for node in range(num_nodes):
            members = np.flatnonzero(nodes == node)
            total = sum_over(self.subject, done.shared, train, np.intersect1d(done.drawn, members), done.key)
            expected = Expected(self.subject, self.candidates, done, members)
            if not expected.layout.size:  # nobody's coin matters to this node, or its sums have no form to attack
                continue
            left = expected.left_over(total.totals)
            size = f"{max(num_users // num_nodes, 1)} users a node"
            joint = decode(expected.rows, left, 0.0, expected.variance)
            simple = inner_products(expected.rows, left)
            self._add("node sums", f"inner product, {size}", False, expected.spread(simple))
            self._add("node sums", f"joint decoding, {size}", True, expected.spread(joint))

    def _look_at_small_nodes(self, done: Round) -> None:
        """Do the same on nodes of a few candidates, whose sums are made of the contributions themselves."""
        expected = Expected(self.subject, self.candidates, done, np.arange(self.subject.train.num_users))
        if not expected.layout.size:
            return
        present = self.included[expected.index] & np.isin(self.candidates.rows[expected.index], done.drawn)
        simple = np.zeros(len(expected.index))
        num_nodes = max(len(simple) // SMALL_NODE, 1)
        for node in range(num_nodes):
            members = np.arange(node, len(simple), num_nodes)
            rows = expected.rows[members]
            left = rows.T @ (present[members] - expected.mean)
            simple[members] = inner_products(rows, left)
        self._add("node sums", f"inner product, {SMALL_NODE} users a node", False, expected.spread(simple))

    def _add(self, view: str, name: str, strongest: bool, scores: np.ndarray) -> None:
        attack = Attack(self.candidates.what, view, name, strongest)
        self.scores[attack] = scores + self.scores.get(attack, np.zeros(len(scores)))


class Expected:
    """What an attacker expects of a round's sum over some users, before looking at it.

    Of users who are no candidates everything is known. A candidate user is in with probability sampling / 2: whom the
    device drew is not known. For interactions the draw is known, and the candidate's row is what the interaction
    changes in the contribution: with minus without.

    Args:
        subject: what is audited.
        candidates: who coins were flipped for.
        done: the round.
        members: rows of the users in the sum.
    """

    def __init__(self, subject: Subject, candidates: Candidates, done: Round, members: np.ndarray) -> None:
        self._subject, self._candidates, self._done = subject, candidates, done
        self._drawn = np.intersect1d(done.drawn, members)
        of_users = candidates.held is None
        self.index = np.flatnonzero(np.isin(candidates.rows, members if of_users else self._drawn))
        """(k,) which of the candidates may be in this sum."""
        self.mean = subject.sampling_probability(done.number) / 2 if of_users else 0.5
        self.variance = self.mean * (1 - self.mean)
        users = candidates.rows[self.index]
        self.rows, self.layout = self._contributions(subject.train, users)
        self._base = np.zeros(self.layout.size)
        if not of_users:
            without, _ = self._contributions(candidates.without(subject.train), users)
            self._base = np.asarray(without.sum(axis=0)).reshape(-1)
            self.rows = (self.rows - without).tocsr()

    def _contributions(self, train: Interactions, users: np.ndarray) -> tuple[Any, Layout]:
        subject, done = self._subject, self._done
        return contribution_rows(subject, done.shared, train, users, subject.user_keys, done.key)

    @cached_property
    def _known(self) -> np.ndarray:
        others = np.setdiff1d(self._drawn, self._candidates.rows)
        if not len(others):
            return self._base
        total = sum_over(self._subject, self._done.shared, self._subject.train, others, self._done.key)
        return np.asarray(self._base + self.layout.flatten(total.totals))

    def left_over(self, totals: Mapping[str, Tensor]) -> np.ndarray:
        """Return the (size,) coordinates of a sum less what is expected of it."""
        mean = self.mean * np.asarray(self.rows.sum(axis=0)).reshape(-1)
        return np.asarray(self.layout.flatten(totals) - self._known - mean)

    def spread(self, scores: np.ndarray) -> np.ndarray:
        """Return (n,) scores of all candidates: 0 for those that can't be in this sum."""
        spread = np.zeros(len(self._candidates.rows))
        spread[self.index] = scores
        return spread
