"""How the work of kernels is spread over threads, and when the plain form is used."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrec.compiled import compiled_for, over_rows, reference
from tests.threads import num_threads


def parts(num_rows: int, threads: int, cost: np.ndarray | None = None) -> list[tuple[int, int]]:
    """Return the parts that the rows were split into, by where they start."""
    found: list[tuple[int, int]] = []
    with num_threads(threads):
        over_rows(lambda start, stop: found.append((start, stop)), num_rows, cost=cost)
    return sorted(found)


@settings(deadline=None)
@given(st.integers(0, 200), st.integers(1, 5), st.one_of(st.none(), st.data()))
def test_every_row_is_worked_on_exactly_once(num_rows: int, threads: int, data: st.DataObject | None) -> None:
    cost = None
    if data is not None:
        work = data.draw(st.lists(st.sampled_from([0, 0, 1, 3, 10**6]), min_size=num_rows, max_size=num_rows))
        cost = np.concatenate([[0], np.cumsum(work)]).astype(np.int64)
    counts = np.zeros(num_rows, dtype=np.int64)
    found = parts(num_rows, threads, cost)
    for start, stop in found:
        assert 0 <= start <= stop <= num_rows
        counts[start:stop] += 1
    assert (counts == 1).all() and 1 <= len(found) <= threads


def test_parts_are_contiguous_and_the_same_each_time() -> None:
    cost = np.cumsum(np.r_[0, np.arange(100)])
    for given_cost in (None, cost):
        found = parts(100, 3, given_cost)
        assert found == parts(100, 3, given_cost)
        assert all(left[1] == right[0] for left, right in pairwise(found))


def test_costly_rows_are_shared_out_by_their_cost() -> None:
    work = np.r_[np.full(10, 1000), np.zeros(990, dtype=np.int64)]
    assert parts(1000, 2, np.r_[0, np.cumsum(work)]) == [(0, 5), (5, 1000)]
    assert parts(1000, 2) == [(0, 500), (500, 1000)]


def test_arguments_are_handed_on_and_rows_written_in_place() -> None:
    def kernel(start: int, stop: int, values: np.ndarray, factor: float, out: np.ndarray) -> None:
        out[start:stop] = values[start:stop] * factor

    values, out = np.arange(11.0), np.zeros(11)
    with num_threads(3):
        over_rows(kernel, 11, values, 2.0, out)
    assert np.array_equal(out, values * 2)


@pytest.mark.parametrize("threads", [1, 3])
def test_an_error_of_any_part_comes_through_once_all_parts_are_done(threads: int) -> None:
    others_done = threading.Event()

    def kernel(start: int, stop: int) -> None:
        if start == 0:
            raise MemoryError(f"rows {start}..{stop}")
        if stop == 9:
            others_done.set()

    with num_threads(threads), pytest.raises(MemoryError, match=r"rows 0\.\."):
        over_rows(kernel, 9)
    assert others_done.is_set() or threads == 1


def test_kernels_may_be_run_from_several_threads_at_once() -> None:
    def fill(value: int) -> np.ndarray:
        out = np.zeros(1000)
        over_rows(lambda start, stop: out[start:stop].fill(value), 1000)
        return out

    with num_threads(2), ThreadPoolExecutor(4) as pool:
        for value, out in enumerate(pool.map(fill, range(20))):
            assert (out == value).all()


def test_the_plain_form_is_used_within_reference_and_only_there() -> None:
    tensor = torch.zeros(1)
    assert compiled_for(tensor) and compiled_for()
    with pytest.raises(KeyError), reference():
        assert not compiled_for(tensor)
        with reference():
            assert not compiled_for()
        assert not compiled_for(tensor), "leaving the inner block does not leave the outer one"
        raise KeyError
    assert compiled_for(tensor)


def test_kernels_only_work_on_the_cpu() -> None:
    assert not compiled_for(torch.zeros(1), torch.zeros(1, device="meta"))


def test_reference_holds_for_this_thread_alone() -> None:
    with reference(), ThreadPoolExecutor(1) as pool:
        assert pool.submit(compiled_for).result()
