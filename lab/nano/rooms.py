"""Impulse responses of rooms by the image-source method (pyroomacoustics)."""

from __future__ import annotations

from functools import cache

import numpy as np
import pyroomacoustics
from numpy.typing import NDArray

from saysee.data.scenes.speech import SAMPLE_RATE

SMALLEST, LARGEST = (2.5, 2.5, 2.2), (9.0, 7.0, 3.5)
"""Length, width and height in meters."""
SECONDS = (0.15, 0.7)
"""Time in which the reverberation falls by 60 dB."""
REFLECTIONS = 15
"""Walls that a sound meets at most: more than that is soft, and takes long to compute."""


@cache
def room_responses(count: int = 100) -> list[NDArray[np.float32]]:
    """Responses of rooms of drawn size and reverberation, each from the direct sound on, which has amplitude 1."""
    rng = np.random.default_rng(0)
    responses: list[NDArray[np.float32]] = []
    while len(responses) < count:
        size = rng.uniform(SMALLEST, LARGEST)
        try:
            absorption, order = pyroomacoustics.inverse_sabine(rng.uniform(*SECONDS), size)
        except ValueError:  # no wall absorbs enough for so short a time in so large a room
            continue
        room = pyroomacoustics.ShoeBox(
            size,
            fs=SAMPLE_RATE,
            materials=pyroomacoustics.Material(absorption),
            max_order=min(order, REFLECTIONS),
        )
        room.add_source(rng.uniform(0.4, size - 0.4))
        room.add_microphone(rng.uniform(0.4, size - 0.4))
        room.compute_rir()
        response = np.asarray(room.rir[0][0])
        direct = int(np.abs(response).argmax())
        responses.append((response[direct:] / response[direct]).astype(np.float32))
    return responses
