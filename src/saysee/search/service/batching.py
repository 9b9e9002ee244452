"""The places of a service, and the one thread that owns its model.

A request takes a place before its body is read, and gives it back when it is answered or its client leaves. What goes
to the model waits in a line; the thread takes from it what fits together and runs it as one batch.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from saysee.search.service.metrics import Metrics
from saysee.search.service.refusals import Refusal

Run = Callable[[list[Any]], list[Any]]
"""Contents of one batch to their results, in the same order."""

_USUAL_SECONDS = 0.5
"""What a batch is taken to last before one was measured."""
_LONGEST_RETRY = 60


@dataclass(eq=False, slots=True)
class _Job:
    kind: Hashable
    content: Any
    run: Run
    future: Future[Any] = field(default_factory=Future)


class Place:
    """The place of one request, and the memory that its body holds."""

    def __init__(self, places: Places) -> None:
        self._places, self.bytes = places, 0

    def hold(self, count: int) -> None:
        """Takes ``count`` bytes more for the body.

        Raises:
            Refusal: all requests together would hold too much.
        """
        if self._places.bytes + count > self._places.most_bytes:
            raise self._places.full()
        self._places.bytes += count
        self.bytes += count


class Places:
    """So many requests are under way at once, and no more. Used by the event loop alone.

    Args:
        count: of places.
        most_bytes: that all their bodies may hold.
        retry_after: seconds after which a place may be free.
        metrics: where it is counted.
    """

    def __init__(self, count: int, most_bytes: int, retry_after: Callable[[], int], metrics: Metrics) -> None:
        self.count, self.most_bytes, self.retry_after, self.metrics = count, most_bytes, retry_after, metrics
        self.taken = self.bytes = 0

    @contextmanager
    def taking(self) -> Iterator[Place]:
        """A place, for the time of a ``with`` block.

        Raises:
            Refusal: all are taken.
        """
        if self.taken >= self.count:
            raise self.full()
        place = Place(self)
        self.taken += 1
        self.metrics.places.set(self.taken)
        try:
            yield place
        finally:
            self.taken -= 1
            self.bytes -= place.bytes
            self.metrics.places.set(self.taken)

    def full(self) -> Refusal:
        """What a request is told that finds no place."""
        self.metrics.busy.inc()
        after = self.retry_after()
        return Refusal(503, f"This service is busy; come back in {after} s.", after)


class ModelThread:
    """The one thread that owns the model: jobs go in by :meth:`submit`, and are run together where they fit.

    Args:
        batch: most jobs of one batch.
        wait_seconds: longest that a job waits for others.
        others_coming: how many requests are on their way that may bring a job; while there are none, nothing waits.
        metrics: where it is counted.
    """

    def __init__(self, batch: int, wait_seconds: float, others_coming: Callable[[], int], metrics: Metrics) -> None:
        self.batch, self.wait_seconds, self.others_coming = batch, wait_seconds, others_coming
        self.metrics = metrics
        self._line: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._seconds = _USUAL_SECONDS
        self._running = 0
        self._thread = threading.Thread(target=self._work, name="saysee-model", daemon=True)
        self._thread.start()

    def submit(self, kind: Hashable, content: Any, run: Run) -> Future[Any]:
        """Puts a job at the end of the line.

        Args:
            kind: jobs of one kind may be run together.
            content: what is to be run.
            run: contents of one kind to their results.

        Returns:
            Its result to be; cancelling it takes the job out of the line.
        """
        job = _Job(kind, content, run)
        job.future.add_done_callback(lambda future: self._leave(job) if future.cancelled() else None)
        with self._changed:
            self._line.append(job)
            self._changed.notify()
        return job.future

    def under_way(self) -> int:
        """Jobs in the line and in the model."""
        return len(self._line) + self._running

    def retry_after(self) -> int:
        """Whole seconds until what is in the line now will have been run."""
        batches = 1 + len(self._line) / self.batch
        return max(1, min(_LONGEST_RETRY, math.ceil(batches * self._seconds)))

    def close(self) -> None:
        """Runs what is in the line, and ends."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _leave(self, job: _Job) -> None:
        with self._changed:
            if job in self._line:
                self._line.remove(job)

    def _work(self) -> None:
        while jobs := self._next():
            start = time.perf_counter()
            self._running = len(jobs)
            self.metrics.batch.observe(len(jobs))
            groups: dict[Hashable, list[_Job]] = {}
            for job in jobs:
                groups.setdefault(job.kind, []).append(job)
            for group in groups.values():
                _run(group)
            self._running = 0
            seconds = time.perf_counter() - start
            self._seconds += 0.2 * (seconds - self._seconds)
            self.metrics.model_seconds.observe(seconds)

    def _next(self) -> list[_Job]:
        """The jobs of the next batch; none when the thread is to end."""
        with self._changed:
            while True:
                while not self._line:
                    if self._closed:
                        return []
                    self._changed.wait()
                deadline = time.monotonic() + self.wait_seconds
                while (
                    self._line
                    and len(self._line) < self.batch
                    and not self._closed
                    and self.others_coming() > len(self._line)
                    and (left := deadline - time.monotonic()) > 0
                ):
                    self._changed.wait(left)
                jobs = [self._line.popleft() for _ in range(min(self.batch, len(self._line)))]
                jobs = [job for job in jobs if job.future.set_running_or_notify_cancel()]
                if jobs:  # else all their clients have left meanwhile
                    return jobs


def _run(jobs: list[_Job]) -> None:
    """Runs jobs of one kind together; should that fail, each alone, so that one cannot spoil the others' answers."""
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
