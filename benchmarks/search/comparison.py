"""All comparisons of the search benchmark, and their tables."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from benchmarks.search.encoding import compare_encoding
from benchmarks.search.models import Size
from benchmarks.search.querying import compare_queries
from benchmarks.search.spoken import CLIENTS, compare_spoken
from benchmarks.search.vectors import DIMENSION
from saysee.errors import ConfigError

logger = logging.getLogger(__name__)

Part = Literal["encoding", "queries", "spoken"]
PARTS: tuple[Part, ...] = get_args(Part)
SIZES: tuple[Size, ...] = get_args(Size)
_QUERY_HEADS = (
    "method",
    "p50, ms",
    "p99, ms",
    "recall@10",
    "MB in memory",
    "MB on disk",
    "seconds to build",
    "ms to add a row",
)


@dataclass(frozen=True, slots=True)
class SearchSpeedSettings:
    """What is measured.

    Attributes:
        parts: comparisons to run, such as encoding,queries.
        sizes: models that encode images, clips and spoken queries; "base" is HuBERT base with CLIP ViT-B/32.
        images: number of images to encode.
        clips: number of clips to encode.
        image_size: width and height of the images in pixels.
        rows: numbers of vectors to search in, one comparison each.
        dimension: of these vectors.
        pgvector_rows: largest number of vectors that pgvector indexes.
        queries: number of timed searches.
        spoken_rows: number of vectors in the index of the service.
        rounds: timed rounds of encoding; spoken queries take ten times as many.
    """

    parts: list[Part] = field(default_factory=lambda: list(PARTS))
    sizes: list[Size] = field(default_factory=lambda: list(SIZES))
    images: int = 256
    clips: int = 64
    image_size: tuple[int, int] = (640, 480)
    rows: list[int] = field(default_factory=lambda: [10_000, 100_000, 1_000_000])
    dimension: int = DIMENSION
    pgvector_rows: int = 100_000
    queries: int = 500
    spoken_rows: int = 10_000
    rounds: int = 3

    def __post_init__(self) -> None:
        for name in ("images", "clips", "queries", "spoken_rows", "rounds"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name} is {getattr(self, name)}; it must be at least 1")
        if min(self.rows, default=0) < 100:
            raise ConfigError(f"--rows is {self.rows}; give numbers of at least 100")
        if self.dimension < 64:
            raise ConfigError(f"--dimension is {self.dimension}; it must be at least 64")
        if not all(16 <= side <= 8_000 for side in self.image_size):
            raise ConfigError(f"--image_size is {self.image_size}; give width and height of 16 to 8000 pixels")


@dataclass(slots=True)
class SearchSpeed:
    """The measurements: a list of comparisons for each part."""

    encoding: list[dict[str, Any]] = field(default_factory=list)
    queries: list[dict[str, Any]] = field(default_factory=list)
    spoken: list[dict[str, Any]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "cpus": os.cpu_count(),
            "encoding": self.encoding,
            "queries": self.queries,
            "spoken": self.spoken,
        }

    def to_markdown(self) -> str:
        """Tables, for people and for documents."""
        tables = []
        if self.encoding:
            heads = ("encoders", "what", "loop", "index", "times as fast", "by CPU time", "least cosine", "in")
            tables.append(_table(heads, [line for one in self.encoding for line in _encoding_lines(one)]))
        for one in self.queries:
            tables.append(
                _table(
                    (f"{one['rows']:,} vectors", *_QUERY_HEADS),
                    [_query_line(name, method) for name, method in one["methods"].items()],
                )
            )
            tables += [f"{name}: {reason}" for name, reason in one["skipped"].items()]
        if self.spoken:
            columns = {
                "encoders": "size",
                "vectors": "rows",
                "forward pass p50, ms": "forward_p50_ms",
                "over HTTP p50, ms": "http_p50_ms",
                "p99, ms": "http_p99_ms",
                "ratio of p50": "ratio_of_p50",
                f"{CLIENTS} clients: requests a second": "requests_per_second",
                "p99 of a request, ms": "clients_p99_ms",
            }
            tables.append(_table([*columns], [[str(one[name]) for name in columns.values()] for one in self.spoken]))
        return "\n\n".join(tables)


def compare_search(settings: SearchSpeedSettings) -> SearchSpeed:
    """Runs the comparisons of the settings, each in a temporary folder of its own.

    Args:
        settings: see :class:`SearchSpeedSettings`.

    Raises:
        SaySeeError: the service does not start.
    """
    done = SearchSpeed()
    if "encoding" in settings.parts:
        for size in settings.sizes:
            logger.info("encoding, %s size", size)
            with _scratch() as scratch:
                done.encoding.append(
                    compare_encoding(
                        size, settings.images, settings.clips, settings.rounds, scratch, settings.image_size
                    )
                )
    if "queries" in settings.parts:
        for rows in settings.rows:
            logger.info("queries, %d vectors", rows)
            with _scratch() as scratch:
                done.queries.append(
                    compare_queries(rows, settings.queries, settings.pgvector_rows, scratch, settings.dimension)
                )
    if "spoken" in settings.parts:
        for size in settings.sizes:
            logger.info("spoken queries over HTTP, %s size", size)
            with _scratch() as scratch:
                done.spoken.append(compare_spoken(size, settings.spoken_rows, 10 * settings.rounds, scratch))
    return done


@contextmanager
def _scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="saysee-benchmark-") as folder:
        yield Path(folder)


def _encoding_lines(one: dict[str, Any]) -> Iterable[list[str]]:
    for what, unit in (("images", "images/s"), ("speech", "s of speech/s")):
        found = one[what]
        yield [
            one["size"],
            unit,
            f"{found['loop_per_second']:.1f}",
            f"{found['index_per_second']:.1f}",
            f"{found['ratio']:.1f}",
            f"{found['cpu_ratio']:.1f}",
            f"{found['least_cosine']:.5f}",
            found["arithmetic"],
        ]


def _query_line(name: str, method: dict[str, Any]) -> list[str]:
    return [
        name,
        method["method"],
        f"{method['p50_ms']:.2f}",
        f"{method['p99_ms']:.2f}",
        f"{method['recall@10']:.4f}",
        *(
            f"{method[key]:,}" if method.get(key) is not None else "–"
            for key in ("megabytes_in_memory", "megabytes_on_disk")
        ),
        f"{method['seconds_to_build']:.1f}",
        f"{method.get('ms_to_add_and_find', '–')}",
    ]


def _table(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [heads, ["---"] * len(heads), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
