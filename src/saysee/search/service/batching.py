"""The places of a service, and the one thread that runs its model.

A request has a place until it is answered or its client leaves. Jobs for the model wait in a queue; the thread takes
several at once and runs those of one kind as one batch.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from saysee.search.service.errors import RequestError
from saysee.search.service.records import Metrics

K = TypeVar("K", bound=Hashable)
Run = Callable[[list[Any]], list[Any]]  # contents of one batch to their results, in the same order

SLOW_SECONDS = 5.0  # a body that has been arriving for longer gives way to others where the memory is full
_ASSUMED_SECONDS = 0.5  # of a batch, before one was measured
_MAX_RETRY_SECONDS = 60


@dataclass(eq=False, slots=True)
class _Job:
    kind: Hashable
    content: Any
    run: Run
    future: Future[Any] = field(default_factory=Future)


@dataclass(eq=False, slots=True)
class Place:
    """The place of one request with a form: its body arrives, and then it is worked on."""

    places: Places
    since: float = field(default_factory=time.monotonic)
    bytes: int = 0
    works: bool = False
    give_way: Callable[[], object] = lambda: None  # ends the arrival of its body

    def hold(self, count: int) -> None:
        """Takes so many more bytes of memory for the body; RequestError if there is no more.

        Where the memory limit is reached, uploads that have taken long are canceled, the oldest first.
        """
        places = self.places
        for other in list(places.all):
            if places.bytes + count <= places.max_bytes:
                break
            if other is not self and not other.works and time.monotonic() - other.since > SLOW_SECONDS:
                other.give_way()
                places.free(other)
        if places.bytes + count > places.max_bytes:
            raise places.busy()
        self.bytes += count
        places.bytes += count

    def begin(self) -> None:
        """Called when the body is there. RequestError: too many others are worked on."""
        self.places.check()
        self.works = True


class Places:
    """Limits the requests that are worked on to ``count``, and the bodies of all in progress to ``max_bytes``.

    A request whose body is still arriving is in progress, but keeps no other from being worked on. Used by the event
    loop only. ``retry_after()`` is the seconds until a place may be free.
    """

    def __init__(self, count: int, max_bytes: int, retry_after: Callable[[], int], metrics: Metrics) -> None:
        self.count, self.max_bytes, self.retry_after, self.metrics = count, max_bytes, retry_after, metrics
        self.all: list[Place] = []  # in the order of their beginning
        self.bytes = 0

    @property
    def taken(self) -> int:
        """Number of requests in progress."""
        return len(self.all)

    @contextmanager
    def taking(self) -> Iterator[Place]:
        """A place for the duration of a ``with`` block. RequestError: too many others are worked on."""
        self.check()
        place = Place(self)
        self.all.append(place)
        self.metrics.places.set(len(self.all))
        try:
            yield place
        finally:
            self.free(place)
            self.metrics.places.set(len(self.all))

    def free(self, place: Place) -> None:
        """Gives back a place and its memory, unless it did already."""
        if place in self.all:
            self.all.remove(place)
            self.bytes -= place.bytes

    def check(self) -> None:
        """RequestError if too many are worked on."""
        if sum(place.works for place in self.all) >= self.count:
            raise self.busy()

    def busy(self) -> RequestError:
        """The error that says when to try again."""
        seconds = self.retry_after()
        return RequestError(503, "busy", f"The service is busy; try again in {seconds} s.", seconds)


class ModelThread:
    """The one thread that runs the model, in batches of at most ``batch`` jobs.

    A job waits at most ``wait_seconds`` for others, and only while ``incoming()``, the number of requests in progress
    that may submit one, exceeds the jobs in the queue.
    """

    def __init__(self, batch: int, wait_seconds: float, incoming: Callable[[], int], metrics: Metrics) -> None:
        self.batch, self.wait_seconds, self.incoming, self.metrics = batch, wait_seconds, incoming, metrics
        self._queue: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._seconds = _ASSUMED_SECONDS
        self._running = 0
        self._thread = threading.Thread(target=self._work, name="saysee-model", daemon=True)
        self._thread.start()

    def submit(self, kind: Hashable, content: Any, run: Run) -> Future[Any]:
        """Queues a job; cancelling the future removes it from the queue. Jobs of one kind may share a batch."""
        job = _Job(kind, content, run)
        job.future.add_done_callback(lambda future: self._remove(job) if future.cancelled() else None)
        with self._changed:
            self._queue.append(job)
            self._changed.notify()
        return job.future

    def pending(self) -> int:
        """Number of jobs that are queued or running."""
        return len(self._queue) + self._running

    def retry_after(self) -> int:
        """Whole seconds until the jobs that are queued now will be done."""
        batches = 1 + len(self._queue) / self.batch
        return max(1, min(_MAX_RETRY_SECONDS, math.ceil(batches * self._seconds)))

    def close(self) -> None:
        """Runs the queued jobs, then ends the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _remove(self, job: _Job) -> None:
        with self._changed:
            if job in self._queue:
                self._queue.remove(job)

    def _work(self) -> None:
        while jobs := self._next():
            start = time.perf_counter()
            self._running = len(jobs)
            self.metrics.batch.observe(len(jobs))
            for _, numbers in grouped(job.kind for job in jobs):
                _run([jobs[number] for number in numbers])
            self._running = 0
            seconds = time.perf_counter() - start
            self._seconds += 0.2 * (seconds - self._seconds)
            self.metrics.model_seconds.observe(seconds)

    def _next(self) -> list[_Job]:
        """The jobs of the next batch; none when the thread should end."""
        with self._changed:
            while True:
                while not self._queue:
                    if self._closed:
                        return []
                    self._changed.wait()
                deadline = time.monotonic() + self.wait_seconds
                while (
                    self._queue
                    and len(self._queue) < self.batch
                    and not self._closed
                    and self.incoming() > len(self._queue)
                    and (left := deadline - time.monotonic()) > 0
                ):
                    self._changed.wait(left)
                jobs = [self._queue.popleft() for _ in range(min(self.batch, len(self._queue)))]
                jobs = [job for job in jobs if job.future.set_running_or_notify_cancel()]
                if jobs:  # otherwise all their clients have left
                    return jobs


def grouped(keys: Iterable[K]) -> Iterable[tuple[K, list[int]]]:
    """The distinct keys with their positions."""
    groups: dict[K, list[int]] = {}
    for position, key in enumerate(keys):
        groups.setdefault(key, []).append(position)
    return groups.items()


def _run(jobs: list[_Job]) -> None:
    """Runs jobs of one kind as one batch; if it fails, each job alone, so that one cannot fail the others."""
    try:
        results = jobs[0].run([job.content for job in jobs])
    except Exception as error:
        if len(jobs) == 1:
            jobs[0].future.set_exception(error)
            return
        for job in jobs:
            _run([job])
        return
    for job, result in zip(jobs, results, strict=True):
        job.future.set_result(result)
