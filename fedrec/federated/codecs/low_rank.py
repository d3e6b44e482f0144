"""Low rank: send two thin factors instead of a table; biased, so meant for tables that are nearly of that rank."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from fedrec.federated.codecs.stage import Shape, Spec, greatest
from fedrec.randomness import Key

WORTHWHILE = 8
_OVERSAMPLING = 8
_SWEEPS = 2


class LowRank:
    """The best approximation of rank r that a few sweeps of subspace iteration find.

        table (M, T)  ~  left' right      left (r, M), right (r, T)

    The singular values are split evenly between both factors, and a component is a row, so that a later `int8` scales
    each component by itself. Tables that this makes less than 8 times smaller stay as they are: a table of few columns
    is seldom of much lower rank, and cheap.

    Args:
        rank: r, at least 1.

    Privacy:
        The factors depend on all users at once: adding one can turn every number of both. No sensitivity is known, so
        refused for uploads under a privacy plan.

    Source:
        Halko, Martinsson, Tropp, Finding Structure with Randomness, 2011, algorithms 4.4 and 5.1.
    """

    name = "low_rank"
    passed_on = ("left", "right")

    def __init__(self, rank: int) -> None:
        """Keep the rank."""
        self.rank = rank

    def applies(self, dtype: torch.dtype, shape: Shape) -> bool:
        """Tell whether the factors of the greatest such table are at most an eighth of it."""
        if not dtype.is_floating_point or len(shape) != 2:
            return False
        num_rows, width = greatest(shape)
        return WORTHWHILE * self.rank * (num_rows + width) <= num_rows * width

    def parts(self, dtype: torch.dtype, shape: Shape) -> Spec:
        """Return the two factors."""
        num_rows, width = shape
        return {"left": (dtype, (self.rank, num_rows)), "right": (dtype, (self.rank, width))}

    def encode(self, tensor: Tensor, shape: Shape, key: Key) -> dict[str, Tensor]:
        """Return factors whose product is near the table; components beyond its own rank are zero."""
        left, right = tensor.new_zeros(self.rank, len(tensor)), tensor.new_zeros(self.rank, tensor.shape[1])
        largest = float(tensor.abs().max()) if tensor.numel() else 0.0
        if largest == 0.0:
            return {"left": left, "right": right}
        # A power of two, even, off the whole table: no square in the iteration overflows or vanishes.
        half = (math.frexp(largest)[1] + 1) // 2
        u, s, v = _leading(tensor * 2.0**-half * 2.0**-half, self.rank, key)
        root = s.sqrt()[:, None] * 2.0**half
        left[: len(s)], right[: len(s)] = root * u, root * v
        return {"left": left, "right": right}

    def decode(self, parts: Mapping[str, Tensor], dtype: torch.dtype, shape: Shape) -> Tensor:
        """Multiply the factors; a product that overflows is refused with the sum it would become part of."""
        left, right = parts["left"], parts["right"]
        return (left.T.to(dtype) @ right.to(dtype)).contiguous()


def _leading(table: Tensor, rank: int, key: Key) -> tuple[Tensor, Tensor, Tensor]:
    """Return (k, M), (k,) and (k, T): leading singular vectors and values, k = min(rank, M, T)."""
    num_columns = min(rank + _OVERSAMPLING, *table.shape)
    start = torch.randn(table.shape[1], num_columns, generator=key.torch_generator(), dtype=torch.float64)
    basis = torch.linalg.qr(table @ start.to(table.dtype)).Q
    for _ in range(_SWEEPS):
        basis = torch.linalg.qr(table @ torch.linalg.qr(table.T @ basis).Q).Q
    u, s, v = torch.linalg.svd(basis.T @ table, full_matrices=False)
    kept = min(rank, len(s))
    return (basis @ u[:, :kept]).T, s[:kept], v[:kept]
