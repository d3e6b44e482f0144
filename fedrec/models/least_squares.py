"""Least squares for many users or items: compiled for the CPU, batched torch for other devices and as the reference."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fedrec.compiled import compiled_for, over_rows
from fedrec.models.coalescing import highest_row
from fedrec.models.kernels import least_squares as kernels

_CELLS = 2**23
"""Floats of gathered item vectors or of matrices that the torch form holds at once."""


def solve_users(items: Tensor, common: Tensor, ids: Tensor, weights: Tensor, ridge: Tensor) -> Tensor:
    """Solve (common + sum_k w_k q_k q_k' + ridge I) p = sum_k w_k q_k for each user.

    Args:
        items: (M, d) item vectors q.
        common: (d, d).
        ids: (B, L) int64 item rows.
        weights: (B, L); 0 where padded.
        ridge: (B,).

    Returns:
        (B, d) of the items' dtype; NaN where a system is not positive definite (clipping then drops that user).

    Raises:
        ProtocolError: where an id is no row of `items`.
    """
    highest_row(ids, len(items))
    if compiled_for(items, ids):
        vectors = torch.empty(len(ids), items.shape[1], dtype=items.dtype)
        arrays = (items, common, ids, weights.to(items.dtype), ridge.to(items.dtype), vectors)
        work = np.zeros(len(ids) + 1)
        np.cumsum((weights != 0).sum(dim=1).numpy() + items.shape[1], out=work[1:])  # factoring costs as d items do
        over_rows(kernels.solve_users, len(ids), *(array.contiguous().numpy() for array in arrays), cost=work)
        return vectors
    parts = []
    step = max(1, _CELLS // max(1, max(ids.shape[1], items.shape[1]) * items.shape[1]))
    for start in range(0, len(ids), step):
        part = slice(start, start + step)
        history = items[ids[part]]
        weighted = history * weights[part, :, None]
        matrix = torch.bmm(weighted.transpose(1, 2), history) + common
        matrix.diagonal(dim1=1, dim2=2).add_(ridge[part, None])
        parts.append(_solve_positive(matrix, weighted.sum(dim=1)))
    return torch.cat(parts) if parts else items.new_zeros(0, items.shape[1])


def solve_triangles(triangles: Tensor, common: Tensor, ridge: Tensor, right: Tensor) -> Tensor:
    """Solve (symmetric(triangles[row]) + common + ridge[row] I) x = right[row] for each row, in float64.

    Args:
        triangles: (n, d (d + 1) / 2) upper triangles, row by row.
        common: (d, d).
        ridge: (n,).
        right: (n, d).

    Returns:
        (n, d) float64; NaN where a system is not positive definite.
    """
    solutions = torch.empty(right.shape, dtype=torch.float64, device=right.device)
    common, ridge, right = (tensor.to(torch.float64) for tensor in (common, ridge, right))
    if compiled_for(triangles, right):
        arrays = (triangles, common, ridge, right, solutions)
        over_rows(kernels.solve_triangles, len(right), *(array.contiguous().numpy() for array in arrays))
        return solutions
    step = max(1, _CELLS // right.shape[1] ** 2)
    for start in range(0, len(right), step):
        part = slice(start, start + step)
        matrix = from_triangle(triangles[part].to(torch.float64), right.shape[1]) + common
        matrix.diagonal(dim1=1, dim2=2).add_(ridge[part, None])
        solutions[part] = _solve_positive(matrix, right[part])
    return solutions


def from_triangle(triangle: Tensor, dim: int) -> Tensor:
    """Turn (B, d (d + 1) / 2) upper triangles into symmetric (B, d, d) matrices."""
    upper = torch.triu_indices(dim, dim, device=triangle.device)
    matrix = triangle.new_zeros(len(triangle), dim, dim)
    matrix[:, upper[0], upper[1]] = triangle
    matrix[:, upper[1], upper[0]] = triangle
    return matrix


def _solve_positive(matrix: Tensor, right: Tensor) -> Tensor:
    """Solve (B, d, d) positive definite systems by Cholesky; NaN for one that is not positive definite."""
    factor, info = torch.linalg.cholesky_ex(matrix)
    solution = torch.cholesky_solve(right[:, :, None], factor)[:, :, 0]
    return torch.where((info == 0)[:, None], solution, torch.full_like(solution, torch.nan))
