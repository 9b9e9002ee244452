"""What the plan of a large index rests on: bytes and CPU time by store, and how many readers hold a latency.

    python -m benchmarks.capacity store --to DIR --rows 50000
    python -m benchmarks.capacity readers --rate 1000 --p50 0.005 --p99 0.007 --at-once 8

``readers`` is a simulation. Queries arrive at random times (a Poisson process). Each goes to one of the readers, at
random or to the one that is free first, which serves them in the order of arrival. Service times are drawn from a
log-normal distribution with the measured median and 99th percentile of a query that waits for no other.
"""

from __future__ import annotations

import argparse
import heapq
import sys
import time

import numpy as np
from lab.programs import run_program
from numpy.typing import NDArray

from benchmarks.search.vectors import DIMENSION, Structure
from saysee.errors import ConfigError
from saysee.search.index.about import About
from saysee.search.index.index import open_store
from saysee.search.index.store import Item

Seconds = NDArray[np.float64]
NORMAL_P99 = 2.3263
"""The 99th percentile of the standard normal distribution."""


def service_times(p50: float, p99: float, count: int, seed: int = 0) -> Seconds:
    """Draws service times [count] in seconds, log-normal with this median and 99th percentile."""
    if not 0 < p50 <= p99:
        raise ConfigError(f"a median of {p50:g} s and a 99th percentile of {p99:g} s cannot be; give 0 < p50 <= p99")
    normal = np.random.default_rng(seed).standard_normal(count)
    return np.asarray(p50 * np.exp(np.log(p99 / p50) / NORMAL_P99 * normal))


def latencies(
    services: Seconds, rate: float, readers: int, at_once: int, *, to_first_free: bool = False, seed: int = 1
) -> Seconds:
    """Simulates queries; returns the time from arrival to answer of each [N], in seconds.

    Args:
        services: service time of each query [N], in seconds.
        rate: queries a second, of all readers together.
        readers: machines that answer.
        at_once: queries that a reader computes at the same time.
        to_first_free: a query goes to the reader that is free first, not to one at random.
        seed: of arrivals and choices.
    """
    rng = np.random.default_rng(seed)
    arrivals = np.cumsum(rng.exponential(1 / rate, len(services)))
    chosen = rng.integers(0, readers, len(services))
    free = [[0.0] * at_once for _ in range(readers)]  # of each reader a heap: when each of its places is free
    ends = np.empty(len(services))
    for query, (arrival, service) in enumerate(zip(arrivals.tolist(), services.tolist(), strict=True)):
        reader = min(free, key=lambda heap: heap[0]) if to_first_free else free[chosen[query]]
        ends[query] = max(arrival, reader[0]) + service
        heapq.heapreplace(reader, ends[query])
    return np.asarray(ends - arrivals)


def readers_table(rate: float, p50: float, p99: float, at_once: int, limit: float, queries: int) -> str:
    """Latencies by number of readers, up to the first number that keeps the limit when one of them is down."""
    services = service_times(p50, p99, queries)
    if np.quantile(services, 0.99) > limit:
        raise ConfigError(f"--p99 {p99:g} is above --limit {limit:g}: no number of readers keeps that")
    busy = rate * services.mean()
    fewest = int(busy / at_once) + 1
    lines = [
        f"{busy:.1f} queries are computed at any time, by {at_once} of each reader",
        "",
        "| readers | load | p50, ms | p99, ms | p99 with one down, ms | p99, first free, ms |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    without = np.inf
    for readers in range(fewest, fewest + 1_000):
        times = latencies(services, rate, readers, at_once)
        balanced = latencies(services, rate, readers, at_once, to_first_free=True)
        p50s = [np.quantile(times, 0.5), *(np.quantile(each, 0.99) for each in (times, balanced))]
        each = (p50s[0], p50s[1], without, p50s[2])
        cells = [f"{1e3 * seconds:.1f}" if seconds < np.inf else "too few" for seconds in each]
        lines.append(f"| {readers} | {busy / readers / at_once:.2f} | {' | '.join(cells)} |")
        if without <= limit:
            break
        without = p50s[1]
    return "\n".join(lines)


def store_table(to: str, rows: int, queries: int, batch: int = 1_000) -> str:
    """Fills a new index with synthetic vectors, searches it, and tells what that takes."""
    structure, store, start = Structure(rows), open_store(to), time.perf_counter()
    with store.writing() as writer:
        writer.set_about(About("model", None, {"image": "1", "clip": "2"}, DIMENSION, "float32", "/root", None, "."))
        for first in range(0, rows, batch):
            paths = [f"2024/summer holiday/IMG_{number:09}.jpg" for number in range(first, min(first + batch, rows))]
            taken = {"taken": "2024-07-01T12:00:00", "camera": "Canon EOS R6"}
            items = [Item("image", path, 4_000_000, 1_700_000_000_000_000_000, f"{path:>32}", taken) for path in paths]
            with writer.transaction():
                writer.put(items, structure.draw(len(items)))
        written, bytes_written = time.perf_counter(), writer.size_in_bytes()
        method = writer.make_ready()["image"]
        ready, bytes_ready = time.perf_counter(), writer.size_in_bytes()
    asked = structure.queries(queries)
    store.nearest(asked[:1], "image", 10)
    seconds, cpu = [], time.process_time()
    for query in asked:
        before = time.perf_counter()
        store.nearest(query[None], "image", 10)
        seconds.append(time.perf_counter() - before)
    cpu = (time.process_time() - cpu) / queries
    p50, p99 = np.quantile(seconds, (0.5, 0.99))
    names = ("rows", "searched", "bytes a row", "with the fast copy", "rows/s written", "seconds to build")
    cells = [f"{rows:,}", method, f"{bytes_written / rows:,.0f}", f"{bytes_ready / rows:,.0f}"]
    cells += [f"{rows / (written - start):,.0f}", f"{ready - written:.1f}"]
    lines = (
        (*names, "p50, ms", "p99, ms", "CPU time of this process, ms"),
        ["---"] * 9,
        (*cells, f"{1e3 * p50:.2f}", f"{1e3 * p99:.2f}", f"{1e3 * cpu:.2f}"),
    )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> int:
    """Prints a table in Markdown, and returns the exit code."""

    def action() -> None:
        parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
        verbs = parser.add_subparsers(required=True)
        store = verbs.add_parser("store", help="what rows and queries take in a store")
        store.set_defaults(table=store_table)
        store.add_argument("--to", required=True, help="a new index: a folder or an address")
        store.add_argument("--rows", type=int, default=50_000, help="of the index (%(default)s)")
        store.add_argument("--queries", type=int, default=200, help="that are timed (%(default)s)")
        readers = verbs.add_parser("readers", help="simulates how many readers hold a latency")
        readers.set_defaults(table=readers_table)
        readers.add_argument("--rate", type=float, default=1_000, help="queries a second (%(default)s)")
        readers.add_argument("--p50", type=float, required=True, metavar="SECONDS", help="median service time")
        readers.add_argument("--p99", type=float, required=True, metavar="SECONDS", help="its 99th percentile")
        readers.add_argument("--at-once", type=int, default=8, help="queries that a reader computes (%(default)s)")
        readers.add_argument("--limit", type=float, default=0.2, metavar="SECONDS", help="p99 to keep (%(default)s)")
        readers.add_argument("--queries", type=int, default=100_000, help="that are simulated (%(default)s)")
        options = vars(parser.parse_args())
        print(options.pop("table")(**options))

    return run_program("benchmarks.capacity", action)


if __name__ == "__main__":
    sys.exit(main())
