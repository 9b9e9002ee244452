"""Signs of life between the processes of a training: when one is gone, the others end with one line that says so.

A process that waits for a dead one waits in vain, on a GPU without ever coming back to Python. So a thread in each
process tells that it lives and looks whether the others do.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta

from torch.distributed.distributed_c10d import Store

BEAT_SECONDS = 1.0
SILENCE_SECONDS = 25.0
"""A process silent for so long is gone. torchrun, told of a dead process, gives the others 30 s; then it kills them."""
GRACE_SECONDS = 5.0
"""How long a process may take to end by itself once another has told why it ends."""
EXIT_LOST = 2

_ENDED, _TOLD, _DONE = "ended", "told", b"done"


class Watch:
    """Tells the other processes that this one lives, and ends it when one of them does not.

    Args:
        store: what all processes share; for this training alone.
        rank: which of ``count`` processes this is.
        count: processes that train together.
        silence_seconds: see :data:`SILENCE_SECONDS`.
        end: ends the process at once, whatever it waits for; given the line that says why, empty where another process
            has told it.
    """

    def __init__(
        self,
        store: Store,
        rank: int,
        count: int,
        silence_seconds: float = SILENCE_SECONDS,
        end: Callable[[str], None] | None = None,
    ) -> None:
        self._store, self._rank, self._count = store, rank, count
        self._silence_seconds = silence_seconds
        self._end = end or _end_at_once
        self._stopped = threading.Event()
        store.set_timeout(timedelta(seconds=silence_seconds))
        self._thread = threading.Thread(target=self._look, name="signs of life", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """This process is done: from now on its silence means nothing."""
        self._stopped.set()
        self._thread.join()
        try:
            self._store.set(self._beat_of(self._rank), _DONE.decode())
        except RuntimeError:  # whoever held the store is done, too
            return

    def tell_end(self) -> None:
        """This process ends before its time and tells why itself: the others need not."""
        try:
            self._store.set(_ENDED, str(self._rank))
        except RuntimeError:
            return

    def was_told(self, within_seconds: float = 0.0) -> bool:
        """Whether a process has told why it ends; waits for that a while."""
        deadline = time.monotonic() + within_seconds
        while True:
            try:
                if self._store.check([_ENDED]):
                    return True
            except RuntimeError:
                return False
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.1)

    def may_tell(self) -> bool:
        """True in the first process that asks: of many that meet the same end, one tells it."""
        try:
            return self._store.add(_TOLD, 1) == 1
        except RuntimeError:  # with the store gone, better told twice than not at all
            return True

    def _look(self) -> None:
        others = [rank for rank in range(self._count) if rank != self._rank]
        beats = dict.fromkeys(others, b"")
        heard = dict.fromkeys(others, time.monotonic())
        answered = time.monotonic()
        number = 0
        while not self._stopped.wait(BEAT_SECONDS):
            number += 1
            try:
                self._store.set(self._beat_of(self._rank), str(number))
                for rank in others:
                    if self._store.check([self._beat_of(rank)]):
                        beat = self._store.get(self._beat_of(rank))
                        if beat != beats[rank] or beat == _DONE:
                            beats[rank], heard[rank] = beat, time.monotonic()
                answered = time.monotonic()
            except RuntimeError:
                if time.monotonic() - answered > self._silence_seconds:
                    self._give_up(f"the process that the {self._count} of this training started from is gone")
                continue
            if self.was_told():
                if not self._stopped.wait(GRACE_SECONDS):
                    self._end("")
                return
            silent = [rank for rank in others if time.monotonic() - heard[rank] > self._silence_seconds]
            if silent:
                names = f"process{'es' if len(silent) > 1 else ''} {', '.join(map(str, silent))}"
                self._give_up(f"{names} of {self._count} gave no sign of life for {self._silence_seconds:.0f} s")
                return

    def _give_up(self, why: str) -> None:
        self._end(lost(why) if self.may_tell() else "")

    def _beat_of(self, rank: int) -> str:
        return f"beat of {rank}"


def lost(why: str) -> str:
    """The line that says that a process is gone, and the mend."""
    return f"{why}, so this training ends; its last checkpoint is whole: start all processes again with --resume auto"


def _end_at_once(why: str) -> None:
    if why:
        print(f"saysee: {why}", file=sys.stderr, flush=True)
    os._exit(EXIT_LOST)  # the main thread may wait where no exception reaches it
