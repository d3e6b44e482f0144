"""Mechanism: the only place where noise is drawn; what comes out may be published, what goes in may not.

    release                central trust: the server adds noise to the sum over all users, once
    add_noise_to_users     local trust: the node adds noise for each of its users, before anything leaves it
    publish_noisy, publish_exact    draw nothing: sums that have their noise already, or never get any

Unit: a user. Adjacency: the plan's. Sensitivity: the `BoundedSum` carries the norm that users were clipped to (L2, all
blocks jointly), and it must be the plan's. Released: every coordinate of every block + Gaussian noise of std
noise_multiplier x `plan.sensitivity` (one joint Gaussian mechanism), divided by a public number. How noise is drawn
is in `fedrec.privacy.noise`. (Where the unit is an interaction, each step draws its own: `privacy.example_level`.)
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedrec.errors import PrivacyError
from fedrec.privacy.clipping import MOST_USERS, BoundedSum
from fedrec.privacy.noise import noisy, noisy_for_users, values_of
from fedrec.privacy.plan import PrivacyPlan
from fedrec.randomness import Key


@dataclass(frozen=True, eq=False)
class Release:
    """Noisy blocks that anything may be computed from, with what is publicly known about their noise.

    Args:
        blocks: name -> (noisy sum) / divisor, float64.
        noise_std: name -> std of the noise on every coordinate of that block, after the division.
        divisor: the public number that the sums were divided by.

    Privacy:
        Whatever is computed from a release of `release` alone is covered by the plan (post-processing).
    """

    blocks: dict[str, Tensor]
    noise_std: dict[str, float]
    divisor: float

    def digest(self) -> str:
        """Return 64 hex digits over names, shapes, values and noise: the release's name in the ledger."""
        digest = hashlib.blake2b(digest_size=32, person=b"fedrec-release")
        for name, block in sorted(self.blocks.items()):
            digest.update(
                f"{len(name)}:{name}:{tuple(block.shape)}:{self.noise_std[name]!r}:{self.divisor!r};".encode()
            )
            digest.update(values_of(block))
        return digest.hexdigest()


@dataclass(eq=False)
class NoisySum(BoundedSum):
    """A sum that has all its noise already: it may leave the node, and be published as it is.

    Privacy:
        Unit, adjacency and what is spent are those of the plan that the noise was drawn for.
    """


def release(bounded_sum: BoundedSum, plan: PrivacyPlan, round: int, key: Key) -> Release:
    """Add the plan's noise to a bounded sum and divide by the public expected cohort size: central trust.

    The noise of a block follows from (key, round, block name) and nothing else.

    Args:
        bounded_sum: sums of contributions clipped to the plan's clipping_norm, float64; left as it is.
        plan: the plan whose ledger already holds the intention of this round.
        round: from 1.
        key: the run's key.

    Returns:
        The release, on the device of the sums.

    Raises:
        PrivacyError: where the sum or the round is not what the plan is for, or its noise is drawn on the nodes.

    Privacy:
        Spends one round of `plan.event_for_round(round)`: Gaussian mechanism, unit user, add-or-remove, L2 sensitivity
        `plan.clipping_norm`. An empty cohort spends the same. The divisor is sampling_probability x population_size and
        never the realised cohort.
    """
    std = _noise_std(bounded_sum, plan, round, ("user", "central"))
    divisor = plan.cohort_size_for_round(round)
    blocks = {
        name: noisy(total.detach().cpu(), std, key.fold("noise", round, name)).to(total.device) / divisor
        for name, total in sorted(bounded_sum.totals.items())
    }
    return Release(blocks, dict.fromkeys(blocks, std / divisor), divisor)


def add_noise_to_users(
    bounded_sum: BoundedSum, plan: PrivacyPlan, round: int, user_keys: np.ndarray, key: Key
) -> NoisySum:
    """Give every user behind a sum noise of their own: local trust.

    It follows from (key, round, block name, user), so how users are spread over nodes changes nothing.

    Args:
        bounded_sum: the node's sum over the users of `user_keys`, as in `release`; left as it is.
        plan: the plan whose round the node's ledger already holds.
        round: from 1.
        user_keys: (num_users,) uint64 of the users in the sum, also of those whose contribution is zero.
        key: the run's key, of the node where it is from the operating system.

    Returns:
        The noisy sum, on the CPU.

    Raises:
        PrivacyError: as `release`, or where the plan is not one of local trust.

    Privacy:
        Unit user, replace-one, L2 sensitivity 2 x clipping_norm: each vector is a Gaussian mechanism of its own with
        std noise_multiplier x 2 x clipping_norm. Who takes part is not hidden, and nothing is amplified.
    """
    std = _noise_std(bounded_sum, plan, round, ("user", "local"))
    totals = {
        name: noisy_for_users(total.detach().cpu(), std, key.fold("noise", round, name), user_keys)
        for name, total in sorted(bounded_sum.totals.items())
    }
    return NoisySum(totals, bounded_sum.clipping_norm)


def publish_noisy(total: NoisySum, plan: PrivacyPlan, round: int, num_nodes: int) -> Release:
    """Divide what arrived with its noise by a public number; nothing is drawn.

    Args:
        total: over all nodes: of users' vectors; of how far each node moved the parameters, for unit "interaction".
        plan: of local trust.
        round: from 1.
        num_nodes: public number of nodes, which moves are averaged over.

    Returns:
        The release; its noise is that of the declared population, and unknown (nan) for moves of several noisy steps.

    Raises:
        PrivacyError: where the sum has no noise yet, or the plan is not of local trust.

    Privacy:
        Post-processing of what left the nodes.
    """
    if not isinstance(total, NoisySum) or plan.trust_model != "local":
        found = f"a {type(total).__name__} under trust {plan.trust_model!r} can't be published as it is"
        raise PrivacyError(f"{found}; only local trust brings sums that have their noise")
    if plan.unit == "interaction":
        divisor, std = float(num_nodes), math.nan
    else:
        divisor = plan.cohort_size_for_round(round)
        std = plan.event_for_round(round).noise_multiplier * plan.sensitivity * math.sqrt(plan.population_size)
    blocks = {name: values.detach() / divisor for name, values in sorted(total.totals.items())}
    return Release(blocks, dict.fromkeys(blocks, std / divisor), divisor)


def publish_exact(bounded_sum: BoundedSum, divisor: float) -> Release:
    """Divide a sum without adding noise, for runs without privacy.

    Args:
        bounded_sum: any sums; divided in place.
        divisor: positive.

    Raises:
        PrivacyError: where the divisor is not positive and finite.

    Privacy:
        None: no epsilon may be stated.
    """
    if not 0 < divisor < math.inf:
        raise PrivacyError(f"divisor={divisor} is not a positive finite number; give the public expected cohort size")
    blocks = {name: total.detach().div_(divisor) for name, total in sorted(bounded_sum.totals.items())}
    return Release(blocks, dict.fromkeys(blocks, 0.0), float(divisor))


def _noise_std(bounded_sum: BoundedSum, plan: PrivacyPlan, round: int, claim: tuple[str, str]) -> float:
    """Return the std of a round's noise; raise where the sum is not what the plan is calibrated to."""
    event = plan.event_for_round(round)
    if (plan.unit, plan.trust_model) != claim:
        raise PrivacyError(
            f"the plan is for unit {plan.unit!r} under trust {plan.trust_model!r}, this noise is for unit "
            f"{claim[0]!r} under {claim[1]!r}; noise is drawn where the plan says"
        )
    if bounded_sum.clipping_norm != plan.clipping_norm:
        raise PrivacyError(
            f"the sum was clipped to {bounded_sum.clipping_norm}, the plan's noise is for "
            f"clipping_norm={plan.clipping_norm}; clip with the plan's norm"
        )
    if plan.population_size > MOST_USERS:
        raise PrivacyError(f"population_size={plan.population_size} is above {MOST_USERS}: float64 can't sum so many")
    for name, total in bounded_sum.totals.items():
        if total.dtype != torch.float64:
            raise PrivacyError(f"block {name!r} is summed in {total.dtype}; sums must be torch.float64")
        if not bool(torch.isfinite(total).all()):
            raise PrivacyError(f"the sum of block {name!r} is not finite; every contribution must go through clipping")
    return event.noise_multiplier * plan.sensitivity
