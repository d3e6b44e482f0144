"""Mechanism: the only place where noise is drawn; what comes out may be published, what goes in may not.

Unit: a user. Adjacency: add or remove one user. Sensitivity: the `BoundedSum` carries it (L2, all blocks jointly), and
it must be the plan's clipping_norm. Released: every block of the sum + Gaussian noise of std noise_multiplier x
clipping_norm on every coordinate (one joint Gaussian mechanism), divided by a public number.

Limit, floating point: a Gaussian drawn in float64 does not reach every number, and the low bits of sum + noise can
tell which sum it was (Mironov 2012; Casacuberta et al. 2022). Noisy sums are therefore rounded to a grid of about std
/ 2^20; near the mean, billions of draws fall together on it. That hides the low bits in practice; it is no proof. Far
out in the tail draws are sparse again, beyond 8.6 std there are none (probability 2^-53 a coordinate), and the sum
itself was added up in float64, which can lift its sensitivity by about a relative 1e-16 for every user in it.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fedrec.errors import PrivacyError
from fedrec.privacy.clipping import BoundedSum
from fedrec.privacy.plan import PrivacyPlan
from fedrec.randomness import Key

GRID_BITS = 20


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
            digest.update(_bytes(block))
        return digest.hexdigest()


def release(bounded_sum: BoundedSum, plan: PrivacyPlan, round: int, key: Key) -> Release:
    """Add the plan's noise to a bounded sum and divide by the public expected cohort size.

    The noise of a block follows from (key, round, block name): the same arguments give the same release, whatever other
    blocks there are. A key from a seed (simulation) draws through Opacus; its torch generator has a 32-bit seed and
    hides nothing from who knows the config. A key from the operating system (deployment) draws from ChaCha20, keyed
    with the sum too: two different sums of one round never share their noise, so their difference stays hidden.

    Args:
        bounded_sum: sums of contributions clipped to the plan's clipping_norm, float64; left as it is.
        plan: the plan whose ledger already holds the intention of this round.
        round: from 1.
        key: the run's key.

    Returns:
        The release, on the device of the sums.

    Raises:
        PrivacyError: where the sum has another clipping norm, is not finite or not float64, or the round not planned.

    Privacy:
        Spends one round of `plan.event_for_round(round)`: Gaussian mechanism, unit user, add-or-remove, L2 sensitivity
        `plan.clipping_norm`. An empty cohort spends the same. The divisor is sampling_probability x population_size and
        never the realised cohort.
    """
    event = plan.event_for_round(round)
    _check(bounded_sum, plan.clipping_norm)
    divisor = plan.cohort_size_for_round(round)
    std = event.noise_multiplier * bounded_sum.clipping_norm
    blocks = {}
    for name, total in sorted(bounded_sum.totals.items()):
        block_key = key.fold("noise", round, name)
        draw = _add_system_noise if key.from_system else _add_opacus_noise
        noisy = draw(total.detach().cpu(), event.noise_multiplier, bounded_sum.clipping_norm, block_key)
        blocks[name] = _round_to_grid(noisy, std).to(total.device) / divisor
    return Release(blocks, dict.fromkeys(blocks, std / divisor), divisor)


def publish_exact(bounded_sum: BoundedSum, divisor: float) -> Release:
    """Divide a sum without adding noise, for runs without privacy.

    Args:
        bounded_sum: any sums; they are divided in place, for they may be large.
        divisor: positive.

    Raises:
        PrivacyError: where the divisor is not positive and finite.

    Privacy:
        None: the sums leave as they are, and no epsilon may be stated.
    """
    if not 0 < divisor < math.inf:
        raise PrivacyError(f"divisor={divisor} is not a positive finite number; give the public expected cohort size")
    blocks = {name: total.detach().div_(divisor) for name, total in sorted(bounded_sum.totals.items())}
    return Release(blocks, dict.fromkeys(blocks, 0.0), float(divisor))


def _check(bounded_sum: BoundedSum, clipping_norm: float) -> None:
    """Raise where the sum is not what the plan's noise is calibrated to."""
    if bounded_sum.clipping_norm != clipping_norm:
        raise PrivacyError(
            f"the sum was clipped to {bounded_sum.clipping_norm}, the plan's noise is for "
            f"clipping_norm={clipping_norm}; clip with the plan's norm"
        )
    for name, total in bounded_sum.totals.items():
        if total.dtype != torch.float64:
            raise PrivacyError(
                f"block {name!r} is summed in {total.dtype}; sums of contributions must be torch.float64"
            )
        if not bool(torch.isfinite(total).all()):
            raise PrivacyError(f"the sum of block {name!r} is not finite; every contribution must go through clipping")


def _add_opacus_noise(total: Tensor, noise_multiplier: float, clipping_norm: float, key: Key) -> Tensor:
    """Return total + noise, drawn by Opacus for a sum that is already clipped (its `step` would clip per example)."""
    from opacus.optimizers import DPOptimizer

    parameter = torch.nn.Parameter(torch.zeros_like(total))
    optimizer = DPOptimizer(
        torch.optim.SGD([parameter], lr=1.0),
        noise_multiplier=noise_multiplier,
        max_grad_norm=clipping_norm,
        expected_batch_size=None,
        loss_reduction="sum",
        generator=key.torch_generator(),
    )
    parameter.summed_grad = total.clone()  # type: ignore[attr-defined]  # Opacus' own field; a clone, for it is marked as used
    optimizer.add_noise()
    if parameter.grad is None:
        raise PrivacyError("Opacus added no noise; fedrec needs opacus>=1.6,<1.7")
    return parameter.grad


def _add_system_noise(total: Tensor, noise_multiplier: float, clipping_norm: float, key: Key) -> Tensor:
    """Return total + noise from the ChaCha20 stream of a key that depends on the total as well."""
    own_key = key.fold(hashlib.blake2b(_bytes(total), digest_size=32).hexdigest())
    draws = torch.from_numpy(own_key.normals(total.numel())).reshape(total.shape)
    return total + noise_multiplier * clipping_norm * draws


def _round_to_grid(noisy: Tensor, std: float) -> Tensor:
    """Round to multiples of the power of two at or below std / 2^20; see the limit at the top."""
    spacing = 2.0 ** (math.floor(math.log2(std)) - GRID_BITS)
    return torch.round(noisy / spacing) * spacing


def _bytes(block: Tensor) -> bytes:
    """Return the values of a block as bytes."""
    return block.detach().cpu().contiguous().numpy().tobytes()
