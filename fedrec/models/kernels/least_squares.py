"""Least squares for many users or items at once: gather, accumulate, factor and solve in one pass over each."""

from __future__ import annotations

import numpy as np
from numba import njit

from fedrec.compiled import OPTIONS
from fedrec.models.kernels.dense import add_outer_products, solve_in_place


@njit(**OPTIONS)
def solve_users(
    start: int,
    stop: int,
    items: np.ndarray,
    common: np.ndarray,
    ids: np.ndarray,
    weights: np.ndarray,
    ridge: np.ndarray,
    vectors: np.ndarray,
) -> None:
    """Solve (common + sum_k w_k q_k q_k' + ridge I) p = sum_k w_k q_k for users start..stop.

    Args:
        start: first user.
        stop: one past the last.
        items: (M, d) item vectors q.
        common: (d, d).
        ids: (B, L) item rows.
        weights: (B, L) of the items' type; what follows a user's last nonzero weight is not looked at.
        ridge: (B,) of the items' type.
        vectors: (B, d) result; NaN where a system is not positive definite.
    """
    dim = items.shape[1]
    matrix = np.empty((dim, dim), items.dtype)
    for user in range(start, stop):
        num = ids.shape[1]
        while num and weights[user, num - 1] == 0:
            num -= 1
        matrix[:, :] = common
        for i in range(dim):
            matrix[i, i] += ridge[user]
        add_outer_products(matrix, items, ids[user, :num], weights[user, :num])
        vector = vectors[user]
        vector[:] = 0
        for k in range(num):
            item, weight = items[ids[user, k]], weights[user, k]
            for j in range(dim):
                vector[j] += weight * item[j]
        if not solve_in_place(matrix, vector):
            vector[:] = np.nan


@njit(**OPTIONS)
def solve_triangles(
    start: int,
    stop: int,
    triangles: np.ndarray,
    common: np.ndarray,
    ridge: np.ndarray,
    right: np.ndarray,
    solutions: np.ndarray,
) -> None:
    """Solve (symmetric(triangles[row]) + common + ridge[row] I) x = right[row] for rows start..stop, in float64.

    Args:
        start: first row.
        stop: one past the last.
        triangles: (n, d (d + 1) / 2) upper triangles, row by row, of any float type.
        common: (d, d) float64.
        ridge: (n,) float64.
        right: (n, d) float64.
        solutions: (n, d) result, of any float type; NaN where a system is not positive definite.
    """
    dim = common.shape[0]
    matrix = np.empty((dim, dim))
    solution = np.empty(dim)
    for row in range(start, stop):
        position = 0
        for i in range(dim):
            for j in range(i, dim):
                matrix[i, j] = common[i, j] + triangles[row, position]
                position += 1
            matrix[i, i] += ridge[row]
        solution[:] = right[row]
        if not solve_in_place(matrix, solution):
            solution[:] = np.nan
        solutions[row] = solution
