"""Compiled kernels: when they are used, and how their work is spread over threads.

A kernel is a numba function over numpy arrays that works on rows `start..stop` and lets go of the interpreter lock. It
stands behind a function whose plain torch form stays: the reference it is tested against, and the path of other
devices. Rows are spread in fixed, contiguous parts, so the same number of threads gives the same bits.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

_REFERENCE: ContextVar[bool] = ContextVar("fedrec_reference", default=False)

FAST = {"reassoc", "contract", "nsz", "arcp"}
"""Float freedoms of kernels (numba's `fastmath`): sums in any order, but NaN and infinity stay what they are."""

OPTIONS: dict[str, Any] = {"cache": True, "nogil": True, "error_model": "numpy", "fastmath": FAST}
"""What numba is told of every kernel."""


def compiled_for(*tensors: Tensor) -> bool:
    """Return whether compiled kernels may work on these tensors: all on the CPU, and not within `reference()`."""
    return not _REFERENCE.get() and all(tensor.device.type == "cpu" for tensor in tensors)


@contextmanager
def reference() -> Iterator[None]:
    """Use the plain torch form of everything within the block, to compare with.

    Example:
        >>> with reference():
        ...     compiled_for(torch.zeros(1))
        False
    """
    token = _REFERENCE.set(True)
    try:
        yield
    finally:
        _REFERENCE.reset(token)


def over_rows(kernel: Callable[..., Any], num_rows: int, *args: Any, cost: np.ndarray | None = None) -> None:
    """Call `kernel(start, stop, *args)` for contiguous parts of `range(num_rows)`, one a thread of torch's number.

    Args:
        kernel: writes to its own rows of the arrays in `args` only.
        num_rows: how many rows there are.
        args: what every call gets; numpy arrays and numbers.
        cost: (num_rows + 1,) work before each row, rising from 0; rows of equal cost where None.
    """
    num_parts = max(1, min(torch.get_num_threads(), num_rows))
    edges = np.linspace(0, num_rows, num_parts + 1).astype(np.int64).tolist()
    if cost is not None:
        edges[1:-1] = np.searchsorted(cost, np.linspace(0, cost[-1], num_parts + 1)[1:-1]).tolist()
    if num_parts == 1:
        kernel(0, num_rows, *args)
        return
    (first, *rest) = pairwise(edges)
    pool = _pool(num_parts - 1, os.getpid())
    others = [pool.submit(kernel, start, stop, *args) for start, stop in rest]
    try:
        kernel(*first, *args)
    finally:
        wait(others)  # before an error leaves: nobody may still write to the arrays
    for other in others:
        other.result()


@lru_cache(maxsize=4)
def _pool(num_threads: int, process: int) -> ThreadPoolExecutor:
    """Return the threads of this process; a forked child must not wait for its parent's."""
    return ThreadPoolExecutor(num_threads, thread_name_prefix="fedrec")
