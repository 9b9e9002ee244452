"""Streams: forward passes at the same time, one core each."""

from __future__ import annotations

import threading

import pytest
import torch
from transformers import HubertConfig

from saysee.encoding.streams import Streams, clips_of_a_pass, takes_several


def test_streams_use_all_cores_and_leave_torch_s_threads_as_they_were():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        streams = Streams(3)
        seen = []
        everyone = threading.Barrier(3)

        def work(part: int) -> None:
            seen.append((part, torch.get_num_threads(), threading.get_ident()))
            everyone.wait(timeout=60)

        list(streams.map(work, range(3)))
        assert sorted((part, threads) for part, threads, _ in seen) == [(0, 1), (1, 1), (2, 1)]
        assert len({thread for _, _, thread in seen}) == 3
        later = []
        thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert (torch.get_num_threads(), later) == (3, [3])
        with pytest.raises(ZeroDivisionError):
            list(streams.map(lambda part: part / 0, [1]))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("width", "norm", "several"), [(192, "layer", True), (768, "layer", False), (192, "group", False)]
)
def test_narrow_huberts_without_a_group_norm_take_several_clips(width, norm, several):
    config = HubertConfig(hidden_size=width, num_attention_heads=1, feat_extract_norm=norm)
    assert takes_several(config) is several


def test_every_stream_has_clips_and_none_too_many_at_once():
    assert [clips_of_a_pass(clips, 4) for clips in (0, 1, 4, 6, 32, 33, 400)] == [1, 1, 1, 2, 8, 8, 8]
