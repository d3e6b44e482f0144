"""Clipping: bound what one user adds to a sum, over all blocks jointly, and keep the bound with the sum.

Unit: a user. Adjacency: add or remove one user. The L2 sensitivity of a `BoundedSum` is its `clipping_norm`, whatever
users send: duplicate rows are coalesced before the norm is taken, norms are float64, and a user with any non-finite
entry adds exactly nothing.

It holds in float64, too (Casacuberta et al. 2022 show what goes wrong in plain sums): each number of a user is rounded
to a multiple of `quantum`, about 2^-26 clipping norms, before it is added. All sums over up to `MOST_USERS` users are
then exact, so that what one user adds is the same whoever else is there. Clipping leaves room for the rounding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Protocol

import torch
from torch import Tensor

from fedrec.errors import PrivacyError, ProtocolError

_QUANTUM_BITS = 26
MOST_USERS = 2 ** (52 - _QUANTUM_BITS)


class ClippableBlock(Protocol):
    """What clipping needs to know of one named block of B users' contributions."""

    def finite(self) -> Tensor:
        """Return (B,) bool: True where every entry of the user's part is finite."""
        ...

    def squared_norms(self) -> Tensor:
        """Return (B,) float64 squared L2 norms."""
        ...

    def add_to(self, total: Tensor, scale: Tensor, quantum: float = 0.0) -> None:
        """Add sum over users of scale[u] x part[u], rounded to multiples of the quantum; see `fedrec.models.blocks`."""
        ...


@dataclass(eq=False)
class BoundedSum:
    """A running sum of clipped contributions that carries its sensitivity: the only thing noise is added to.

    Args:
        totals: block name -> sum over users, float64.
        clipping_norm: L2 bound on what one user added over all blocks; `math.inf` where nothing was clipped.

    Privacy:
        Unit user, add-or-remove, L2 sensitivity `clipping_norm`. Nothing is released here: the sum itself is private.
    """

    totals: dict[str, Tensor]
    clipping_norm: float

    def add(self, contributions: Mapping[str, ClippableBlock]) -> Tensor:
        """Clip every user's whole contribution and add it.

        Args:
            contributions: the named blocks of the same B users; the names must be those of `totals`.

        Returns:
            (B,) float64 scale that each user's contribution was multiplied with (private: a diagnostic).

        Raises:
            ProtocolError: where the block names are not those of the sum.

        Privacy:
            Raises the sum by a vector of L2 norm at most `clipping_norm` for each user, the same whoever else is there.
        """
        if contributions.keys() != self.totals.keys():
            raise ProtocolError(
                f"contribution has blocks {sorted(contributions)}, the sum has {sorted(self.totals)}; they must agree"
            )
        scales = clip_scales(contributions, self.clipping_norm * (1 - self._room))
        for name, block in contributions.items():
            block.add_to(self.totals[name], scales, self.quantum)
        return scales

    @property
    def quantum(self) -> float:
        """The power of two that all sums are multiples of, in (2^-27, 2^-26] clipping norms; 0 without a norm."""
        if math.isinf(self.clipping_norm):
            return 0.0
        return math.ldexp(1.0, math.frexp(self.clipping_norm)[1] - 1 - _QUANTUM_BITS)

    @property
    def _room(self) -> float:
        """How much rounding n numbers to multiples of the quantum may add to a norm, in clipping norms."""
        return math.sqrt(sum(total.numel() for total in self.totals.values())) * 2.0 ** -(_QUANTUM_BITS + 1)

    def merge(self, other: BoundedSum) -> None:
        """Add the sum of other users; both sums must have been clipped to the same norm.

        Raises:
            PrivacyError: where the clipping norms differ.
            ProtocolError: where the blocks differ in name or shape.

        Privacy:
            The users of the two sums must be disjoint; then the sensitivity stays `clipping_norm`.
        """
        self.check_same_kind(other)
        for name, total in self.totals.items():
            total += other.totals[name].to(total.dtype)

    def check_same_kind(self, other: BoundedSum) -> None:
        """Raise unless the other sum has the same bound and the same blocks.

        Raises:
            PrivacyError: where the clipping norms differ, or only one has its noise already.
            ProtocolError: where the blocks differ in name or shape.

        Privacy:
            Sums of different bounds have no common sensitivity.
        """
        if type(other) is not type(self):
            raise PrivacyError(
                f"a {type(other).__name__} can't be added to a {type(self).__name__}: only one of them has its noise "
                "already; every node must follow the plan's trust model"
            )
        if other.clipping_norm != self.clipping_norm:
            raise PrivacyError(
                f"a sum clipped to {other.clipping_norm} can't be added to one clipped to {self.clipping_norm}; "
                "every node must use the plan's clipping_norm"
            )
        shapes = {name: tuple(total.shape) for name, total in self.totals.items()}
        found = {name: tuple(total.shape) for name, total in other.totals.items()}
        if shapes != found:
            raise ProtocolError(f"a sum has blocks {found}, they must be {shapes}; it comes from another model")


def clip_scales(contributions: Mapping[str, ClippableBlock], clipping_norm: float) -> Tensor:
    """Return the factor min(1, clipping_norm / norm) of each user, 0 for users with a non-finite entry.

    Args:
        contributions: named blocks of the same B users, at least one.
        clipping_norm: positive bound on the joint L2 norm over all blocks; `math.inf` for no clipping.

    Returns:
        (B,) float64 in [0, 1].

    Raises:
        PrivacyError: where `clipping_norm` is not a positive number.

    Privacy:
        |scale x contribution| <= clipping_norm for each user. The quotient is rounded down by a relative 1e-12, so that
        float64 rounding cannot lift the scaled norm above the bound.

    Source:
        McMahan et al., Learning Differentially Private Recurrent Language Models, 2018, section 3 (flat clipping).
    """
    if not clipping_norm > 0:
        raise PrivacyError(f"clipping_norm={clipping_norm} is not positive; give the bound on a user's L2 norm")
    finite = torch.stack([block.finite() for block in contributions.values()]).all(dim=0)
    if math.isinf(clipping_norm):
        return finite.to(torch.float64)
    # block by block: a tensor's own sum over blocks rounds as the number of users has it
    norms = reduce(torch.add, [block.squared_norms() for block in contributions.values()]).sqrt()
    scales = (clipping_norm * (1 - 1e-12) / norms.clamp(min=1e-300)).clamp(max=1.0)
    return torch.where(finite & torch.isfinite(norms), scales, torch.zeros_like(scales))
