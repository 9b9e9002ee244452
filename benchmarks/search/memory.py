"""Memory of an index; a module of its own, so that the measured process loads no model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from saysee.search.index.index import Index


def memory_of(folder: Path, queries: NDArray[np.float32], k: int) -> int | None:
    """Megabytes by which a process grows that opens an index and searches it; None if the system does not report it."""
    before = _peak()
    index = Index.open(folder)
    for query in queries:
        index.search(vectors=query[None], k=k, kind="image")
    after = _peak()
    return None if before is None or after is None else round(after - before)


def _peak() -> float | None:
    """Peak megabytes of this process, with the pages of mapped files that were read."""
    # Not getrusage, which starts at the parent's peak.
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    fields = dict(line.split(":", 1) for line in status.read_text(encoding="ascii").splitlines() if ":" in line)
    return int(fields["VmHWM"].split()[0]) * 1024 / 1e6
