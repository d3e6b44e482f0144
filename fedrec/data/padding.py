"""Padding: columns of histories gathered into rows of equal length, compiled for the CPU and plain in numpy."""

from __future__ import annotations

import numpy as np
from numba import njit

from fedrec.compiled import compiled_for, over_rows


def pad(column: np.ndarray, first: np.ndarray, lengths: np.ndarray, width: int) -> np.ndarray:
    """Gather one column of some histories, each from the left of its row, zeros after it.

    Args:
        column: (n,) whole numbers or floats of all histories; it may be mapped from a file, and only what is asked for
            is read.
        first: (B,) int64 where each history starts in the column.
        lengths: (B,) int64 how long it is; `first + lengths` is at most n.
        width: L, at least the longest length.

    Returns:
        (B, L) int64 where the column holds whole numbers of any size, else of the column's type.
    """
    wide = np.dtype(np.int64) if column.dtype.kind in "iu" else column.dtype
    if not compiled_for():
        return _plain(column, first, lengths, width, wide)
    padded = np.empty((len(first), width), dtype=wide)
    over_rows(_gather, len(first), first, lengths, column, padded)
    return padded


def _plain(column: np.ndarray, first: np.ndarray, lengths: np.ndarray, width: int, wide: np.dtype) -> np.ndarray:
    """Gather with numpy alone: the reference."""
    positions = np.arange(width)
    mask = positions < lengths[:, None]
    index = np.where(mask, first[:, None] + positions, 0)
    values = column[index] if len(column) else np.zeros(index.shape, dtype=wide)
    return np.where(mask, values, 0).astype(wide)


@njit(nogil=True, cache=True)
def _gather(start, stop, first, lengths, column, padded):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Fill rows start..stop of `padded`."""
    for row in range(start, stop):
        length, begin = lengths[row], first[row]
        for position in range(length):
            padded[row, position] = column[begin + position]
        padded[row, length:] = 0
