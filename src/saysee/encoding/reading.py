"""Reading ahead: threads read and decode the next batches while the model computes on this one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from saysee.errors import MediaError

Item = TypeVar("Item")
Result = TypeVar("Result")

AHEAD = 2
"""Batches that are read ahead."""


def read_ahead(
    batches: Iterable[Sequence[Item]], read: Callable[[Item], Result], workers: int
) -> Iterator[tuple[Sequence[Item], list[Result]]]:
    """Reads every item of some batches in threads; yields each batch with its results, in order.

    Batches are taken one by one, as far ahead as needed; ``read`` is called in several threads at once. An exception of
    it is raised where its batch is yielded. When the caller stops early, so does the reading.
    """
    waiting: deque[tuple[Sequence[Item], list[Future[Result]]]] = deque()
    threads = ThreadPoolExecutor(workers, "saysee-reading")
    try:
        for batch in batches:
            waiting.append((batch, [threads.submit(read, item) for item in batch]))
            if len(waiting) > AHEAD:
                yield _finished(*waiting.popleft())
        while waiting:
            yield _finished(*waiting.popleft())
    finally:
        threads.shutdown(wait=False, cancel_futures=True)


def or_error(read: Callable[[Item], Result]) -> Callable[[Item], Result | MediaError]:
    """Makes a function return a MediaError instead of raising it, so that the rest of a batch is read too."""

    def read_or_error(item: Item) -> Result | MediaError:
        try:
            return read(item)
        except MediaError as error:
            return error

    return read_or_error


def _finished(batch: Sequence[Item], futures: list[Future[Result]]) -> tuple[Sequence[Item], list[Result]]:
    return batch, [future.result() for future in futures]
