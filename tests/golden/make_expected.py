"""Writes what test_golden.py expects: PYTHONPATH=tests python tests/golden/make_expected.py

The expected files are never renewed without a reason that the commit states: which behaviour was to change, and why.
A test here that fails means first of all that a change broke something.
"""

import json
import os
import tempfile
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}  # as in conftest.py, before anything imports torch

import golden_cases as cases
import numpy as np


def main() -> None:
    """Computes everything anew with the package as it is."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.savez_compressed(cases.VECTORS, **cases.vectors(folder / "vectors"))
        pairs = cases.write_pairs(folder / "pairs")
        parts = {
            "capability": cases.capability(),
            "recall": cases.recall_tables(),
            "manifests": {layout: cases.manifest_rows(layout, folder / layout) for layout in cases.LAYOUTS},
            "scores": cases.scores(folder / "search", cases.COUNT),
            "losses": {run: cases.losses(pairs, run, folder / run) for run in cases.RUNS},
        }
    lines = [f"{json.dumps(part)}: {json.dumps(value)}" for part, value in parts.items()]
    cases.EXPECTED.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
