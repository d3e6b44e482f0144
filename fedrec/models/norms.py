"""Squared norms of what each user adds."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fedrec.compiled import compiled_for, over_rows
from fedrec.models.kernels import norms as kernels


def squared_norms(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return each user's squared L2 norm in float64.

    It is a function of the user's own numbers, to the last bit: neither their order nor padding nor who else is in the
    batch changes it, so that whether, and how far, a user is clipped is nobody else's doing.

    Args:
        values: (B, ...), or (B, m, ...) with a mask.
        mask: (B, m) bool, the rows that count; the others are never looked at.

    Returns:
        (B,) float64; infinity where a number that counts is not finite.
    """
    num_users = len(values)
    if mask is None:
        rows = values.reshape(num_users, 1, -1) if values.numel() else values.new_zeros(num_users, 1, 0)
        mask = torch.ones(rows.shape[:2], dtype=torch.bool, device=values.device)
    else:
        rows = values.reshape(*mask.shape, -1) if values.numel() else values.new_zeros(*mask.shape, 0)
    if not compiled_for(rows):
        return _in_plain_torch(rows.to(torch.float64).masked_fill(~mask[:, :, None], 0.0).flatten(1))
    sums = np.empty(num_users)
    over_rows(kernels.sums_of_squares, num_users, rows.detach().contiguous().numpy(), mask.numpy(), sums)
    return torch.from_numpy(sums)


def _in_plain_torch(values: Tensor) -> Tensor:
    """Do what `sums_of_squares` does with (B, n) float64, operation by operation."""
    if not values.shape[1]:
        return values.new_zeros(len(values))
    largest = values.abs().amax(dim=1)
    finite = torch.isfinite(largest)
    values, largest = torch.where(finite[:, None], values, 0.0), torch.where(finite, largest, 0.0)
    exponents = torch.frexp(largest).exponent.to(torch.float64)
    half = (exponents / 2).floor()
    squares = (values * torch.exp2(-half)[:, None] * torch.exp2(half - exponents)[:, None]).square()
    parts = []
    for bits in (kernels.MOST_BITS, kernels.MOST_BITS - 27, kernels.MOST_BITS - 54):
        cut = (squares + 1.5 * 2.0**bits) - 1.5 * 2.0**bits
        parts.append(cut.sum(dim=1))
        squares = squares - cut
    total = parts[0] + (parts[1] + parts[2])
    return torch.where(finite, total * torch.exp2(exponents) * torch.exp2(exponents), torch.inf)
