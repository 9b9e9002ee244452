"""The benchmark of searching: both ways do the same work, and the table says what was measured."""

from __future__ import annotations

import json
import sys
import time

import numpy as np
import pytest
from benchmarks.search_speed.comparison import SearchSpeed, SearchSpeedSettings, compare_search
from benchmarks.search_speed.turns import ratio, take_turns
from benchmarks.search_speed.vectors import DIMENSION, Structure

from saysee.cli import main
from saysee.errors import ConfigError


def test_turns_are_taken_and_the_ratio_is_of_the_same_round():
    order = []
    slow, fast = (lambda: (order.append("slow"), time.sleep(0.05))), (lambda: (order.append("fast"), time.sleep(0.01)))
    spent = take_turns({"slow": slow, "fast": fast}, 3)
    assert order == ["slow", "fast"] * 3
    assert 1.2 < ratio(spent["slow"], spent["fast"]) < 6
    assert spent["slow"].median() >= 0.05
    assert sum(spent["slow"].processor_seconds) < 0.1


def test_vectors_have_structure_and_queries_have_neighbours():
    structure = Structure(5_000)
    vectors, queries = structure.draw(5_000), structure.queries(200)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert vectors.shape == (5_000, DIMENSION)
    power = np.linalg.svd(vectors, compute_uv=False) ** 2
    assert power[:64].sum() > 0.7 * power.sum()
    best = np.sort(queries @ vectors.T, axis=1)[:, -1]
    assert 0.4 < np.median(best) < 0.95  # not twins of what is indexed, and not anywhere
    assert np.array_equal(Structure(5_000).draw(10), Structure(5_000).draw(10))


def test_encoding_gives_equal_vectors_both_ways():
    settings = SearchSpeedSettings(parts=["encoding"], sizes=["nano"], pictures=6, clips=5, rounds=1)
    (found,) = compare_search(settings, lambda text: None).encoding
    for what in ("pictures", "speech"):
        assert found[what]["least_cosine"] > 0.999
        assert found[what]["loop_per_second"] > 0
        assert found[what]["arithmetic"] in ("fp32", "bf16")


def test_queries_find_what_exact_search_finds(capsys):
    words = ["--parts", "queries", "--rows", "1500,21000", "--queries", "10", "--pgvector-rows", "0", "--json"]
    assert main(["benchmark", "search", *words]) == 0
    few, many = json.loads(capsys.readouterr().out)["queries"]
    assert few["ways"]["saysee index"]["method"] == "exact, from memory"
    assert many["ways"]["saysee index"]["method"] == "exact, fp16"
    for found in (few, many):
        assert found["ways"]["saysee index"]["recall@10"] >= 0.99
        assert found["ways"]["faiss, flat"]["recall@10"] == 1
        assert found["left_out"] == {"pgvector": "left out over 0 rows"}
        for way in found["ways"].values():
            assert 0 < way["p50_ms"] <= way["p99_ms"]
    if sys.platform == "linux":
        assert many["ways"]["saysee index"]["megabytes_in_memory"] > 21_000 * 512 * 2 / 1e6 / 2


def test_pgvector_is_asked_where_it_is_installed(tmp_path):
    pytest.importorskip("pgserver", reason="pgserver has no wheel for this platform")
    pytest.importorskip("pgvector")
    settings = SearchSpeedSettings(parts=["queries"], rows=[500], queries=10)
    (found,) = compare_search(settings, lambda text: None).queries
    assert found["ways"]["pgvector, HNSW"]["recall@10"] >= 0.99
    assert "| pgvector, HNSW |" in SearchSpeed(queries=[found]).to_markdown()


def test_spoken_query_goes_through_the_service():
    pytest.importorskip("fastapi")
    settings = SearchSpeedSettings(parts=["spoken"], sizes=["nano"], spoken_rows=200, rounds=1)
    (found,) = compare_search(settings, lambda text: None).spoken
    assert found["http_p50_ms"] > found["forward_p50_ms"] > 0
    assert found["ratio_of_p50"] == pytest.approx(found["http_p50_ms"] / found["forward_p50_ms"], abs=0.02)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--parts", "encoding,all"], "--parts has 'all'"),
        (["--sizes", "huge"], "--sizes has 'huge'"),
        (["--rows", "many"], "--rows is 'many'"),
        (["--rows", "5"], "give sizes of 100 and more"),
        (["--picture-size", "big"], "such as 640x480"),
        (["--rounds", "0"], "--rounds is 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(words, told, capsys):
    assert main(["benchmark", "search", *words]) == 2
    assert told in capsys.readouterr().err


def test_no_rows_are_refused():
    with pytest.raises(ConfigError, match="--rows"):
        SearchSpeedSettings(rows=[])
