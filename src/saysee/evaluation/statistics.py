"""Intervals: the bootstrap over images for one model's scores, and the t-interval over seeds for several runs.

Shapes: N clips, Q queries, K measures, R resamples.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from saysee.errors import SaySeeError

Floats: TypeAlias = npt.NDArray[np.float64]
Integers: TypeAlias = npt.NDArray[np.int64]
Counts: TypeAlias = npt.NDArray[np.int32]

MIN_RESAMPLES = 100  # fewer resamples do not determine the percentiles 2.5 and 97.5
_MAX_ELEMENTS = 4_000_000  # numbers that the bootstrap holds at once: 32 MB in float64


def image_interval(
    values: npt.ArrayLike, image: npt.ArrayLike, *, resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """95 % bootstrap interval over images of the mean of ``values`` [N], one a clip, whose images are ``image`` [N].

    Images are drawn with replacement, each with all its clips. Raises SaySeeError for less than ``MIN_RESAMPLES``.
    """
    images, image = np.unique(np.asarray(image), return_inverse=True)
    column = np.asarray(values, dtype=np.float64)[:, None]
    means = [resampled_means(column, image, counts) for counts in draws(len(images), len(image), resamples, seed)]
    low, high = percentile_interval(np.concatenate(means)[:, 0])
    return low, high


def draws(n_images: int, n_clips: int, resamples: int, seed: int) -> Iterator[Counts]:
    """How often each image is drawn in each resample: arrays [up to R, n_images], as many rows as memory allows.

    Raises SaySeeError for less than ``MIN_RESAMPLES``.
    """
    if resamples < MIN_RESAMPLES:
        raise SaySeeError(f"resamples is {resamples}; an interval needs at least {MIN_RESAMPLES}")
    rng = np.random.default_rng(seed)
    at_once = max(1, _MAX_ELEMENTS // max(n_images, n_clips))
    for start in range(0, resamples, at_once):
        rows = min(at_once, resamples - start)
        drawn = rng.integers(0, n_images, size=(rows, n_images))
        flat = (drawn + np.arange(rows)[:, None] * n_images).ravel()
        yield np.bincount(flat, minlength=rows * n_images).astype(np.int32).reshape(rows, n_images)


def resampled_means(values: Floats, image: Integers, counts: Counts) -> Floats:
    """[R, K] means of ``values`` [Q, K] of queries with images [Q], drawn ``counts`` [R, images] times; NaN of none."""
    sums = np.zeros((counts.shape[1], 1 + values.shape[1]))
    np.add.at(sums, image, np.column_stack([np.ones(len(image)), values]))
    totals = counts.astype(np.float64) @ sums
    with np.errstate(invalid="ignore"):
        means: Floats = totals[:, 1:] / totals[:, :1]
    return means


def resampled_medians(ranks: Integers, image: Integers, counts: Counts) -> Floats:
    """[R] medians of ``ranks`` [Q], as :func:`resampled_means`."""
    order = np.argsort(ranks, kind="stable")
    ascending, taken = ranks[order], np.cumsum(counts[:, image[order]], axis=1, dtype=np.int32)
    medians = np.full(len(taken), np.nan)
    for row, taken_until in enumerate(taken):
        if total := int(taken_until[-1]):
            middle = np.searchsorted(taken_until, [(total - 1) // 2, total // 2], side="right")
            medians[row] = ascending[middle].mean()
    return medians


def percentile_interval(resampled: Floats) -> list[float]:
    """[low, high]: the percentiles 2.5 and 97.5 of resampled values [R], without NaN."""
    low, high = np.percentile(resampled[~np.isnan(resampled)], [2.5, 97.5])
    return [float(low), float(high)]


def with_interval(name: str, value: float, resampled: Floats) -> dict[str, float]:
    """A value under its name, and its 95 % interval as ``name_low`` and ``name_high``."""
    low, high = percentile_interval(resampled)
    return {name: value, f"{name}_low": low, f"{name}_high": high}


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds, and the interval of the mean over all seeds."""

    mean: float  # over the seeds
    interval: tuple[float, float] | None  # 95 % t-interval (low, high); None for one seed
    seeds: int  # number of seeds

    @property
    def half_width(self) -> float | None:
        """Half of the width of the interval."""
        return None if self.interval is None else (self.interval[1] - self.interval[0]) / 2

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**vars(self), "interval": self.interval and list(self.interval)}


def estimate(values: Sequence[float]) -> Estimate | None:
    """Mean and 95 % t-interval of one value a seed: mean ± t · s / √n with n - 1 degrees of freedom; None of none."""
    if len(values) < 2:
        return Estimate(float(values[0]), None, 1) if values else None
    mean, count = fmean(values), len(values)
    half = t_quantile(count - 1) * stdev(values) / math.sqrt(count)
    return Estimate(mean, (mean - half, mean + half), count)


def paired_difference(values: Mapping[int, float], baseline: Mapping[int, float]) -> Estimate | None:
    """Estimate of the difference to a baseline over the seeds that both have.

    A seed gives both the same start and the same data, so its effect cancels in the difference.
    """
    return estimate([values[seed] - baseline[seed] for seed in sorted(values.keys() & baseline.keys())])


def t_quantile(degrees: int) -> float:
    """The t for which a Student variable of ``degrees`` of freedom is between -t and t with probability 0.95.

    With t = √degrees · tan(angle) the density is proportional to cos(angle) to the power degrees - 1, whose integral is
    tabulated here.
    """
    if degrees < 1:
        raise ValueError(f"t has at least 1 degree of freedom, not {degrees}")
    angles = np.linspace(0, math.pi / 2, 100_001)
    density = np.cos(angles) ** (degrees - 1)
    area = np.cumsum(density[1:] + density[:-1])
    return math.sqrt(degrees) * math.tan(np.interp(0.95 * area[-1], area, angles[1:]))
