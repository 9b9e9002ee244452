"""Which clips go through an encoder together, and several forward passes at the same time, one core each."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import torch

from saysee.media.audio import SAMPLE_RATE
from saysee.model.pretrained.configuration import HubertConfig

_STREAM_CLIPS = 8
"""Most clips in a pass of a narrow HuBERT: its operations are so short that calling them for one clip takes half of the
time; more clips do not fit into the caches of a core."""
_WIDE = 512
"""Width from which a HuBERT keeps a core busy with a single clip. HuBERT base has 768, hubert-nano 192."""

_PASS_SECONDS = 160.0
"""Most speech in one forward pass of a GPU, padding counted: HuBERT base keeps some 10 MB a second."""
_ALIKE = 0.8
"""The shortest clip of a pass is at least this share of the longest: padding is computed too."""


def takes_several(hubert: HubertConfig) -> bool:
    """Whether passes of several clips on one core each are faster than single clips on all cores.

    Not for a wide HuBERT, nor for one with a group norm, which takes each clip alone.
    """
    return hubert.hidden_size < _WIDE and hubert.feat_extract_norm != "group"


def clips_of_a_pass(clips: int, streams: int) -> int:
    """Number of clips in a pass, so that every stream has some and none too many at once."""
    return max(1, min(-(-clips // streams), _STREAM_CLIPS))


def alike(waveforms: Sequence[Any], most: int) -> list[list[int]]:
    """Positions in groups of like length, none with too much speech or too many clips; the longest come first."""
    groups: list[list[int]] = []
    longest = 0
    for row in sorted(range(len(waveforms)), key=lambda row: len(waveforms[row]), reverse=True):
        length = len(waveforms[row])
        rows = len(groups[-1]) if groups else most
        full = rows >= most or (rows + 1) * longest > _PASS_SECONDS * SAMPLE_RATE
        if full or length < _ALIKE * longest:
            groups.append([])
            longest = length
        groups[-1].append(row)
    return groups


class Streams(ThreadPoolExecutor):
    """``count`` threads that each run the model on one core.

    Many small forward passes use all cores this way; torch's own threads would wait for each other within each pass.
    The work itself sets what torch keeps per thread, such as ``inference_mode`` and ``autocast``.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        super().__init__(count, "saysee-encoding", initializer=_take_one_core)
        # All threads start now: a thread that starts later would take over the number that another has set.
        everyone = threading.Barrier(count)
        list(self.map(lambda _: everyone.wait(), range(count)))
        torch.set_num_threads(count)


def streams() -> Streams:
    """The streams of this process: as many as torch uses cores for one pass."""
    return _streams(torch.get_num_threads())


_streams = cache(Streams)


def _take_one_core() -> None:
    torch.get_num_threads()  # at its first use a thread takes over the process's number: not after the next line
    torch.set_num_threads(1)
