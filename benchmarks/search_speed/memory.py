"""What an index takes of memory; a module of its own, so that the process that is measured loads no model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from saysee.search.index.index import Index


def memory_of(folder: Path, asked: NDArray[np.float32], k: int) -> int | None:
    """Megabytes by which a process grows that opens an index and asks it; None where the system does not tell."""
    before = _peak()
    index = Index.open(folder)
    for query in asked:
        index.search(vectors=query[None], k=k, kind="image")
    after = _peak()
    return None if before is None or after is None else round(after - before)


def _peak() -> float | None:
    """The most megabytes that this process has held, files mapped into memory counted as far as they were read."""
    # Not getrusage, which begins with what the parent held.
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    fields = dict(line.split(":", 1) for line in status.read_text(encoding="ascii").splitlines() if ":" in line)
    return int(fields["VmHWM"].split()[0]) * 1024 / 1e6
