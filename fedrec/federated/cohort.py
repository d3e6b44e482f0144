"""The cohort engine: fit, contribute, clip and sum the users of a node in batches, with memory bounded by the batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from threading import Lock

import numpy as np
import torch
from torch import Tensor

from fedrec.data.batches import UserBatch
from fedrec.errors import PrivacyError
from fedrec.federated.threads import each_in_a_thread
from fedrec.models.protocol import FederatedModel, Trained, UserState, most_users
from fedrec.privacy.clipping import BoundedSum
from fedrec.randomness import Key


@dataclass
class CohortDiagnostics:
    """What a simulation may log of a cohort. Private: not covered by epsilon, and never sent in a deployment.

    Args:
        cohort_size: users drawn.
        num_clipped: users whose contribution was scaled down.
        num_zeroed: users whose contribution was dropped for a non-finite entry.
    """

    cohort_size: int = 0
    num_clipped: int = 0
    num_zeroed: int = 0

    def count(self, scales: Tensor) -> None:
        """Count the users of a batch by the (B,) factors that their contributions were multiplied with.

        Privacy:
            Private, as all of this.
        """
        self.cohort_size += len(scales)
        self.num_zeroed += int((scales == 0).sum())
        self.num_clipped += int(((scales > 0) & (scales < 1 - 1e-3)).sum())  # less is the room that rounding needs

    def merge(self, other: CohortDiagnostics) -> None:
        """Add the counts of other users.

        Privacy:
            Private, as all of this.
        """
        self.cohort_size += other.cohort_size
        self.num_zeroed += other.num_zeroed
        self.num_clipped += other.num_clipped


def draw_cohort(user_keys: np.ndarray, sampling_probability: float, key: Key) -> np.ndarray:
    """Draw every user independently with the same probability (Poisson sampling).

    Args:
        user_keys: (num_users,) uint64; a user's draw depends on nothing but the key and the user's own key.
        sampling_probability: in (0, 1].
        key: key of the round.

    Returns:
        (cohort size,) rows of the users drawn, ascending.

    Raises:
        PrivacyError: where the probability is outside (0, 1].

    Privacy:
        Which users were drawn, and how many, is private: the amplification that the plan claims rests on it.
    """
    if not 0 < sampling_probability <= 1:
        raise PrivacyError(
            f"sampling_probability={sampling_probability} is not in (0, 1]; "
            "it is expected_cohort_size / population_size"
        )
    if sampling_probability == 1:
        return np.arange(len(user_keys))
    draws = key.fold("cohort").user_uniforms(user_keys)[:, 0]
    return np.flatnonzero(draws < sampling_probability)


def sum_contributions(
    model: FederatedModel,
    shared: Mapping[str, Tensor],
    users: Iterable[UserBatch],
    clipping_norm: float,
    key: Key,
    device: torch.device | None = None,
    keep: Callable[[Tensor, UserState], None] | None = None,
) -> tuple[BoundedSum, CohortDiagnostics]:
    """Fit every user, clip each whole contribution and sum.

    Threads are torch's number: they share the rows of a batch, or, where the model says so, each takes every n-th batch
    and has a sum of its own; the same number of threads gives the same bits.

    Args:
        model: the model.
        shared: shared parameters as broadcast.
        users: batches of disjoint users; an empty iterable gives a sum of zeros.
        clipping_norm: joint bound on a user's L2 norm; `math.inf` without privacy.
        key: key of the round, for models that draw.
        device: where to compute; the CPU where None.
        keep: is given (rows, private state) of every batch, one at a time, to store on the node; what training made of
            it where the model says so.

    Returns:
        The bounded sum (on the CPU) and diagnostics.

    Raises:
        PrivacyError: where a norm is given and the model's contributions have no bounded form.

    Privacy:
        Unit user, add-or-remove, L2 sensitivity `clipping_norm`. Nothing is released.
    """
    _check_bounded(model, clipping_norm)
    device = device or torch.device("cpu")
    shared = model.prepare({name: tensor.to(device) for name, tensor in shared.items()})

    def nothing() -> _Part:
        return _Part(BoundedSum(model.totals(shared), clipping_norm), CohortDiagnostics())

    def add(part: _Part, batch: UserBatch) -> None:
        batch = batch.to(device)
        state = model.fit_users(shared, batch, ranking=False)
        contributions = model.contribute(shared, state, batch, key)
        part.diagnostics.count(part.total.add(contributions))
        if keep is not None:
            with keeping:
                trained = contributions.state if isinstance(contributions, Trained) else state
                keep(torch.from_numpy(batch.rows), trained)

    keeping, most = Lock(), most_users(model, shared)
    side_by_side = model.batches_side_by_side and device.type == "cpu"
    held = (few for batch in users for few in batch.split(most))
    first, *others = each_in_a_thread(held, nothing, add, torch.get_num_threads() if side_by_side else 1)
    for other in others:
        first.total.merge(other.total)
        first.diagnostics.merge(other.diagnostics)
    totals = {name: tensor.cpu() for name, tensor in first.total.totals.items()}
    return BoundedSum(totals, clipping_norm), first.diagnostics


def _check_bounded(model: FederatedModel, clipping_norm: float) -> None:
    if np.isfinite(clipping_norm) and not model.bounded:
        raise PrivacyError(
            f"{type(model).__name__} sends statistics that have no bounded form, but clipping_norm={clipping_norm}; "
            "use the bounded form of the model (a config with [privacy] builds it)"
        )


@dataclass
class _Part:
    """What one thread has summed so far."""

    total: BoundedSum
    diagnostics: CohortDiagnostics
