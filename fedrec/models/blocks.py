"""Contribution blocks: what one user adds to a round, one row of tensors per user, never dense over all items.

A block knows its per-user squared L2 norms (in float64, duplicates coalesced first) and how to add itself, scaled per
user, to a running sum. What is added is what was measured: duplicates are coalesced once, for the norm and for the sum,
so that huge parts that cancel in the norm cannot swamp the sum. All blocks of a user are clipped jointly; see
`fedrec.privacy.clipping`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from fedrec.errors import PrivacyError


class Block(Protocol):
    """One named part of the contributions of B users."""

    def finite(self) -> Tensor:
        """Return (B,) bool: True where every entry of the user's part is finite."""
        ...

    def squared_norms(self) -> Tensor:
        """Return (B,) float64: the squared L2 norm of each user's part, duplicates coalesced."""
        ...

    def add_to(self, total: Tensor, scale: Tensor) -> None:
        """Add sum over users of scale[u] x part[u] to `total` in place; users of scale 0 add exactly nothing."""
        ...


Contributions = Mapping[str, Block]
"""Named blocks of the same B users; a user's contribution is the concatenation of that user's part of every block."""


def _zero_unused(values: Tensor, scale: Tensor) -> Tensor:
    """Replace the rows of users with scale 0 by zeros, so that a NaN there is gone (0 x NaN is NaN)."""
    used = (scale != 0).reshape(-1, *([1] * (values.ndim - 1)))
    return torch.where(used, values, torch.zeros((), dtype=values.dtype, device=values.device))


def _finite_rows(values: Tensor) -> Tensor:
    """Return (B,) bool for (B, ...) values: True where the whole row is finite."""
    return torch.isfinite(values).flatten(start_dim=1).all(dim=1)


def coalesce(ids: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Sum the values of equal ids within each row; (B, m) ids and (B, m, ...) values keep their shapes."""
    ids, order = torch.sort(ids, dim=1, stable=True)
    duplicated = bool((ids[:, 1:] == ids[:, :-1]).any())
    order = order.reshape(*order.shape, *([1] * (values.ndim - 2))).expand_as(values)
    values = torch.gather(values, 1, order)
    if not duplicated:
        return ids, values
    first = torch.ones_like(ids, dtype=torch.bool)
    first[:, 1:] = ids[:, 1:] != ids[:, :-1]
    slot = torch.cumsum(first, dim=1) - 1
    new_ids = torch.zeros_like(ids).scatter_(1, slot, ids)
    new_values = torch.zeros_like(values)
    new_values.scatter_add_(1, slot.reshape(order.shape[:2] + (1,) * (values.ndim - 2)).expand_as(values), values)
    return new_ids, new_values


def distinct_items(items: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return each user's items once, whatever the history repeats.

    Args:
        items: (B, L) int64.
        mask: (B, L) bool.

    Returns:
        (B, L) int64 ids and (B, L) float64: 1 for an item met, 0 where padded.
    """
    ids, counts = coalesce(items, mask.to(torch.float64))
    return ids, (counts > 0).to(torch.float64)


@dataclass(frozen=True, eq=False)
class Dense:
    """A dense part: `values` (B, ...) is added to a total of shape (...)."""

    values: Tensor

    def finite(self) -> Tensor:
        """Return (B,) bool: every value is finite."""
        return _finite_rows(self.values)

    def squared_norms(self) -> Tensor:
        """Return (B,) float64 squared norms."""
        return self.values.flatten(start_dim=1).to(torch.float64).square().sum(dim=1)

    def add_to(self, total: Tensor, scale: Tensor) -> None:
        """Add the scaled sum over users to `total` (...)."""
        values = _zero_unused(self.values, scale).flatten(start_dim=1)
        total += (scale.to(total.dtype) @ values.to(total.dtype)).reshape(total.shape)


@dataclass(frozen=True, eq=False)
class RowSparse:
    """Some rows of a table: row `ids[u, j]` gets `values[u, j]`; `total` is (num_rows, d).

    Args:
        ids: (B, m) int64 rows; padding has values of zero (id 0).
        values: (B, m, d).
    """

    ids: Tensor
    values: Tensor

    def finite(self) -> Tensor:
        """Return (B,) bool: every value is finite."""
        return _finite_rows(self.values)

    @cached_property
    def _coalesced(self) -> tuple[Tensor, Tensor]:
        return coalesce(self.ids, self.values.to(torch.float64))

    def squared_norms(self) -> Tensor:
        """Return (B,) float64 squared norms after summing duplicate ids."""
        return self._coalesced[1].square().sum(dim=(1, 2))

    def add_to(self, total: Tensor, scale: Tensor) -> None:
        """Add the scaled rows of all users to `total` (num_rows, d)."""
        ids, values = self._coalesced
        values = _zero_unused(values, scale) * scale[:, None, None]
        total.index_add_(0, ids.reshape(-1), values.reshape(-1, values.shape[-1]).to(total.dtype))


@dataclass(frozen=True, eq=False)
class RowOuter:
    """Rows of a table that are all multiples of one vector: row `ids[u, j]` gets `weights[u, j] * vectors[u]`.

    Args:
        ids: (B, m) int64 rows; padding has weight zero (id 0).
        weights: (B, m).
        vectors: (B, d).
    """

    ids: Tensor
    weights: Tensor
    vectors: Tensor

    def finite(self) -> Tensor:
        """Return (B,) bool: every weight and every entry of the vector is finite."""
        return _finite_rows(self.weights) & _finite_rows(self.vectors)

    @cached_property
    def _coalesced(self) -> tuple[Tensor, Tensor]:
        return coalesce(self.ids, self.weights.to(torch.float64))

    def squared_norms(self) -> Tensor:
        """Return (B,) float64: |vector|^2 x sum of squared weights after summing duplicate ids."""
        return self._coalesced[1].square().sum(dim=1) * self.vectors.to(torch.float64).square().sum(dim=1)

    def add_to(self, total: Tensor, scale: Tensor) -> None:
        """Add the scaled rows of all users to `total` (num_rows, d) as one sparse (num_rows, B) x (B, d) product."""
        ids, weights = self._coalesced
        weights = _zero_unused(weights, scale)
        vectors = _zero_unused(self.vectors, scale).to(total.dtype) * scale.to(total.dtype)[:, None]
        users = torch.arange(len(weights), device=weights.device)[:, None].expand_as(weights)
        used = weights != 0
        entries = torch.stack([ids[used], users[used]])
        matrix = torch.sparse_coo_tensor(
            entries, weights[used].to(total.dtype), (len(total), len(weights)), check_invariants=False
        )
        total += torch.sparse.mm(matrix, vectors)


class _Unbounded:
    """Statistics that go straight into the sum without a bound on what a user adds; no privacy plan accepts them."""

    def squared_norms(self) -> Tensor:
        """Refuse: this block has no bounded form.

        Raises:
            PrivacyError: always.
        """
        raise PrivacyError(
            f"{type(self).__name__} statistics have no bounded form; "
            "under a privacy plan use the bounded form of the model"
        )


@dataclass(frozen=True, eq=False)
class RowMoments(_Unbounded):
    """Per-row second moments, for runs without privacy: row `ids[u, j]` gets `weights[u, j] * flat(v_u v_u')`.

    The sum is (num_rows, d (d + 1) / 2), the upper triangle row by row.

    Args:
        ids: (B, m) int64 rows; padding has weight zero (id 0).
        weights: (B, m).
        vectors: (B, d).
    """

    ids: Tensor
    weights: Tensor
    vectors: Tensor

    def finite(self) -> Tensor:
        """Return (B,) bool: every weight and every entry of the vector is finite."""
        return _finite_rows(self.weights) & _finite_rows(self.vectors)

    def add_to(self, total: Tensor, scale: Tensor) -> None:
        """Add the scaled outer products of all users to `total` (num_rows, d (d + 1) / 2)."""
        upper = torch.triu_indices(self.vectors.shape[1], self.vectors.shape[1], device=self.vectors.device)
        outer = self.vectors[:, upper[0]] * self.vectors[:, upper[1]]
        RowOuter(self.ids, self.weights, outer).add_to(total, scale)


@dataclass(frozen=True, eq=False)
class PairCounts(_Unbounded):
    """Co-occurrence of rows, for runs without privacy: (i, j) gets `weights[u, i] * weights[u, j]`.

    Args:
        ids: (B, m) int64 rows; padding has weight zero (id 0).
        weights: (B, m).
    """

    ids: Tensor
    weights: Tensor

    def finite(self) -> Tensor:
        """Return (B,) bool: every weight is finite."""
        return _finite_rows(self.weights)

    def add_to(self, total: Tensor, scale: Tensor) -> None:
        """Add the scaled pair counts of all users to `total` (num_rows, num_rows)."""
        weights = _zero_unused(self.weights, scale).to(total.dtype)
        rows = torch.zeros(len(weights), len(total), dtype=total.dtype, device=total.device)
        rows.scatter_add_(1, self.ids, weights)
        total += rows.T @ (rows * scale.to(total.dtype)[:, None])
