"""Threads over batches: every batch once, to a part that does not depend on how fast the threads are."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from fedrec.compiled import compiled_for, reference
from fedrec.federated.threads import each_in_a_thread
from tests.threads import num_threads


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("num_batches", [0, 1, 2, 7, 50])
def test_batch_i_goes_to_part_i_modulo_threads_in_order(threads: int, num_batches: int) -> None:
    parts = each_in_a_thread(range(num_batches), list, list.append, threads)
    assert parts == [list(range(num_batches))[part::threads] for part in range(threads)]


def test_torch_has_one_thread_within_and_its_own_number_after() -> None:
    with num_threads(2):
        parts = each_in_a_thread(range(6), list, lambda part, _: part.append(torch.get_num_threads()), 2)
        assert parts == [[1, 1, 1], [1, 1, 1]]
        assert torch.get_num_threads() == 2


def test_threads_see_the_form_that_the_caller_asked_for() -> None:
    with reference():
        parts = each_in_a_thread(range(4), list, lambda part, _: part.append(compiled_for()), 2)
    assert parts == [[False, False], [False, False]]


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_an_error_of_a_batch_comes_through_and_no_thread_waits_for_ever(threads: int) -> None:
    def add(part: list[int], batch: int) -> None:
        if batch == 5:
            raise ArithmeticError("batch 5")
        part.append(batch)

    with num_threads(2), pytest.raises(ArithmeticError, match="batch 5"):
        each_in_a_thread(range(1000), list, add, threads)
    with num_threads(2):
        assert torch.get_num_threads() == 2


@pytest.mark.parametrize("threads", [1, 2])
def test_an_error_while_batches_are_made_comes_through(threads: int) -> None:
    def batches() -> Iterator[int]:
        yield from range(9)
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        each_in_a_thread(batches(), list, list.append, threads)
