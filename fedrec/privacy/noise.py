"""Noise: a Gaussian of a given std on every coordinate, from a simulation's seed or from the operating system.

A key from the operating system (deployment) draws from ChaCha20, keyed with the sum too: two different sums never share
their noise, so their difference stays hidden. What comes out is the sum plus a real-valued Gaussian, correctly rounded
to a grid of about std / 2^20: attacks on floating-point noise (Mironov 2012) do not apply, see
`fedrec.privacy.rounded_gaussian` for the proof.

A key from a seed (simulation) draws through Opacus, in floating point, and rounds to the same grid. The whole state of
its generator comes from the key, so different draws share no noise. It hides nothing from who knows the seed or can
guess it, nor from who knows the noise on a few thousand coordinates of a block (of items that nobody has, say): the
generator is a Mersenne twister, and its state follows from them. A simulation measures utility, it does not hide data.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
import torch
from torch import Tensor

from fedrec.errors import PrivacyError
from fedrec.privacy.rounded_gaussian import grid_spacing, rounded_noisy
from fedrec.randomness import Key

GRID_BITS = 20


def noisy(total: Tensor, std: float, key: Key) -> Tensor:
    """Add Gaussian noise and round to the grid.

    Args:
        total: (...) float64, on the CPU; left as it is.
        std: of the noise on every coordinate.
        key: what the draws follow from; never used for anything else.

    Returns:
        (...) float64, multiples of the power of two at or below std / 2^20.

    Privacy:
        A Gaussian mechanism of sensitivity / std, for whatever sensitivity `total` has.
    """
    if key.from_system:
        own_key = key.fold(hashlib.blake2b(values_of(total), digest_size=32).hexdigest())
        return rounded_noisy(total, std, own_key, GRID_BITS)
    return _round_to_grid(_add_opacus_noise(total, std, key), std)


def noisy_for_users(total: Tensor, std: float, key: Key, user_keys: np.ndarray) -> Tensor:
    """Add noise of its own for every user behind a sum: the same as adding it to each user's vector first.

    A simulation draws from Philox with a 128-bit key a user, for speed: there are users x coordinates draws. Every draw
    is rounded to the grid, so that sums are exact, and how users are spread over nodes changes no bit. A deployment
    draws the sum of all users' independent real-valued Gaussians at once, a Gaussian itself: between two of them
    nothing may be rounded.

    Args:
        total: (...) float64 sum over the users, on the CPU; left as it is.
        std: of each user's noise on every coordinate.
        key: of the round and block.
        user_keys: (num_users,) uint64.

    Returns:
        (...) float64.

    Privacy:
        Adds a Gaussian of std `std` for each user; draws of different users are independent.
    """
    if not len(user_keys):
        return total
    if key.from_system:
        users = hashlib.blake2b(np.ascontiguousarray(user_keys).tobytes(), digest_size=32).hexdigest()
        return noisy(total, std * math.sqrt(len(user_keys)), key.fold(users))
    total, draws, spacing = total.clone(), np.empty(tuple(total.shape)), grid_spacing(std, GRID_BITS)
    for user in user_keys.tolist():
        key.fold(user).numpy_generator().standard_normal(out=draws)
        np.rint(draws * (std / spacing), out=draws)
        total.add_(torch.from_numpy(draws), alpha=spacing)
    return total


def _add_opacus_noise(total: Tensor, std: float, key: Key) -> Tensor:
    """Return total + noise, drawn by Opacus for a sum that is already clipped (its `step` would clip per example)."""
    from opacus.optimizers import DPOptimizer

    parameter = torch.nn.Parameter(torch.zeros_like(total))
    optimizer = DPOptimizer(
        torch.optim.SGD([parameter], lr=1.0),
        noise_multiplier=1.0,
        max_grad_norm=std,
        expected_batch_size=None,
        loss_reduction="sum",
        generator=key.noise_generator(),
    )
    parameter.summed_grad = total.clone()  # type: ignore[attr-defined]  # Opacus' own field; a clone, for it is marked as used
    optimizer.add_noise()
    if parameter.grad is None:
        raise PrivacyError("Opacus added no noise; fedrec needs opacus>=1.6,<1.7")
    return parameter.grad


def _round_to_grid(noisy: Tensor, std: float) -> Tensor:
    """Round to multiples of the power of two at or below std / 2^20."""
    spacing = grid_spacing(std, GRID_BITS)
    return torch.round(noisy / spacing) * spacing + 0.0  # not -0, which would tell the side of the noisy sum


def values_of(block: Tensor) -> bytes:
    """Return the values of a block as bytes.

    Privacy:
        None: the bytes are as private as the block.
    """
    return block.detach().cpu().contiguous().numpy().tobytes()
