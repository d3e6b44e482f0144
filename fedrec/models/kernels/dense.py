"""Small dense algebra inside kernels: sums of outer products, and positive definite systems.

Loops run over whole contiguous rows and take several vectors at a time: that is what the compiler turns into wide
instructions, and what keeps the d x d matrix from being read and written for every single vector.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from fedrec.compiled import OPTIONS


@njit(**OPTIONS)
def add_outer_products(matrix: np.ndarray, table: np.ndarray, rows: np.ndarray, weights: np.ndarray) -> None:
    """Add sum over k of weights[k] x table[rows[k]] table[rows[k]]' to `matrix`.

    Args:
        matrix: (d, d), changed in place.
        table: (n, d) of the matrix's type.
        rows: (m,) rows of the table.
        weights: (m,) of the matrix's type.
    """
    dim, num = table.shape[1], len(rows)
    k = 0
    while k + 4 <= num:
        a, b, c, e = table[rows[k]], table[rows[k + 1]], table[rows[k + 2]], table[rows[k + 3]]
        for i in range(dim):
            ai, bi = weights[k] * a[i], weights[k + 1] * b[i]
            ci, ei = weights[k + 2] * c[i], weights[k + 3] * e[i]
            for j in range(dim):
                matrix[i, j] += ai * a[j] + bi * b[j] + ci * c[j] + ei * e[j]
        k += 4
    while k < num:
        a = table[rows[k]]
        for i in range(dim):
            ai = weights[k] * a[i]
            for j in range(dim):
                matrix[i, j] += ai * a[j]
        k += 1


@njit(**OPTIONS)
def solve_in_place(matrix: np.ndarray, right: np.ndarray) -> bool:
    """Solve a symmetric positive definite system by Cholesky, row by row of the upper factor.

    Args:
        matrix: (d, d); its upper triangle is replaced by the factor.
        right: (d,) right-hand side, replaced by the solution.

    Returns:
        Whether the matrix is positive definite; where not, both arrays hold anything.
    """
    dim = len(right)
    for i in range(dim):
        row = matrix[i, i:]
        size = dim - i
        k = 0
        while k + 4 <= i:
            a, b, c, e = matrix[k, i:], matrix[k + 1, i:], matrix[k + 2, i:], matrix[k + 3, i:]
            ai, bi, ci, ei = a[0], b[0], c[0], e[0]
            for j in range(size):
                row[j] -= ai * a[j] + bi * b[j] + ci * c[j] + ei * e[j]
            k += 4
        while k < i:
            a = matrix[k, i:]
            ai = a[0]
            for j in range(size):
                row[j] -= ai * a[j]
            k += 1
        if not row[0] > 0:
            return False
        inverse = 1 / np.sqrt(row[0])
        for j in range(size):
            row[j] *= inverse
    for i in range(dim):
        row = matrix[i, i:]
        right[i] /= row[0]
        rest = right[i:]
        for j in range(1, dim - i):
            rest[j] -= rest[0] * row[j]
    for i in range(dim - 1, -1, -1):
        row, rest = matrix[i, i:], right[i:]
        known = row[0] * 0
        for j in range(1, dim - i):
            known += row[j] * rest[j]
        right[i] = (right[i] - known) / row[0]
    return True
