"""Sums of rows into a table: entries grouped by row first, so that every row is summed by one thread, in one order."""

from __future__ import annotations

import numpy as np
from numba import njit

from fedrec.compiled import OPTIONS
from fedrec.models.kernels.dense import add_outer_products


@njit(**OPTIONS)
def any_twice(start: int, stop: int, ids: np.ndarray, mask: np.ndarray, num_rows: int, twice: np.ndarray) -> None:
    """Find out for users start..stop whether an id stands twice among the entries that count.

    Args:
        start: first user.
        stop: one past the last.
        ids: (B, m) rows of a table, in 0..num_rows - 1.
        mask: (B, m) bool, the entries that count.
        num_rows: rows of the table.
        twice: (B,) bool result.
    """
    last_user = np.full(num_rows, -1, np.int64)
    for user in range(start, stop):
        found = False
        for k in range(ids.shape[1]):
            if mask[user, k]:
                found = found or last_user[ids[user, k]] == user
                last_user[ids[user, k]] = user
        twice[user] = found


@njit(**OPTIONS)
def group(ids: np.ndarray, weights: np.ndarray, indptr: np.ndarray, users: np.ndarray, grouped: np.ndarray) -> None:
    """Group the entries of (B, m) `ids` with a nonzero weight by id; within an id they stay in the order of users.

    Args:
        ids: (B, m) rows of a table.
        weights: (B, m).
        indptr: (num_rows + 1,) zeros; becomes where each row's entries start.
        users: (entries,) result: the user of each entry.
        grouped: (entries,) result: its weight.
    """
    for user in range(ids.shape[0]):
        for k in range(ids.shape[1]):
            if weights[user, k] != 0:
                indptr[ids[user, k] + 1] += 1
    for row in range(len(indptr) - 1):
        indptr[row + 1] += indptr[row]
    free = indptr[:-1].copy()
    for user in range(ids.shape[0]):
        for k in range(ids.shape[1]):
            if weights[user, k] != 0:
                at = free[ids[user, k]]
                users[at] = user
                grouped[at] = weights[user, k]
                free[ids[user, k]] = at + 1


@njit(**OPTIONS)
def add_multiples(
    start: int,
    stop: int,
    indptr: np.ndarray,
    users: np.ndarray,
    weights: np.ndarray,
    scale: np.ndarray,
    vectors: np.ndarray,
    total: np.ndarray,
    quantum: float,
) -> None:
    """Add sum over entries of scale[user] x weight x vectors[user] to rows start..stop of `total`.

    Args:
        start: first row.
        stop: one past the last.
        indptr: (num_rows + 1,) from `group`.
        users: (entries,).
        weights: (entries,).
        scale: (B,); users of scale 0 are left out.
        vectors: (B, d).
        total: (num_rows, d), changed in place.
        quantum: a power of two that every number is rounded to a multiple of before it is added; 0 for no rounding.
    """
    inverse = 1.0 / quantum if quantum > 0 else 1.0
    for row in range(start, stop):
        for k in range(indptr[row], indptr[row + 1]):
            user = users[k]
            if scale[user] == 0:
                continue
            factor = scale[user] * weights[k] * inverse
            if quantum > 0:
                for j in range(total.shape[1]):
                    total[row, j] += quantum * np.rint(factor * vectors[user, j])
            else:
                for j in range(total.shape[1]):
                    total[row, j] += factor * vectors[user, j]


@njit(**OPTIONS)
def add_rounded_moments(
    start: int, stop: int, vectors: np.ndarray, scale: np.ndarray, total: np.ndarray, quantum: float
) -> None:
    """Add sum over users of scale[user] x v v' to rows start..stop of a triangle, every number rounded before.

    Args:
        start: first row of the triangle.
        stop: one past the last.
        vectors: (B, d).
        scale: (B,); users of scale 0 are left out.
        total: (d (d + 1) / 2,) upper triangle, row by row, off the diagonal times sqrt(2); changed in place.
        quantum: a power of two that every number is rounded to a multiple of.
    """
    dim = vectors.shape[1]
    for i in range(start, stop):
        first = i * dim - i * (i - 1) // 2 - i  # where (i, 0) would stand
        for user in range(len(vectors)):
            if scale[user] == 0:
                continue
            factor = scale[user] / quantum * vectors[user, i]
            total[first + i] += quantum * np.rint(factor * vectors[user, i])
            factor *= np.sqrt(2.0)
            for j in range(i + 1, dim):
                total[first + j] += quantum * np.rint(factor * vectors[user, j])


@njit(**OPTIONS)
def add_moments(
    start: int,
    stop: int,
    indptr: np.ndarray,
    users: np.ndarray,
    weights: np.ndarray,
    vectors: np.ndarray,
    total: np.ndarray,
) -> None:
    """Add sum over entries of weight x vector vector' to rows start..stop of `total`.

    Args:
        start: first row.
        stop: one past the last.
        indptr: (num_rows + 1,) from `group`.
        users: (entries,).
        weights: (entries,) of the vectors' type.
        vectors: (B, d).
        total: (num_rows, d (d + 1) / 2) upper triangles, row by row, changed in place.
    """
    dim = vectors.shape[1]
    matrix = np.empty((dim, dim), vectors.dtype)
    for row in range(start, stop):
        first, last = indptr[row], indptr[row + 1]
        if first == last:
            continue
        matrix[:, :] = 0
        add_outer_products(matrix, vectors, users[first:last], weights[first:last])
        rest = total[row]
        for i in range(dim):
            upper = matrix[i, i:]
            for j in range(dim - i):
                rest[j] += upper[j]
            rest = rest[dim - i :]


@njit(**OPTIONS)
def add_rows(
    start: int,
    stop: int,
    ids: np.ndarray,
    values: np.ndarray,
    mask: np.ndarray,
    scale: np.ndarray,
    total: np.ndarray,
    quantum: float,
) -> None:
    """Add scale[user] x values[user, k] to row ids[user, k] of `total`, for the ids in start..stop.

    Args:
        start: first row of the table.
        stop: one past the last.
        ids: (B, m).
        values: (B, m, d).
        mask: (B, m) bool, the rows that count.
        scale: (B,) of the total's type; users of scale 0 are left out.
        total: (num_rows, d), changed in place.
        quantum: a power of two that every number is rounded to a multiple of before it is added; 0 for no rounding.
    """
    inverse = 1.0 / quantum if quantum > 0 else 1.0
    for user in range(ids.shape[0]):
        if scale[user] == 0:
            continue
        factor = scale[user] * inverse
        for k in range(ids.shape[1]):
            row = ids[user, k]
            if not (mask[user, k] and start <= row < stop):
                continue
            if quantum > 0:
                for j in range(total.shape[1]):  # whole indices, no views of rows: four times as fast
                    total[row, j] += quantum * np.rint(factor * values[user, k, j])
            else:
                for j in range(total.shape[1]):
                    total[row, j] += factor * values[user, k, j]
