"""What no change of the package's inside may move: vectors, measures, manifests, hits and losses, as they once were."""

from __future__ import annotations

import json
from pathlib import Path

import golden_cases as cases
import numpy as np
import pytest

EXPECTED = json.loads(cases.EXPECTED.read_text(encoding="utf-8"))
# Other instructions sum in another order; what that changes in the last bits grows through layers and steps. So does
# HuBERT's first convolutions as matrix products: it moved two of these losses, after 17 and 19 steps, by up to 1.4e-5.
SAME_CPU = EXPECTED["capability"] == cases.capability()
ABSOLUTE, RELATIVE = (1e-6, 2e-5) if SAME_CPU else (1e-4, 1e-3)
COSINE, STIRRED_COSINE = 0.9999, 0.9998
"""Of a vector in bf16, where the CPU has it, to the same in fp32: the expected vectors are in fp32. The head that no
training has seen, with its arbitrary weights, has 0.99990."""
SCORE = 5e-3
"""Of a score where index or query may be in bf16: against fp32 it moved scores of these files by up to 0.0035."""


def test_vectors_stay(tmp_path: Path) -> None:
    found = cases.vectors(tmp_path)
    with np.load(cases.VECTORS) as expected:
        assert found.keys() == set(expected.files)
        for name, values in found.items():
            least = STIRRED_COSINE if "stirred" in name else COSINE
            if cases.HAS_BF16 and (values * expected[name]).sum(axis=1).min() >= least:
                continue
            np.testing.assert_allclose(values, expected[name], rtol=0, atol=ABSOLUTE, err_msg=name)


def test_measures_and_intervals_stay() -> None:
    assert cases.recall_tables() == EXPECTED["recall"]


@pytest.mark.parametrize("layout", cases.LAYOUTS)
def test_manifests_stay(tmp_path: Path, layout: str) -> None:
    assert cases.manifest_rows(layout, tmp_path) == EXPECTED["manifests"][layout]


def test_first_ten_hits_stay(tmp_path: Path) -> None:
    for query, (found, expected) in enumerate(zip(cases.scores(tmp_path, 10), EXPECTED["scores"], strict=True)):
        names = list(found)
        assert len(names) == 10, query
        assert found == pytest.approx({name: expected[name] for name in names}, abs=SCORE), query
        # Of each file found none that comes later, or not at all, was clearly better.
        for place, name in enumerate(names):
            best = max(score for other, score in expected.items() if other not in names[:place])
            assert expected[name] >= best - 2 * SCORE, (query, place, name)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cases.write_pairs(tmp_path_factory.mktemp("pairs"))


@pytest.mark.parametrize("run", cases.RUNS)
def test_losses_of_the_first_steps_stay(tmp_path: Path, pairs: Path, run: str) -> None:
    found = cases.losses(pairs, run, tmp_path / "run")
    assert found == pytest.approx(EXPECTED["losses"][run], rel=RELATIVE, abs=0)
