"""A node's round under an example-level plan: noisy steps over its interactions, and how far they moved the items.

Unit: an interaction, one training row: one user met one item. Adjacency: add or remove one. Sensitivity, noise and what
is released: `fedrec.privacy.example_level`. What leaves the node in a round is how far its `steps_per_round` noisy
steps moved the item table; the user vectors that were trained with it stay. Both follow from noisy sums alone, so all
rounds are the Gaussian mechanisms of the plan, composed adaptively: round by round the table comes from the server. No
two nodes hold the same interaction, so a plan covers all of them at the price of one.

Whether and with which negatives an interaction takes part in a step follows from the key of the step and from who met
what, not from its place among the others: adding or removing one changes nothing about the rest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from fedrec.data.interactions import Interactions
from fedrec.errors import PrivacyError
from fedrec.federated.cohort import CohortDiagnostics, draw_cohort
from fedrec.models.example_mf import ExampleMatrixFactorization
from fedrec.privacy.example_level import NoisySteps, Sample, rows, train
from fedrec.privacy.mechanism import NoisySum
from fedrec.privacy.plan import PrivacyPlan
from fedrec.randomness import Key


@dataclass(frozen=True, eq=False)
class ExampleNode:
    """What a node trains on, and its public place among the nodes.

    Args:
        interactions: of the node's users alone.
        user_keys: (num_users,) uint64.
        partition: number of the node, from 0.
        num_nodes: of the run.
    """

    interactions: Interactions
    user_keys: np.ndarray
    partition: int = 0
    num_nodes: int = 1


@dataclass(frozen=True, eq=False)
class Answer:
    """The last round that a node answered; kept on the node, so that asking again brings the same answer.

    Args:
        round: from 1.
        vectors: (num_users, dim) float64 user vectors after the round.
        moves: (num_items, dim) float64, what was sent.
        diagnostics: of the round.

    Privacy:
        The moves are covered by the plan; the vectors are as well, but belong to the node's users and are never sent.
    """

    round: int
    vectors: Tensor
    moves: Tensor
    diagnostics: CohortDiagnostics = field(default_factory=CohortDiagnostics)

    def to_tensors(self, run_id: str) -> dict[str, Tensor]:
        """Return what the node's store keeps of a run."""
        counts = [self.round, *vars(self.diagnostics).values()]
        return {
            "example_run": torch.tensor(list(run_id.encode()), dtype=torch.uint8),
            "example_counts": torch.tensor(counts, dtype=torch.int64),
            "example_vectors": self.vectors,
            "example_moves": self.moves,
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], run_id: str) -> Answer | None:
        """Read what `to_tensors` wrote; None where nothing of this run is there."""
        run = tensors.get("example_run")
        if run is None or bytes(run.tolist()) != run_id.encode():
            return None
        number, *counts = tensors["example_counts"].tolist()
        return cls(number, tensors["example_vectors"], tensors["example_moves"], CohortDiagnostics(*counts))


def answer_round(
    model: ExampleMatrixFactorization,
    shared: Mapping[str, Tensor],
    node: ExampleNode,
    plan: PrivacyPlan,
    round: int,
    key: Key,
    noise_key: Key,
    last: Answer | None = None,
    max_rows: int = 0,
    device: torch.device | None = None,
) -> tuple[NoisySum, Answer]:
    """Do a node's noisy steps of a round, or send again what it answered before.

    Args:
        model: the model.
        shared: shared parameters as broadcast.
        node: the node's interactions.
        plan: whose unit is an interaction.
        round: from 1.
        key: of the run: what samples and negatives follow from.
        noise_key: what noise is drawn from; no two runs whose data or settings differ may share it.
        last: the node's last answer; user vectors go on from there, or start from zero.
        max_rows: item rows of the examples whose gradients are taken at once; the model's own number where 0.
        device: where to compute; the CPU where None.

    Returns:
        What leaves: {"items": how far the table moved, (M, dim) float64}; and what the node keeps.

    Raises:
        PrivacyError: where a later round was answered before, the shared parameters are not finite, or the plan's unit
            is another one.

    Privacy:
        Spends one round of the plan: `steps_per_round` Gaussian mechanisms on Poisson samples of the interactions,
        sensitivity `max_grad_norm`. Number of users, of steps and expected batch are public; the number of
        interactions shows nowhere. The diagnostics are private.
    """
    if last is not None and last.round >= round:
        return _again(last, round, plan)
    config, items = model.config, shared["items"].to(torch.float64)
    vectors = torch.zeros(node.interactions.num_users, config.dim, dtype=torch.float64)
    if last is not None and last.vectors.shape == vectors.shape:
        vectors = last.vectors
    place = f"{node.partition} of {node.num_nodes}"
    noise_key = noise_key.fold("noise", round, place, _digest(items, vectors))
    factors = model.factors(rows(vectors), rows(items)).to(device)
    diagnostics = train(
        factors,
        Draws(model, node, plan.event_for_round(round).sampling_probability, key.fold("round", round)).sample,
        NoisySteps.of_round(plan, round, node.num_nodes),
        config.local_learning_rate,
        noise_key,
        max(1, (max_rows or model.batch_cells) // (1 + config.num_negatives)),
    )
    moves = factors.items.weight.detach().cpu() - items
    counts = CohortDiagnostics(diagnostics.num_examples, diagnostics.num_clipped, diagnostics.num_zeroed)
    answer = Answer(round, factors.users.weight.detach().cpu(), moves, counts)
    return NoisySum({"items": moves}, plan.clipping_norm), answer


def _again(last: Answer, round: int, plan: PrivacyPlan) -> tuple[NoisySum, Answer]:
    if last.round > round:
        raise PrivacyError(
            f"round {round} is asked for after round {last.round} was answered; its answer is gone, and a second one "
            "would tell more than the plan covers: this node refuses"
        )
    return NoisySum({"items": last.moves}, plan.clipping_norm), last


def example_keys(interactions: Interactions, user_keys: np.ndarray, key: Key) -> np.ndarray:
    """Name every interaction by who met what, so that its draws follow from nothing else.

    The same user and item again is told apart by its number among them: whichever of them is removed, the names left
    are those of one less.

    Args:
        interactions: n of them.
        user_keys: (num_users,) uint64.
        key: of the run.

    Returns:
        (n,) uint64; different interactions have different ones, but for a chance of 2^-64 a pair.

    Privacy:
        Private, as the interactions are.
    """
    users, items = interactions.users, interactions.items
    pairs = users * interactions.num_items + items
    order = np.argsort(pairs, kind="stable")
    new = np.concatenate([[True], np.diff(pairs[order]) != 0])[: len(order)]
    starts = np.flatnonzero(new)
    times_before = np.empty(len(pairs), dtype=np.uint64)
    times_before[order] = np.arange(len(pairs)) - np.repeat(starts, np.diff(np.append(starts, len(pairs))))
    of_user = _words(key.fold("example user"), user_keys)[users]
    return np.asarray(_words(key.fold("example item"), of_user ^ items.astype(np.uint64)) ^ times_before)


def _words(key: Key, numbers: np.ndarray) -> np.ndarray:
    """Return (n,) uint64 that follow pseudo-randomly from (n,) uint64."""
    return np.ascontiguousarray(key.user_words(numbers, 2)[:, :2]).view("<u8")[:, 0]


class Draws:
    """The Poisson samples of a round, and the negatives of the examples in them."""

    def __init__(self, model: ExampleMatrixFactorization, node: ExampleNode, probability: float, key: Key) -> None:
        self._model, self._probability, self._key = model, probability, key
        self._interactions = node.interactions
        self._example_keys = example_keys(node.interactions, node.user_keys, key)

    def sample(self, step: int) -> Sample:
        """Return the (B,) users and the (B, 1 + num_negatives) items of a step, each positive first."""
        key, known = self._key.fold("step", step), self._interactions
        drawn = draw_cohort(self._example_keys, self._probability, key)
        items = known.items[drawn]
        negatives = self._model.draw_negatives(items, known.num_items, self._example_keys[drawn], key)
        return torch.from_numpy(known.users[drawn]), torch.from_numpy(np.column_stack([items, negatives]))


def _digest(*tensors: Tensor) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
