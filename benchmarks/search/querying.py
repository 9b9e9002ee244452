"""Searching: indexes against plain faiss and pgvector, by latency, recall, memory, and time to build and to add."""

from __future__ import annotations

import importlib.util
import itertools
import math
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from benchmarks.search.memory import memory_of
from benchmarks.search.models import model_of_width
from benchmarks.search.pgvector import PgvectorTable, reason_to_skip
from benchmarks.search.turns import take_turns
from benchmarks.search.vectors import Vectors, write_vectors
from saysee.encoding.encoder import Encoder
from saysee.search.index.imported_vectors import index_vectors
from saysee.search.index.index import Index
from saysee.search.index.readers.files import read_files
from saysee.search.index.store import Item
from saysee.studies.processes import run_alone

K = 10
WARM_UP = 20
"""Queries that are not timed: they read the files into memory."""
_ADDED = 5
_BLOCK = 65_536
_PROBES = 32
_TRAINING_ROWS = 64

Search = Callable[[Vectors], list[int]]
"""From one query [D] to the numbers of the rows found."""


@dataclass(frozen=True, slots=True)
class Method:
    """One way to search.

    Attributes:
        search: see :data:`Search`.
        metrics: name of the method, seconds to build, megabytes.
        add: adds a row with a vector [D], if it can; the last search of a run finds it.
    """

    search: Search
    metrics: dict[str, Any]
    add: Callable[[Vectors], None] | None = None


def compare_queries(rows: int, queries: int, pgvector_rows: int, scratch: Path, dimension: int) -> dict[str, Any]:
    """Times single queries of all methods in turn.

    Args:
        rows: number of vectors in the index.
        queries: number of timed queries.
        pgvector_rows: largest number of vectors that pgvector indexes.
        scratch: folder for vectors, indexes and database.
        dimension: of the vectors.

    Returns:
        For each method p50 and p99 in milliseconds, recall@10 against exact search, seconds to build and megabytes; of
        indexes also the milliseconds to add a row and find it.
    """
    vectors, ids, asked = write_vectors(scratch / "vectors", rows, queries + WARM_UP, dimension)
    matrix = np.load(vectors, mmap_mode="r")
    with ExitStack() as stack:
        methods = {
            "saysee index": _index(vectors, ids, os.fspath(scratch / "index"), dimension),
            "faiss, flat": _flat(matrix),
            "faiss, IVF": _clustered(matrix),
        }
        if importlib.util.find_spec("lancedb") is not None:
            methods["saysee index, LanceDB"] = _index(vectors, ids, f"lance://{scratch / 'lance'}", dimension)
        reason = reason_to_skip() if rows <= pgvector_rows else f"more than {pgvector_rows:,} rows"
        if reason is None:
            table = stack.enter_context(PgvectorTable.create(matrix, scratch / "postgres"))
            methods["pgvector, HNSW"] = Method(lambda query: table.search(query, K), table.metrics)
        metrics = _timed(methods, asked)
    metrics["saysee index"]["megabytes_in_memory"] = run_alone(memory_of, scratch / "index", asked[:WARM_UP], K)
    skipped = {} if reason is None else {"pgvector": reason}
    return {"rows": rows, "dimension": dimension, "queries": queries, "methods": metrics, "skipped": skipped}


def _timed(methods: dict[str, Method], asked: Vectors) -> dict[str, dict[str, Any]]:
    answers: dict[str, list[list[int]]] = {name: [] for name in methods}

    def search_of(name: str, method: Method) -> Callable[[], None]:
        following = itertools.cycle(asked)
        return lambda: answers[name].append(method.search(next(following)))

    turns = {name: search_of(name, method) for name, method in methods.items()}
    take_turns(turns, WARM_UP)
    spent = take_turns(turns, len(asked) - WARM_UP)
    truth = answers["faiss, flat"]
    for method in methods.values():
        if method.add is not None:
            method.metrics["ms_to_add_and_find"] = round(1000 * _time_to_add(method.add, method.search, asked), 1)
    return {
        name: method.metrics
        | {
            "p50_ms": round(1000 * spent[name].percentile(50), 3),
            "p99_ms": round(1000 * spent[name].percentile(99), 3),
            "recall@10": round(_recall(answers[name], truth), 4),
        }
        for name, method in methods.items()
    }


def _time_to_add(add: Callable[[Vectors], None], search: Search, asked: Vectors) -> float:
    """Median seconds from a new row to a search that has found it."""
    seconds = []
    for number, vector in enumerate(asked[:_ADDED], start=1):
        start = time.perf_counter()
        add(vector)
        found = search(vector)
        seconds.append(time.perf_counter() - start)
        if found[0] != -number:
            raise RuntimeError(f"the row that was added is not the first of {found}")
    return float(np.median(seconds))


def _recall(found: list[list[int]], truth: list[list[int]]) -> float:
    return float(np.mean([len(set(mine) & set(right)) / len(right) for mine, right in zip(found, truth, strict=True)]))


def _index(vectors: Path, ids: Path, place: str, dimension: int) -> Method:
    encoder = Encoder(model_of_width(dimension))
    start = time.perf_counter()
    report = index_vectors(encoder, read_files(vectors, ids, encoder.dimension), place)
    seconds = time.perf_counter() - start
    index = Index.open(place)
    number = itertools.count(-1, -1)

    def add(vector: Vectors) -> None:
        with index.store.writing() as writer, writer.transaction():
            writer.put([Item("image", f"{next(number)}.jpg")], vector[None])

    def search(query: Vectors) -> list[int]:
        (hits,) = index.search(vectors=query[None], k=K, kind="image")
        return [int(Path(hit.path).stem) for hit in hits]

    with index.store.writing() as writer:
        size = writer.size_in_bytes()
    metrics = {
        "method": report.search["image"],
        "seconds_to_build": round(seconds, 1),
        "megabytes_on_disk": size // 10**6,
    }
    return Method(search, metrics, add)


def _flat(matrix: NDArray[np.float16]) -> Method:
    return _of_faiss(faiss.IndexFlatIP(matrix.shape[1]), matrix, "exact, fp32")


def _clustered(matrix: NDArray[np.float16]) -> Method:
    clusters = 2 ** round(math.log2(2 * math.sqrt(len(matrix))))
    index = faiss.index_factory(matrix.shape[1], f"IVF{clusters},Flat", faiss.METRIC_INNER_PRODUCT)
    index.nprobe = min(_PROBES, clusters)
    return _of_faiss(index, matrix, f"approximate, {index.nprobe} of {clusters} clusters, fp32")


def _of_faiss(index: Any, matrix: NDArray[np.float16], method: str) -> Method:
    start = time.perf_counter()
    if not index.is_trained:
        rows = np.random.default_rng(0).choice(
            len(matrix), min(len(matrix), _TRAINING_ROWS * index.nlist), replace=False
        )
        index.train(matrix[np.sort(rows)].astype(np.float32))
    for first in range(0, len(matrix), _BLOCK):
        index.add(matrix[first : first + _BLOCK].astype(np.float32))
    metrics = {
        "method": method,
        "seconds_to_build": round(time.perf_counter() - start, 1),
        "megabytes_in_memory": matrix.size * 4 // 10**6,
    }
    return Method(lambda query: [int(row) for row in index.search(query[None], K)[1][0] if row >= 0], metrics)
