"""Several forward passes beside each other, one core each: how a small encoder takes all cores."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import torch
from transformers import HubertConfig

Work = TypeVar("Work")
Result = TypeVar("Result")

_STREAM_CLIPS = 8
"""Most clips in a pass of a narrow HuBERT, whose operations are so short that calling them for one takes half of the
time; more leave the caches of a core."""
_WIDE = 512
"""Width from which a HuBERT keeps a core busy with a single clip. HuBERT base has 768, hubert-nano 192."""


def takes_several(hubert: HubertConfig) -> bool:
    """Whether passes of several clips, beside each other, are faster than one after the other on all cores.

    Not so for a wide one; nor for one with a group norm, which holds the lengths of one batch and cannot serve several
    threads.
    """
    return bool(hubert.hidden_size < _WIDE and hubert.feat_extract_norm != "group")


def clips_of_a_pass(clips: int, streams: int) -> int:
    """How many of so many clips a pass takes, so that every stream has some and none too many at once."""
    return max(1, min(-(-clips // streams), _STREAM_CLIPS))


def streams() -> Streams:
    """The streams of this process: as many as torch uses cores for one pass."""
    return _streams(torch.get_num_threads())


@cache
def _streams(count: int) -> Streams:
    return Streams(count)


class Streams:
    """Threads that each run the model with one core, beside each other.

    Many small forward passes so use all cores; torch's own threads would wait for each other within each. Modes that
    torch keeps for each thread, such as ``inference_mode`` and ``autocast``, are for the work itself to set.

    Attributes:
        count: number of threads.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._pool = ThreadPoolExecutor(count, "saysee-encoding", initializer=_take_one_core)
        # All are started now, because what one sets for itself is also what threads begin with that come later.
        everyone = threading.Barrier(count)
        list(self._pool.map(lambda _: everyone.wait(), range(count)))
        torch.set_num_threads(count)

    def run(self, work: Callable[[Work], Result], parts: Sequence[Work]) -> list[Result]:
        """Runs ``work`` on each part; returns the results, in order, when all are done."""
        return list(self._pool.map(work, parts))


def _take_one_core() -> None:
    torch.get_num_threads()  # a thread takes over the process's number when it first asks; not behind the next line
    torch.set_num_threads(1)
