"""Gradients that were added up over users as they were made, for runs without privacy."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedrec.errors import PrivacyError


@dataclass(frozen=True, eq=False)
class Summed:
    """The sum of some users' parts, which were never apart; no privacy plan accepts it.

    Args:
        total: (...) the sum over the users that count.
        counted: (B,) bool, whose parts are in it: those whose every entry is finite.
    """

    total: Tensor
    counted: Tensor

    def finite(self) -> Tensor:
        """Return (B,) bool: whose parts are in the sum."""
        return self.counted

    def squared_norms(self) -> Tensor:
        """Refuse: a sum does not know its parts.

        Raises:
            PrivacyError: always.
        """
        raise PrivacyError(
            "gradients that were added up over users have no norm for each; under a privacy plan use the bounded form "
            "of the model (a config with [privacy] builds it)"
        )

    def add_to(self, total: Tensor, scale: Tensor, quantum: float = 0.0) -> None:
        """Add the sum to `total` (...); `scale` must be 1 for the users in it and 0 for the others.

        Raises:
            PrivacyError: on any other scale.
        """
        if not torch.equal(scale.cpu(), self.counted.cpu().to(scale.dtype)):
            raise PrivacyError("the parts of a sum can't be scaled one by one; use the bounded form of the model")
        total += self.total
