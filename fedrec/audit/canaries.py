"""Canaries with coin-flip membership, for the lower bound of one run (Steinke et al. 2023).

The auditor is the worst attacker the claim is about: knows everything but the coins (and whom the canaries' devices
drew), sees every release and takes the real users' sum off it. Unit: a canary is a user. Adjacency: add or remove it.

    contributions   made-up contributions, each one coordinate of one block, far above the clipping norm and, in tables,
                    sent in several parts of the same row: an honest mechanism brings all that back to the norm
    users           made-up users with random histories that go through the model's own fit and contribution
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedrec.audit.decoding import decode
from fedrec.audit.subject import Round, Subject, generator_of, rounds
from fedrec.audit.vectors import contribution_rows
from fedrec.data.batches import user_batches
from fedrec.data.interactions import Interactions, Vocabulary
from fedrec.errors import PrivacyError
from fedrec.federated import cohort
from fedrec.models.blocks import Contributions, Dense, RowSparse
from fedrec.privacy.audit_bounds import MIN_CANARIES, sampled_gaussian_scores
from fedrec.privacy.clipping import BoundedSum
from fedrec.privacy.plan import PrivacyPlan
from fedrec.randomness import Key, user_keys

EXCESS = 1000.0
PARTS = 64
MAX_RUNS = 5
HISTORY = 12
_CHUNK = 256


@dataclass(frozen=True, eq=False)
class Scores:
    """What an attack on some canaries came to.

    Args:
        kind: "contributions" or "users".
        block: the block they were in, "" for all of them together.
        scores: (n,) higher means "in".
        included: (n,) bool, the coins.
    """

    kind: str
    block: str
    scores: np.ndarray
    included: np.ndarray


def attack_contributions(subject: Subject, num_canaries: int, key: Key) -> list[Scores]:
    """Run the config with one-coordinate canaries and score each by what was released along it.

    Where a block has too few coordinates for its part of the canaries, there are several runs, up to `MAX_RUNS`. A
    canary is in one of them only, so all runs together are as private for it as its own.

    Returns:
        All canaries together, then each block with enough of them.
    """
    totals = subject.model.totals(subject.model.init(subject.catalogue, key).shared)
    part, smallest = num_canaries / len(totals), min(total.numel() for total in totals.values())
    num_runs = min(math.ceil(part / smallest), MAX_RUNS)
    runs = [_contributions_run(subject, num_canaries // num_runs, key.fold("run", run)) for run in range(num_runs)]
    names, scores, included = (np.concatenate(column) for column in zip(*runs, strict=True))
    blocks = [name for name in totals if (names == name).sum() >= MIN_CANARIES] if len(totals) > 1 else []
    return [Scores("contributions", "", scores, included)] + [
        Scores("contributions", name, scores[names == name], included[names == name]) for name in blocks
    ]


def _contributions_run(subject: Subject, num_canaries: int, key: Key) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the block, the score and the coin of each canary of one run."""
    plan = plan_of(subject)
    totals = subject.model.totals(subject.model.init(subject.catalogue, key).shared)
    names, coordinates = _places(totals, num_canaries, key.fold("places"))
    included = key.fold("coins").uniforms(len(names)) < 0.5
    keys = user_keys(np.array([f"canary {number}" for number in range(len(names))]))

    def join(total: BoundedSum, shared: Mapping[str, Tensor], round_key: Key, sampling: float) -> None:
        drawn = np.flatnonzero(included)
        drawn = drawn[cohort.draw_cohort(keys[drawn], sampling, round_key)]
        for name in totals:
            mine = drawn[names[drawn] == name]
            for first in range(0, len(mine), _CHUNK):
                total.add(_one_coordinate(total, name, coordinates[mine[first : first + _CHUNK]]))

    scores = np.zeros(len(names))
    for done in rounds(subject, key, join=join, keep_sums=True):
        values = np.empty(len(names))
        for name, left in left_over(done):
            mine = names == name
            values[mine] = left[coordinates[mine]] / plan.clipping_norm
        event = plan.event_for_round(done.number)
        scores += sampled_gaussian_scores(values, event.noise_multiplier, event.sampling_probability)
    return names, scores, included


def attack_users(subject: Subject, num_canaries: int, key: Key) -> list[Scores]:
    """Run the config once with made-up users and decode jointly who of them was in."""
    plan = plan_of(subject)
    users = _made_up_users(subject.train, num_canaries, generator_of(key.fold("histories")))
    keys = user_keys(users.user_ids.ids)
    included = key.fold("coins").uniforms(num_canaries) < 0.5

    def join(total: BoundedSum, shared: Mapping[str, Tensor], round_key: Key, sampling: float) -> None:
        drawn = np.flatnonzero(included)
        drawn = drawn[cohort.draw_cohort(keys[drawn], sampling, round_key)]
        batches = user_batches(users, drawn, subject.model.batch_cells, keys=keys)
        total.merge(
            cohort.sum_contributions(subject.model, shared, batches, plan.clipping_norm, round_key, subject.device)[0]
        )

    scores = np.zeros(num_canaries)
    for done in rounds(subject, key, join=join, keep_sums=True):
        event = plan.event_for_round(done.number)
        present = event.sampling_probability / 2
        candidates, layout = contribution_rows(subject, done.shared, users, np.arange(num_canaries), keys, done.key)
        found = dict(left_over(done))
        left = np.concatenate([found[name] for name in layout.names])
        left = left - present * np.asarray(candidates.sum(axis=0)).reshape(-1)
        std = event.noise_multiplier * plan.clipping_norm
        scores += decode(candidates, left, std, present * (1 - present)) / event.noise_multiplier**2
    return [Scores("users", "", scores, included)]


def plan_of(subject: Subject) -> PrivacyPlan:
    """Return the plan that canaries test.

    Raises:
        PrivacyError: where there is none.
    """
    if subject.plan is None:
        raise PrivacyError("canaries test a claim, and the config makes none; add a [privacy] table")
    return subject.plan


def left_over(done: Round) -> Iterator[tuple[str, np.ndarray]]:
    """Go through the blocks of a release, as sums, with the real users' part taken off; in the order of the sums."""
    if done.others is None:
        raise PrivacyError("this round did not keep its sums; run it with keep_sums")
    for name, known in done.others.totals.items():
        yield name, numbers(done.release.blocks[name]) * done.release.divisor - numbers(known)


def numbers(tensor: Tensor) -> np.ndarray:
    """Return the (size,) float64 values of a block."""
    return np.asarray(tensor.detach().to(torch.float64).cpu().reshape(-1).numpy())


def _places(totals: Mapping[str, Tensor], num: int, key: Key) -> tuple[np.ndarray, np.ndarray]:
    """Spread canaries evenly over the blocks and return the block and the coordinate of each.

    A block too small for its part leaves the rest to the larger ones.
    """
    names, places, left = [], [], num
    for rank, (name, total) in enumerate(sorted(totals.items(), key=lambda entry: entry[1].numel())):
        count = min(total.numel(), left // (len(totals) - rank))
        places.append(generator_of(key.fold(name)).choice(total.numel(), size=count, replace=False, shuffle=False))
        names.append(np.full(count, name, dtype=object))
        left -= count
    return np.concatenate(names), np.concatenate(places)


def _one_coordinate(total: BoundedSum, name: str, coordinates: np.ndarray) -> Contributions:
    """Return the contributions of canaries that are all in block `name`, far above the norm."""
    num, size = len(coordinates), EXCESS * total.clipping_norm
    blocks: dict[str, Dense | RowSparse] = {}
    for block, sums in total.totals.items():
        where = torch.from_numpy(coordinates) if block == name else torch.zeros(num, dtype=torch.int64)
        amount = size if block == name else 0.0
        if sums.ndim == 2:
            width, parts = sums.shape[1], PARTS if block == name else 1
            values = torch.zeros(num, parts, width, dtype=torch.float64)
            values[torch.arange(num), :, where % width] = amount / parts
            blocks[block] = RowSparse((where // width)[:, None].repeat(1, parts), values)
        else:
            values = torch.zeros(num, sums.numel(), dtype=torch.float64)
            values[torch.arange(num), where] = amount
            blocks[block] = Dense(values.reshape(num, *sums.shape))
    return blocks


def _made_up_users(like: Interactions, num: int, generator: np.random.Generator) -> Interactions:
    """Return users with random histories of distinct items, with the columns that the data has."""
    length = min(HISTORY, like.num_items)
    items = np.concatenate([generator.choice(like.num_items, size=length, replace=False) for _ in range(num)])
    picked = generator.integers(0, max(len(like), 1), size=len(items))
    columns: dict[str, Any] = {
        "times": None if like.times is None else np.tile(np.arange(length, dtype=np.int64), num),
        "ratings": None if like.ratings is None else like.ratings[picked],
        "context": {name: column[picked] for name, column in like.context.items()},
        "user_attributes": {},
        "user_attribute_ids": {},
    }
    ids = Vocabulary(np.array([f"made-up user {number}" for number in range(num)]))
    return replace(like, users=np.repeat(np.arange(num), length), items=items, user_ids=ids, **columns)
