"""Means over seeds, how sure they are, and differences of runs that share a seed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean, and where the mean over all seeds that could be drawn lies.

    Attributes:
        mean: over the seeds.
        interval: 95 % t-interval (low, high); None for one seed, which tells nothing of the spread.
        seeds: number of seeds.
    """

    mean: float
    interval: tuple[float, float] | None
    seeds: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "mean": self.mean,
            "interval": None if self.interval is None else list(self.interval),
            "seeds": self.seeds,
        }


def estimate(values: Sequence[float]) -> Estimate | None:
    """Mean and 95 % t-interval of one value a seed: mean ± t · s / √n with n - 1 degrees of freedom.

    Args:
        values: one value a seed, in any order; None comes back when there is none.
    """
    count = len(values)
    if count == 0:
        return None
    mean = math.fsum(values) / count
    if count == 1:
        return Estimate(mean, None, 1)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    half = t_quantile(count - 1) * deviation / math.sqrt(count)
    return Estimate(mean, (mean - half, mean + half), count)


def paired_difference(values: Mapping[int, float], baseline: Mapping[int, float]) -> Estimate | None:
    """Mean and interval of the differences to the baseline, seed by seed.

    A seed gives a row and the baseline the same start and the same data, so what it does to both falls out of their
    difference: the interval is narrower than the rows' own intervals let expect.

    Args:
        values: seed to value.
        baseline: seed to the baseline's value; seeds that one of the two lacks are left out.
    """
    return estimate([values[seed] - baseline[seed] for seed in sorted(values.keys() & baseline.keys())])


def t_quantile(degrees: int, confidence: float = CONFIDENCE) -> float:
    """The t at which Student's distribution holds ``confidence`` of its mass between -t and t.

    Args:
        degrees: degrees of freedom, 1 or more.
        confidence: 0 to below 1.

    Raises:
        ValueError: an argument is out of range.
    """
    if degrees < 1 or not 0 <= confidence < 1:
        raise ValueError(f"t needs at least 1 degree of freedom and a share below 1, got {degrees} and {confidence}")
    low, high = 0.0, math.pi / 2
    for _ in range(80):  # halves the span down to the precision of a float
        middle = (low + high) / 2
        low, high = (middle, high) if _central_mass(middle, degrees) < confidence else (low, middle)
    return math.sqrt(degrees) * math.tan((low + high) / 2)


def _central_mass(angle: float, degrees: int) -> float:
    """P(|T| <= √degrees · tan(angle)), the finite sums of Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees % 2
    term = total = 0.0
    for power in range(odd, degrees - 1, 2):
        # 1, 1/2 cos², 1·3/(2·4) cos⁴ … for even degrees; cos, 2/3 cos³, 2·4/(3·5) cos⁵ … for odd ones.
        term = (cosine if odd else 1.0) if power == odd else term * cosine**2 * (power - 1) / power
        total += term
    return 2 / math.pi * (angle + sine * total) if odd else sine * total
