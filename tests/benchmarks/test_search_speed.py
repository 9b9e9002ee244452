"""The search benchmark: both implementations do the same work, and the table reports what was measured."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from benchmarks.search.__main__ import main
from benchmarks.search.comparison import SearchSpeed, SearchSpeedSettings, compare_search
from benchmarks.search.turns import Spent, ratio, take_turns
from benchmarks.search.vectors import DIMENSION, Structure


def test_functions_take_turns_and_the_speedup_is_that_of_the_same_round():
    order = []
    spent = take_turns({"slow": lambda: order.append("slow"), "fast": lambda: order.append("fast")}, 3)
    assert order == ["slow", "fast"] * 3
    assert [len(each.seconds) for each in spent.values()] == [3, 3]
    assert ratio(Spent(seconds=[2.0, 30.0, 8.0]), Spent(seconds=[1.0, 10.0, 2.0])) == 3


def test_vectors_have_structure_and_queries_have_neighbors():
    structure = Structure(5_000)
    vectors, queries = structure.draw(5_000), structure.queries(200)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert vectors.shape == (5_000, DIMENSION)
    power = np.linalg.svd(vectors, compute_uv=False) ** 2
    assert power[:64].sum() > 0.7 * power.sum()
    best = np.sort(queries @ vectors.T, axis=1)[:, -1]
    assert 0.4 < np.median(best) < 0.95  # not twins of what is indexed, and not anywhere
    assert np.array_equal(Structure(5_000).draw(10), Structure(5_000).draw(10))


def test_both_ways_of_encoding_give_equal_vectors():
    settings = SearchSpeedSettings(parts=["encoding"], sizes=["nano"], images=6, clips=5, rounds=1)
    (found,) = compare_search(settings).encoding
    for what in ("images", "speech"):
        assert found[what]["least_cosine"] > 0.999
        assert found[what]["loop_per_second"] > 0
        assert found[what]["arithmetic"] in ("fp32", "bf16")


def test_searches_find_what_exact_search_finds(capsys):
    words = ["--parts", "queries", "--rows", "1500,21000", "--queries", "10", "--pgvector_rows", "0", "--json"]
    assert main(words) == 0
    few, many = json.loads(capsys.readouterr().out)["queries"]
    assert few["methods"]["saysee index"]["method"] == "exact, from memory"
    assert many["methods"]["saysee index"]["method"] == "exact, fp16"
    for found in (few, many):
        for name in [name for name in found["methods"] if name.startswith("saysee")]:
            # LanceDB's clusters are drawn anew each time, and reach 0.995 on average: 10 queries have 100 results.
            least = 0.95 if found["methods"][name]["method"].startswith("approximate") else 0.99
            assert found["methods"][name]["recall@10"] >= least
            assert found["methods"][name]["ms_to_add_and_find"] > 0
        assert found["methods"]["faiss, flat"]["recall@10"] == 1
        assert list(found["skipped"]) == ["pgvector"]
        for method in found["methods"].values():
            assert 0 < method["p50_ms"] <= method["p99_ms"]
    if sys.platform == "linux":
        assert many["methods"]["saysee index"]["megabytes_in_memory"] > 21_000 * 512 * 2 / 1e6 / 2


def test_pgvector_is_measured_where_it_is_installed():
    pytest.importorskip("pgserver", reason="pgserver has no wheel for this platform")
    pytest.importorskip("pgvector")
    settings = SearchSpeedSettings(parts=["queries"], rows=[500], queries=10)
    (found,) = compare_search(settings).queries
    assert found["methods"]["pgvector, HNSW"]["recall@10"] >= 0.99
    assert "| pgvector, HNSW |" in SearchSpeed(queries=[found]).to_markdown()


@pytest.mark.nightly  # starts a service and waits for it
def test_a_spoken_query_goes_through_the_service(monkeypatch):
    pytest.importorskip("fastapi")
    monkeypatch.setattr("benchmarks.search.spoken.ASKING_SECONDS", 2.0)
    settings = SearchSpeedSettings(parts=["spoken"], sizes=["nano"], spoken_rows=200, rounds=1)
    (found,) = compare_search(settings).spoken
    assert found["http_p50_ms"] > found["forward_p50_ms"] > 0
    assert found["ratio_of_p50"] == pytest.approx(found["http_p50_ms"] / found["forward_p50_ms"], abs=0.02)
    assert found["requests_per_second"] > 0
    assert found["clients_p99_ms"] > found["http_p50_ms"]


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["--rows", "5"], "--rows is [5]"),
        (["--rows", "[]"], "--rows is []"),
        (["--image_size", "9,480"], "--image_size is (9, 480)"),
        (["--rounds", "0"], "--rounds is 0"),
        (["--dimension", "24"], "--dimension is 24"),
    ],
)
def test_a_setting_out_of_range_is_reported_in_one_line(words, name, capsys):
    assert main(words) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert name in lines[0]


@pytest.mark.parametrize("words", [["--parts", "all"], ["--sizes", "huge,nano"], ["--rows", "many"], ["--nosuch", "1"]])
def test_an_unknown_flag_or_value_ends_with_exit_code_2(words, capsys):
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    assert words[0].strip("-") in capsys.readouterr().err
