"""Times of functions that take turns in one run, so that other load on the machine affects all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np


@dataclass(slots=True)
class Spent:
    """The times of one function, round by round.

    Attributes:
        seconds: wall time.
        cpu_seconds: CPU time of all threads of this process, which other processes do not affect.
    """

    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)

    def median(self) -> float:
        """Median wall time in seconds."""
        return statistics.median(self.seconds)

    def percentile(self, percent: float) -> float:
        """Percentile of the wall time in seconds."""
        return float(np.percentile(self.seconds, percent))


def take_turns(functions: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Spent]:
    """Runs and times each function once a round, in the order given."""
    spent = {name: Spent() for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            start, used = time.perf_counter(), time.process_time()
            function()
            spent[name].seconds.append(time.perf_counter() - start)
            spent[name].cpu_seconds.append(time.process_time() - used)
    return spent


def ratio(slow: Spent, fast: Spent) -> float:
    """Speedup in wall time: the median of the ratios of each round."""
    return statistics.median(a / b for a, b in zip(slow.seconds, fast.seconds, strict=True))


def cpu_ratio(slow: Spent, fast: Spent) -> float:
    """Speedup in CPU time."""
    return statistics.median(a / b for a, b in zip(slow.cpu_seconds, fast.cpu_seconds, strict=True))
