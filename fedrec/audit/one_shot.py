"""The one-shot estimate (Andrew et al. 2023): random directions as canaries, all of them in; an estimate, not a bound.

A direction is a vector over the coordinates of all blocks, drawn from its own number whenever it is needed, a few at a
time, so that memory does not grow with their number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedrec.audit.canaries import EXCESS, left_over, numbers, plan_of
from fedrec.audit.subject import Subject, generator_of, rounds
from fedrec.federated import cohort
from fedrec.models.blocks import Contributions, Dense
from fedrec.privacy.audit_bounds import MIN_CANARIES, OneShot, one_shot_estimate
from fedrec.privacy.clipping import BoundedSum
from fedrec.randomness import Key, user_keys

_NORMALS = 2e8
"""Random numbers to draw at most: where directions are long, there are fewer of them."""
_NUMBERS_AT_ONCE = 2**22


@dataclass(frozen=True)
class OneShotFound:
    """The estimate for one attacker.

    Args:
        knows_others: whether the real users' sum was taken off the releases first; the paper's attacker sees them only.
        num_canaries: directions, all of them in.
        dim: number of coordinates.
        estimate: what came out.
    """

    knows_others: bool
    num_canaries: int
    dim: int
    estimate: OneShot


def estimate_one_shot(subject: Subject, num_canaries: int, confidence: float, key: Key) -> list[OneShotFound]:
    """Run the config once with random directions as canaries and compare their cosines with those of others.

    Releases are added up over rounds, each with the weight of its precision.

    Returns:
        The estimate for an attacker who knows the real users' sum, and for one who sees the releases only.
    """
    plan = plan_of(subject)
    totals = subject.model.totals(subject.model.init(subject.catalogue, key).shared)
    dim = sum(total.numel() for total in totals.values())
    num = max(2 * MIN_CANARIES, min(num_canaries, int(_NORMALS / (dim * (subject.num_rounds + 1)))))
    keys = user_keys(np.array([f"direction {number}" for number in range(num)]))
    chunk = max(1, _NUMBERS_AT_ONCE // dim)

    def join(total: BoundedSum, shared: Mapping[str, Tensor], round_key: Key, sampling: float) -> None:
        drawn = cohort.draw_cohort(keys, sampling, round_key)
        for first in range(0, len(drawn), chunk):
            part = _directions(key, drawn[first : first + chunk], dim) * (EXCESS * plan.clipping_norm)
            total.add(_dense(part, total.totals))

    released, others = np.zeros(dim), np.zeros(dim)
    for done in rounds(subject, key, join=join, keep_sums=True):
        weight, blocks = subject.noise_multiplier(done.number) ** -2, done.release.blocks
        released += weight * done.release.divisor * np.concatenate([numbers(blocks[name]) for name in totals])
        others += weight * np.concatenate([left for _, left in left_over(done)])
    norms = np.maximum(np.linalg.norm([others, released], axis=1), 1e-300)
    seen = torch.from_numpy(np.stack([others, released], axis=1) / norms).to(torch.float32)
    parts = [np.arange(first, min(first + chunk, num)) for first in range(0, num, chunk)]
    cosines = torch.cat([_directions(key, part, dim) @ seen for part in parts]).numpy()
    generator = generator_of(key.fold("bootstrap"))
    estimates = [one_shot_estimate(column, dim, plan.delta, confidence, generator) for column in cosines.T]
    return [OneShotFound(knows, num, dim, one) for knows, one in zip((True, False), estimates, strict=True)]


def _dense(vectors: Tensor, totals: Mapping[str, Tensor]) -> Contributions:
    """Cut (n, dim) vectors into dense blocks in the order of the totals."""
    parts = torch.split(vectors, [total.numel() for total in totals.values()], dim=1)
    return {
        name: Dense(part.reshape(len(vectors), *total.shape))
        for (name, total), part in zip(totals.items(), parts, strict=True)
    }


def _directions(key: Key, wanted: np.ndarray, dim: int) -> Tensor:
    """Return (n, dim) float32 unit vectors, each from its own number."""
    vectors = torch.empty(len(wanted), dim)
    for row, number in zip(vectors, wanted.tolist(), strict=True):
        torch.randn(dim, generator=key.fold("direction", number).torch_generator(), out=row)
        row /= row.norm()
    return vectors
