"""Searching: an index against faiss called directly and pgvector, by time, recall, memory and time of building."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from benchmarks.search_speed.memory import memory_of
from benchmarks.search_speed.models import model_of_width
from benchmarks.search_speed.pgvector import PgvectorTable, why_not
from benchmarks.search_speed.turns import take_turns
from benchmarks.search_speed.vectors import DIMENSION, Vectors, write_vectors
from saysee.encoding.encoder import Encoder
from saysee.search.index.imported_vectors import index_vectors
from saysee.search.index.index import Index
from saysee.studies.processes import alone

K = 10
WARM_UP = 20
"""Queries of each way before those that count: they bring files into memory."""
_BLOCK = 65_536
_PROBES = 32
_TRAINING_ROWS = 64

Search = Callable[[Vectors], list[int]]
"""One query [D] to the numbers of the rows found."""


@dataclass(frozen=True, slots=True)
class Way:
    """One way to search.

    Attributes:
        search: of it.
        facts: method, seconds to build, bytes and the like.
    """

    search: Search
    facts: dict[str, Any]


def compare_queries(rows: int, queries: int, pgvector_rows: int, scratch: Path) -> dict[str, Any]:
    """Times single queries, which take turns.

    Args:
        rows: vectors in the index.
        queries: how many count.
        pgvector_rows: most rows that pgvector is asked to index.
        scratch: a folder for vectors, index and database.

    Returns:
        for each way p50 and p99 in milliseconds, recall@10 against exact search, seconds to build and megabytes.
    """
    vectors, ids, asked = write_vectors(scratch / "vectors", rows, queries + WARM_UP)
    matrix = np.load(vectors, mmap_mode="r")
    with ExitStack() as stack:
        ways = {
            "saysee index": _index(vectors, ids, scratch / "index"),
            "faiss, flat": _flat(matrix),
            "faiss, IVF": _clustered(matrix),
        }
        reason = why_not() if rows <= pgvector_rows else f"left out over {pgvector_rows:,} rows"
        if reason is None:
            table = stack.enter_context(PgvectorTable.made(matrix, scratch / "postgres"))
            ways["pgvector, HNSW"] = Way(lambda query: table.search(query, K), table.facts)
        figures = _timed(ways, asked)
    figures["saysee index"]["megabytes_in_memory"] = alone(memory_of, scratch / "index", asked[:WARM_UP], K)
    left_out = {} if reason is None else {"pgvector": reason}
    return {"rows": rows, "dimension": DIMENSION, "queries": queries, "ways": figures, "left_out": left_out}


def _timed(ways: dict[str, Way], asked: Vectors) -> dict[str, dict[str, Any]]:
    answers: dict[str, list[list[int]]] = {name: [] for name in ways}

    def asking(name: str, way: Way) -> Callable[[], None]:
        following = itertools.cycle(asked)
        return lambda: answers[name].append(way.search(next(following)))

    turns = {name: asking(name, way) for name, way in ways.items()}
    take_turns(turns, WARM_UP)
    spent = take_turns(turns, len(asked) - WARM_UP)
    truth = answers["faiss, flat"]
    return {
        name: way.facts
        | {
            "p50_ms": round(1000 * spent[name].percentile(50), 3),
            "p99_ms": round(1000 * spent[name].percentile(99), 3),
            "recall@10": round(_recall(answers[name], truth), 4),
        }
        for name, way in ways.items()
    }


def _recall(found: list[list[int]], truth: list[list[int]]) -> float:
    return float(np.mean([len(set(mine) & set(right)) / len(right) for mine, right in zip(found, truth, strict=True)]))


# ---------------------------------------------------------------------- the ways


def _index(vectors: Path, ids: Path, folder: Path) -> Way:
    encoder = Encoder(model_of_width(DIMENSION), "a model of this width")
    start = time.perf_counter()
    report = index_vectors(encoder, vectors, ids, folder)
    seconds = time.perf_counter() - start
    index = Index.open(folder)

    def search(query: Vectors) -> list[int]:
        (hits,) = index.search(vectors=query[None], k=K, kind="image")
        return [int(Path(hit.path).stem) for hit in hits]

    size = sum(path.stat().st_size for path in folder.iterdir())
    facts = {
        "method": report.search["image"],
        "seconds_to_build": round(seconds, 1),
        "megabytes_on_disk": size // 10**6,
    }
    return Way(search, facts)


def _flat(matrix: NDArray[np.float16]) -> Way:
    return _of_faiss(faiss.IndexFlatIP(DIMENSION), matrix, "exact, fp32")


def _clustered(matrix: NDArray[np.float16]) -> Way:
    clusters = 2 ** round(math.log2(2 * math.sqrt(len(matrix))))
    index = faiss.index_factory(DIMENSION, f"IVF{clusters},Flat", faiss.METRIC_INNER_PRODUCT)
    index.nprobe = min(_PROBES, clusters)
    return _of_faiss(index, matrix, f"approximate, {index.nprobe} of {clusters} clusters, fp32")


def _of_faiss(index: Any, matrix: NDArray[np.float16], method: str) -> Way:
    start = time.perf_counter()
    if not index.is_trained:
        rows = np.random.default_rng(0).choice(
            len(matrix), min(len(matrix), _TRAINING_ROWS * index.nlist), replace=False
        )
        index.train(matrix[np.sort(rows)].astype(np.float32))
    for first in range(0, len(matrix), _BLOCK):
        index.add(matrix[first : first + _BLOCK].astype(np.float32))
    facts = {
        "method": method,
        "seconds_to_build": round(time.perf_counter() - start, 1),
        "megabytes_in_memory": matrix.size * 4 // 10**6,
    }
    return Way(lambda query: [int(row) for row in index.search(query[None], K)[1][0] if row >= 0], facts)
