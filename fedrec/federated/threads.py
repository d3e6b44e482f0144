"""Threads over batches: every n-th batch to the same thread, each with a result of its own, in a fixed order."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextvars import copy_context
from queue import Queue
from threading import Thread
from typing import TypeVar

import torch

Batch = TypeVar("Batch")
Part = TypeVar("Part")
_AHEAD = 2
"""Batches that wait for each thread: they are made while the threads work, and memory stays bounded."""


def each_in_a_thread(
    batches: Iterable[Batch], begin: Callable[[], Part], add: Callable[[Part, Batch], None], num_threads: int
) -> list[Part]:
    """Add every batch to one of `num_threads` parts, each in a thread of its own.

    Batch i goes to part i modulo `num_threads`, so that the parts do not depend on how fast the threads are. Within
    `add`, torch and the compiled kernels use one thread.

    Args:
        batches: taken one after the other in the calling thread.
        begin: makes an empty part.
        add: adds a batch to a part.
        num_threads: at least 1; 1 works in the calling thread and leaves torch's threads as they are.

    Returns:
        The parts, in order; with one thread a single one.

    Raises:
        Exception: the first that `add` or `batches` raised; all threads have ended by then.

    Privacy:
        Nothing is released. Every batch is added exactly once, to exactly one part, or the call raises.
    """
    if num_threads == 1:
        part = begin()
        for batch in batches:
            add(part, batch)
        return [part]
    parts = [begin() for _ in range(num_threads)]
    errors: list[BaseException] = []
    queues: list[Queue[Batch | None]] = [Queue(_AHEAD) for _ in parts]

    def work(part: Part, queue: Queue[Batch | None]) -> None:
        while (batch := queue.get()) is not None:
            try:
                if not errors:
                    add(part, batch)
            except BaseException as error:
                errors.append(error)

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    threads = [Thread(target=copy_context().run, args=(work, *own)) for own in zip(parts, queues, strict=True)]
    try:
        for thread in threads:
            thread.start()
        for number, batch in enumerate(batches):
            if errors:
                break
            queues[number % num_threads].put(batch)
    finally:
        for queue, thread in zip(queues, threads, strict=True):
            queue.put(None)
            thread.join()
        torch.set_num_threads(before)
    if errors:
        raise errors[0]
    return parts
