"""Coalescing: equal rows of one user become one, so that what is measured for clipping is what is added."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fedrec.compiled import compiled_for, over_rows
from fedrec.errors import ProtocolError
from fedrec.models.kernels import rows as kernels


def coalesce(ids: Tensor, values: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Sum the values of equal ids within each row, in float64; where no id stands twice, return both as they are.

    Args:
        ids: (B, m) int64, at least 0.
        values: (B, m, ...); zero where the mask is False.
        mask: (B, m) bool, the entries that count; all where None.

    Returns:
        Ids and values of the same shapes, in any order; what is left over has value 0.
    """
    if compiled_for(ids, values) and not any_twice(ids, mask):
        return ids, values
    ids, order = torch.sort(ids, dim=1, stable=True)
    order = order.reshape(*order.shape, *([1] * (values.ndim - 2))).expand_as(values)
    values = torch.gather(values.to(torch.float64), 1, order)
    first = torch.ones_like(ids, dtype=torch.bool)
    first[:, 1:] = ids[:, 1:] != ids[:, :-1]
    if bool(first.all()):
        return ids, values
    slot = torch.cumsum(first, dim=1) - 1
    new_ids = torch.zeros_like(ids).scatter_(1, slot, ids)
    new_values = torch.zeros_like(values)
    new_values.scatter_add_(1, slot.reshape(order.shape[:2] + (1,) * (values.ndim - 2)).expand_as(values), values)
    return new_ids, new_values


def any_twice(ids: Tensor, mask: Tensor | None = None) -> bool:
    """Return whether an id stands twice in a row, among the entries that count; ids (B, m) on the CPU, mask (B, m)."""
    counted = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
    num_rows, rows = highest_row(ids) + 1, ids.numpy()
    if num_rows > max(2**24, rows.size):  # no table has so many rows, or next to none of them is in use
        distinct, rows = np.unique(rows, return_inverse=True)
        num_rows, rows = len(distinct), rows.reshape(ids.shape)
    twice = np.zeros(len(ids), dtype=bool)
    over_rows(kernels.any_twice, len(ids), rows, counted.numpy(), num_rows, twice)
    return bool(twice.any())


def highest_row(ids: Tensor, num_rows: int | None = None) -> int:
    """Return the highest id, -1 where there is none; a kernel must never write outside of a table.

    Raises:
        ProtocolError: where an id is negative, or not below `num_rows`.
    """
    lowest, highest = (int(x) for x in torch.aminmax(ids)) if ids.numel() else (0, -1)
    if lowest < 0 or (num_rows is not None and highest >= num_rows):
        allowed = "0 and up" if num_rows is None else f"0..{num_rows - 1}"
        raise ProtocolError(f"a contribution has row ids {lowest}..{highest}, allowed are {allowed}; check the data")
    return highest


def distinct_items(items: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return each user's items once, whatever the history repeats.

    Args:
        items: (B, L) int64.
        mask: (B, L) bool.

    Returns:
        (B, L) int64 ids and (B, L) float64: 1 for an item met, 0 where padded.
    """
    ids, counts = coalesce(items, mask.to(torch.float64), mask)
    return ids, (counts > 0).to(torch.float64)
