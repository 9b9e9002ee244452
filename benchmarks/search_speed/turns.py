"""Times of things that take turns in one run, so that what else the machine does falls on all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np


@dataclass(slots=True)
class Spent:
    """What one thing took, turn by turn.

    Attributes:
        seconds: by the clock on the wall.
        processor_seconds: of all threads of this process; they tell the work apart from the neighbours'.
    """

    seconds: list[float] = field(default_factory=list)
    processor_seconds: list[float] = field(default_factory=list)

    def median(self) -> float:
        """Seconds by the clock."""
        return statistics.median(self.seconds)

    def percentile(self, percent: float) -> float:
        """Seconds by the clock that so many percent of the turns stayed within."""
        return float(np.percentile(self.seconds, percent))


def take_turns(things: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Spent]:
    """Runs each thing once a round, in the order given, and times it."""
    spent = {name: Spent() for name in things}
    for _ in range(rounds):
        for name, thing in things.items():
            start, used = time.perf_counter(), time.process_time()
            thing()
            spent[name].seconds.append(time.perf_counter() - start)
            spent[name].processor_seconds.append(time.process_time() - used)
    return spent


def ratio(slow: Spent, fast: Spent) -> float:
    """Times as fast: the median of the rounds' ratios by the clock."""
    return statistics.median(a / b for a, b in zip(slow.seconds, fast.seconds, strict=True))


def processor_ratio(slow: Spent, fast: Spent) -> float:
    """The same by the processor's time."""
    return statistics.median(a / b for a, b in zip(slow.processor_seconds, fast.processor_seconds, strict=True))
