"""Contribution blocks: what one user adds to a round, one row of tensors per user, never dense over all items.

A block knows its per-user squared L2 norms (in float64, duplicates coalesced first) and how to add itself, scaled per
user, to a running sum. What is added is what was measured: duplicates are coalesced once, for the norm and for the sum,
so that huge parts that cancel in the norm cannot swamp the sum. With a quantum, a power of two, every number of a user
is rounded to a multiple of it before it is added: then sums are exact, and a user's part is the same whoever else is
there. All blocks of a user are clipped jointly; see `fedrec.privacy.clipping`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from fedrec.compiled import compiled_for, over_rows
from fedrec.errors import PrivacyError, ProtocolError
from fedrec.models.coalescing import any_twice, coalesce, highest_row
from fedrec.models.kernels import rows as kernels
from fedrec.models.norms import squared_norms


class Block(Protocol):
    """One named part of the contributions of B users."""

    def finite(self) -> Tensor:
        """Return (B,) bool: True where every entry of the user's part is finite."""
        ...

    def squared_norms(self) -> Tensor:
        """Return (B,) float64: the squared L2 norm of each user's part, duplicates coalesced."""
        ...

    def add_to(self, total: Tensor, scale: Tensor, quantum: float = 0.0) -> None:
        """Add sum over users of scale[u] x part[u] to `total` in place; users of scale 0 add exactly nothing.

        Args:
            total: the sum so far; float64 where there is a quantum.
            scale: (B,) float64.
            quantum: a power of two that each user's numbers are rounded to multiples of; 0 for no rounding.
        """
        ...


Contributions = Mapping[str, Block]
"""Named blocks of the same B users; a user's contribution is the concatenation of that user's part of every block."""

_TINY = 1e-300
"""Added to a square that may have underflowed."""

_CELLS = 2**22
"""Numbers that plain torch holds at once where it rounds each."""


def _zero_unused(values: Tensor, scale: Tensor) -> Tensor:
    """Replace the rows of users with scale 0 by zeros, so that a NaN there is gone (0 x NaN is NaN)."""
    used = (scale != 0).reshape(-1, *([1] * (values.ndim - 1)))
    return torch.where(used, values, torch.zeros((), dtype=values.dtype, device=values.device))


def _multiples(values: Tensor, quantum: float) -> Tensor:
    """Round to multiples of the quantum, a power of two; nothing where it is 0."""
    return torch.round(values / quantum) * quantum if quantum else values


def _check_agree(shape: tuple[int, ...], *tensors: Tensor) -> None:
    """Refuse tensors whose shapes do not begin with `shape`: a kernel would read outside of them."""
    for tensor in tensors:
        if tensor.shape[: len(shape)] != shape:
            raise ProtocolError(f"a block of a contribution has parts of shapes {shape} and {tuple(tensor.shape)}")


def _check_fits(ids: Tensor, width: int, total: Tensor) -> None:
    """Refuse rows that the total does not have, or has in another width: a kernel would write outside of it."""
    highest_row(ids, len(total))
    if total.shape[1:] != (width,):
        raise ProtocolError(f"a contribution has rows of width {width}, the sum's shape is {tuple(total.shape)}")


def _finite_rows(values: Tensor) -> Tensor:
    """Return (B,) bool for (B, ...) values: True where the whole row is finite."""
    return torch.isfinite(values).flatten(start_dim=1).all(dim=1)


@dataclass(frozen=True, eq=False)
class Dense:
    """A dense part: `values` (B, ...) is added to a total of shape (...)."""

    values: Tensor

    def finite(self) -> Tensor:
        """Return (B,) bool: every value is finite."""
        return _finite_rows(self.values)

    def squared_norms(self) -> Tensor:
        """Return (B,) float64 squared norms."""
        return squared_norms(self.values)

    def add_to(self, total: Tensor, scale: Tensor, quantum: float = 0.0) -> None:
        """Add the scaled sum over users to `total` (...)."""
        values = _zero_unused(self.values, scale).flatten(start_dim=1).to(total.dtype)
        if quantum:
            total += _multiples(scale[:, None] * values, quantum).sum(dim=0).reshape(total.shape)
        else:
            total += (scale.to(total.dtype) @ values).reshape(total.shape)


@dataclass(frozen=True, eq=False)
class SecondMoments:
    """The flattened v v' of one vector a user: (v_i v_i, sqrt(2) v_i v_j for i < j), of norm exactly |v|^2.

    The sum is (d (d + 1) / 2,), the upper triangle row by row; `from_moments` turns it back into a matrix.

    Args:
        vectors: (B, d).
    """

    vectors: Tensor

    def finite(self) -> Tensor:
        """Return (B,) bool: every entry of the vector is finite."""
        return _finite_rows(self.vectors)

    def squared_norms(self) -> Tensor:
        """Return (B,) float64: |v|^4."""
        return squared_norms(self.vectors).square()

    def add_to(self, total: Tensor, scale: Tensor, quantum: float = 0.0) -> None:
        """Add the scaled moments of all users to `total` (d (d + 1) / 2,)."""
        vectors = _zero_unused(self.vectors, scale).to(total.dtype)
        if quantum and compiled_for(total, vectors):
            arrays = (vectors.contiguous().numpy(), scale.numpy(), total.numpy(), quantum)
            rows = np.arange(vectors.shape[1], -1, -1)  # row i of the triangle has d - i numbers
            work = np.concatenate([[0], np.cumsum(rows[:-1])])
            over_rows(kernels.add_rounded_moments, vectors.shape[1], *arrays, cost=work)
            return
        upper, factor = _triangle(vectors.shape[1], total)
        if not quantum:
            matrix = vectors.T @ (vectors * scale.to(total.dtype)[:, None])
            total += matrix[upper[0], upper[1]] * factor
            return
        step = max(1, _CELLS // max(1, len(total)))
        for start in range(0, len(vectors), step):
            part = vectors[start : start + step]
            moments = part[:, upper[0]] * part[:, upper[1]] * factor * scale[start : start + step, None]
            total += _multiples(moments, quantum).sum(dim=0)


def from_moments(moments: Tensor, dim: int) -> Tensor:
    """Turn a (d (d + 1) / 2,) sum of `SecondMoments` into the symmetric (d, d) sum of v v'."""
    upper, factor = _triangle(dim, moments)
    matrix = moments.new_zeros(dim, dim)
    matrix[upper[0], upper[1]] = moments / factor
    return matrix + matrix.triu(1).T


def _triangle(dim: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return the (2, d (d + 1) / 2) indices of the upper triangle, and 1 on the diagonal and sqrt(2) off it."""
    upper = torch.triu_indices(dim, dim, device=like.device)
    factor = torch.full(upper.shape[1:], 2.0**0.5, dtype=like.dtype, device=like.device)
    return upper, factor.masked_fill(upper[0] == upper[1], 1.0)


@dataclass(frozen=True, eq=False)
class RowSparse:
    """Some rows of a table: row `ids[u, j]` gets `values[u, j]`; `total` is (num_rows, d).

    Args:
        ids: (B, m) int64 rows.
        values: (B, m, d).
        mask: (B, m) bool, the rows that count; all where None. The others are never looked at.
    """

    ids: Tensor
    values: Tensor
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        """Check that the shapes agree."""
        _check_agree(tuple(self.ids.shape), self.values, *([] if self.mask is None else [self.mask]))

    @cached_property
    def _coalesced(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return ids, values and mask of the rows to measure and to add: no id twice for a user."""
        mask = torch.ones_like(self.ids, dtype=torch.bool) if self.mask is None else self.mask
        ids = self.ids if self.mask is None else self.ids.masked_fill(~mask, 0)
        if compiled_for(self.values) and not any_twice(ids, mask):
            return ids, self.values.contiguous(), mask
        ids, values = coalesce(ids, self.values.masked_fill(~mask[:, :, None], 0.0), mask)
        return ids, values.contiguous(), torch.ones_like(mask)

    @cached_property
    def _squared_norms(self) -> Tensor:
        _, values, mask = self._coalesced
        return squared_norms(values, mask)

    def finite(self) -> Tensor:
        """Return (B,) bool: every value is finite."""
        if self.values.dtype == torch.float32:  # in float64, squares of finite float32 values cannot overflow
            return torch.isfinite(self._squared_norms)
        counted = self.values if self.mask is None else self.values.masked_fill(~self.mask[:, :, None], 0.0)
        return _finite_rows(counted)

    def squared_norms(self) -> Tensor:
        """Return (B,) float64 squared norms after summing duplicate ids."""
        return self._squared_norms

    def add_to(self, total: Tensor, scale: Tensor, quantum: float = 0.0) -> None:
        """Add the scaled rows of all users to `total` (num_rows, d)."""
        ids, values, mask = self._coalesced
        _check_fits(ids, values.shape[2], total)
        if compiled_for(total, values):
            arrays = (ids, values, mask, scale.to(total.dtype), total)
            over_rows(kernels.add_rows, len(total), *(array.numpy() for array in arrays), quantum)
            return
        values = _zero_unused(values.to(torch.float64).masked_fill(~mask[:, :, None], 0.0), scale)
        values = _multiples(values * scale[:, None, None], quantum)
        total.index_add_(0, ids.reshape(-1), values.reshape(-1, values.shape[-1]).to(total.dtype))


@dataclass(frozen=True, eq=False)
class Entries:
    """Which rows of a table each user touches and with what weight; blocks over the same rows share the work on them.

    Args:
        ids: (B, m) int64 rows.
        weights: (B, m); padding has weight zero.
    """

    ids: Tensor
    weights: Tensor

    def __post_init__(self) -> None:
        """Check that the shapes agree."""
        _check_agree(tuple(self.ids.shape), self.weights)

    @cached_property
    def finite(self) -> Tensor:
        """Return (B,) bool: every weight is finite."""
        return _finite_rows(self.weights)

    @cached_property
    def coalesced(self) -> tuple[Tensor, Tensor]:
        """Return (B, m) ids and (B, m) float64 weights, the weights of equal rows summed."""
        ids, weights = coalesce(self.ids, self.weights, self.weights != 0)
        return ids, weights.to(torch.float64)

    @cached_property
    def grouped(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the coalesced entries by row: where each row starts, and the user and weight of each; on the CPU."""
        ids, weights = self.coalesced
        num = int((weights != 0).sum())
        indptr = np.zeros(highest_row(ids) + 2, dtype=np.int64)
        users, grouped = np.empty(num, dtype=np.int64), np.empty(num)
        kernels.group(ids.numpy(), weights.numpy(), indptr, users, grouped)
        return indptr, users, grouped

    def matrix(self, num_rows: int, scale: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the scaled coalesced weights as a sparse (num_rows, B) matrix; users of scale 0 have no entry."""
        ids, weights = self.coalesced
        weights = _zero_unused(weights, scale) * scale[:, None]
        users = torch.arange(len(weights), device=weights.device)[:, None].expand_as(weights)
        used = weights != 0
        return torch.sparse_coo_tensor(
            torch.stack([ids[used], users[used]]),
            weights[used].to(dtype),
            (num_rows, len(weights)),
            check_invariants=False,
        )


@dataclass(frozen=True, eq=False)
class _OneVectorAUser:
    """What a user adds to rows of a table follows from one vector.

    Args:
        entries: the rows and weights.
        vectors: (B, d).
    """

    entries: Entries
    vectors: Tensor

    def __post_init__(self) -> None:
        """Check that the shapes agree."""
        _check_agree((len(self.entries.ids),), self.vectors)

    def finite(self) -> Tensor:
        """Return (B,) bool: every weight and every entry of the vector is finite."""
        return self.entries.finite & _finite_rows(self.vectors)


@dataclass(frozen=True, eq=False)
class RowOuter(_OneVectorAUser):
    """Rows of a table that are all multiples of one vector: row i gets weight(u, i) x `vectors[u]`."""

    def squared_norms(self) -> Tensor:
        """Return (B,) float64: |vector|^2 x sum of squared weights after summing duplicate ids.

        Where the squares of one factor underflow and the other is huge, the product must not come out as nothing.
        """
        return (squared_norms(self.entries.coalesced[1]) + _TINY) * (squared_norms(self.vectors) + _TINY)

    def add_to(self, total: Tensor, scale: Tensor, quantum: float = 0.0) -> None:
        """Add the scaled rows of all users to `total` (num_rows, d): a sparse (num_rows, B) x (B, d) product."""
        vectors = _zero_unused(self.vectors, scale).to(total.dtype)
        _check_fits(self.entries.ids, vectors.shape[1], total)
        if not compiled_for(total, vectors) and quantum:
            self._add_rounded(total, vectors, scale, quantum)
            return
        if not compiled_for(total, vectors):
            total += torch.sparse.mm(self.entries.matrix(len(total), scale, total.dtype), vectors)
            return
        indptr, users, weights = self.entries.grouped
        arrays = (indptr, users, weights, scale.numpy(), vectors.contiguous().numpy(), total.numpy(), quantum)
        over_rows(kernels.add_multiples, len(indptr) - 1, *arrays, cost=indptr)

    def _add_rounded(self, total: Tensor, vectors: Tensor, scale: Tensor, quantum: float) -> None:
        """Write every number out and round it, some users at a time."""
        ids, weights = self.entries.coalesced
        weights = _zero_unused(weights, scale) * scale[:, None]
        step = max(1, _CELLS // max(1, ids.shape[1] * vectors.shape[1]))
        for start in range(0, len(ids), step):
            part = slice(start, start + step)
            values = _multiples(weights[part, :, None] * vectors[part, None], quantum)
            total.index_add_(0, ids[part].reshape(-1), values.reshape(-1, vectors.shape[1]))


class Unbounded:
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
class RowMoments(Unbounded, _OneVectorAUser):
    """Per-row second moments, for runs without privacy: row i gets weight(u, i) x flat(v_u v_u').

    The sum is (num_rows, d (d + 1) / 2), the upper triangle row by row.
    """

    def add_to(self, total: Tensor, scale: Tensor, quantum: float = 0.0) -> None:
        """Add the scaled outer products of all users to `total` (num_rows, d (d + 1) / 2)."""
        vectors = _zero_unused(self.vectors, scale).to(total.dtype)
        _check_fits(self.entries.ids, vectors.shape[1] * (vectors.shape[1] + 1) // 2, total)
        if not compiled_for(total, vectors):
            upper = torch.triu_indices(vectors.shape[1], vectors.shape[1], device=vectors.device)
            outer = vectors[:, upper[0]] * vectors[:, upper[1]]
            total += torch.sparse.mm(self.entries.matrix(len(total), scale, total.dtype), outer)
            return
        indptr, users, weights = self.entries.grouped
        factors = scale.numpy()[users]
        weights = (factors * np.where(factors == 0, 0.0, weights)).astype(vectors.numpy().dtype)
        arrays = (indptr, users, weights, vectors.contiguous().numpy(), total.numpy())
        work = indptr + 8 * np.arange(len(indptr))  # a row costs as eight entries do, however few it has
        over_rows(kernels.add_moments, len(indptr) - 1, *arrays, cost=work)


@dataclass(frozen=True, eq=False)
class PairCounts(Unbounded):
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

    def add_to(self, total: Tensor, scale: Tensor, quantum: float = 0.0) -> None:
        """Add the scaled pair counts of all users to `total` (num_rows, num_rows)."""
        weights = _zero_unused(self.weights, scale).to(total.dtype)
        rows = torch.zeros(len(weights), len(total), dtype=total.dtype, device=total.device)
        rows.scatter_add_(1, self.ids, weights)
        total += rows.T @ (rows * scale.to(total.dtype)[:, None])
