"""All comparisons of ``saysee benchmark search``, and their tables."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from benchmarks.search_speed.encoding import compare_encoding
from benchmarks.search_speed.models import Size
from benchmarks.search_speed.querying import compare_queries
from benchmarks.search_speed.spoken import compare_spoken
from saysee.errors import ConfigError

Part = Literal["encoding", "queries", "spoken"]
PARTS: tuple[Part, ...] = get_args(Part)
SIZES: tuple[Size, ...] = get_args(Size)
_QUERY_HEADS = ("method", "p50, ms", "p99, ms", "recall@10", "MB in memory", "MB on disk", "seconds to build")


@dataclass(frozen=True, slots=True)
class SearchSpeedSettings:
    """What is measured.

    Attributes:
        parts: of the whole.
        sizes: models that encode pictures, clips and spoken queries; "base" is that of HuBERT base and CLIP ViT-B/32.
        pictures: to encode.
        clips: to encode.
        picture_size: width and height of the pictures.
        rows: vectors to search in, one comparison each.
        pgvector_rows: most rows that pgvector is asked to index.
        queries: single searches that count.
        spoken_rows: vectors behind the service.
        rounds: turns of encoding that count; spoken queries take ten times as many.
    """

    parts: Sequence[Part] = PARTS
    sizes: Sequence[Size] = SIZES
    pictures: int = 256
    clips: int = 64
    picture_size: tuple[int, int] = (640, 480)
    rows: Sequence[int] = (10_000, 100_000, 1_000_000)
    pgvector_rows: int = 100_000
    queries: int = 500
    spoken_rows: int = 10_000
    rounds: int = 3

    def __post_init__(self) -> None:
        for name in ("pictures", "clips", "queries", "spoken_rows", "rounds"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name.replace('_', '-')} is {getattr(self, name)}; it must be at least 1")
        if min(self.rows, default=0) < 100:
            raise ConfigError(f"--rows is {','.join(map(str, self.rows))}; give sizes of 100 and more")


@dataclass(slots=True)
class SearchSpeed:
    """What was measured; a list of comparisons for each part."""

    encoding: list[dict[str, Any]] = field(default_factory=list)
    queries: list[dict[str, Any]] = field(default_factory=list)
    spoken: list[dict[str, Any]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "processors": os.cpu_count(),
            "encoding": self.encoding,
            "queries": self.queries,
            "spoken": self.spoken,
        }

    def to_markdown(self) -> str:
        """Tables, for people and for documents."""
        tables = []
        if self.encoding:
            heads = ("encoders", "what", "loop", "index", "times as fast", "by processor time", "least cosine", "in")
            tables.append(_table(heads, [line for one in self.encoding for line in _encoding_lines(one)]))
        for one in self.queries:
            tables.append(
                _table(
                    (f"{one['rows']:,} vectors", *_QUERY_HEADS),
                    [_query_line(name, way) for name, way in one["ways"].items()],
                )
            )
            tables += [f"{name}: {reason}" for name, reason in one["left_out"].items()]
        if self.spoken:
            columns = ("encoders", "vectors", "forward pass p50, ms", "over HTTP p50, ms", "p99, ms", "ratio of p50")
            names = ("size", "rows", "forward_p50_ms", "http_p50_ms", "http_p99_ms", "ratio_of_p50")
            tables.append(_table(columns, [[str(one[name]) for name in names] for one in self.spoken]))
        return "\n\n".join(tables)


def compare_search(settings: SearchSpeedSettings, told: Callable[[str], None]) -> SearchSpeed:
    """Measures everything that the settings name, each in a temporary folder of its own.

    Args:
        settings: what and how much.
        told: is given a line before each part, which takes minutes.

    Raises:
        ConfigError: a setting that makes no sense.
        SaySeeError: the service does not start.
    """
    done = SearchSpeed()
    if "encoding" in settings.parts:
        for size in settings.sizes:
            told(f"encoding, {size} size")
            with _scratch() as scratch:
                done.encoding.append(
                    compare_encoding(
                        size, settings.pictures, settings.clips, settings.rounds, scratch, settings.picture_size
                    )
                )
    if "queries" in settings.parts:
        for rows in settings.rows:
            told(f"queries, {rows:,} vectors")
            with _scratch() as scratch:
                done.queries.append(compare_queries(rows, settings.queries, settings.pgvector_rows, scratch))
    if "spoken" in settings.parts:
        for size in settings.sizes:
            told(f"spoken queries over HTTP, {size} size")
            with _scratch() as scratch:
                done.spoken.append(compare_spoken(size, settings.spoken_rows, 10 * settings.rounds, scratch))
    return done


@contextmanager
def _scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="saysee-benchmark-") as folder:
        yield Path(folder)


def _encoding_lines(one: dict[str, Any]) -> Iterable[list[str]]:
    for what, unit in (("pictures", "pictures/s"), ("speech", "s of speech/s")):
        found = one[what]
        yield [
            one["size"],
            unit,
            f"{found['loop_per_second']:.1f}",
            f"{found['index_per_second']:.1f}",
            f"{found['ratio']:.1f}",
            f"{found['processor_ratio']:.1f}",
            f"{found['least_cosine']:.5f}",
            found["arithmetic"],
        ]


def _query_line(name: str, way: dict[str, Any]) -> list[str]:
    return [
        name,
        way["method"],
        f"{way['p50_ms']:.2f}",
        f"{way['p99_ms']:.2f}",
        f"{way['recall@10']:.4f}",
        *(f"{way[key]:,}" if way.get(key) is not None else "–" for key in ("megabytes_in_memory", "megabytes_on_disk")),
        f"{way['seconds_to_build']:.1f}",
    ]


def _table(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [heads, ["---"] * len(heads), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
