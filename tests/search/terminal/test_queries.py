"""Queries of the command line: what a file is depends on its content, and results keep the order of the queries."""

from __future__ import annotations

import shutil

import pytest

from saysee import Index, SaySeeError
from saysee.errors import MediaError
from saysee.search.index.updating import update_index
from saysee.search.terminal.queries import run_queries


@pytest.fixture
def index(encoder, photos, tmp_path) -> Index:
    update_index(encoder, photos, tmp_path / "index")
    return Index.open(tmp_path / "index", model=encoder.model)


def test_files_of_any_name_are_queries_by_their_content(index, photos, tmp_path):
    clip, image = tmp_path / "speech", tmp_path / "image.wav"
    shutil.copy(photos / "clips/0.wav", clip)
    shutil.copy(photos / "work/4.png", image)
    found = run_queries(index, [str(image), str(clip)], ["two green stars"], k=2, filters=["folder:work"], kind="image")
    assert [(result.name, result.kind) for result in found.results] == [
        (str(image), "image"),
        (str(clip), "clip"),
        ("two green stars", "text"),
    ]
    assert all(len(result.hits) == 2 and "/work/" in result.hits[0].path for result in found.results)
    assert found.results[0].hits[0].path == str(photos / "work/4.png")


def test_bad_files_are_skipped_in_a_folder_and_errors_when_named(index, photos, tmp_path):
    bad = photos / "clips/bad.wav"
    bad.write_text("not audio")
    found = run_queries(index, [str(photos / "clips")], k=1)
    assert [result.name.rpartition("/")[2] for result in found.results] == ["0.wav", "1.wav", "2.wav"]
    assert (len(found.skipped), "bad.wav" in found.skipped[0]) == (1, True)
    with pytest.raises(MediaError, match=r"bad\.wav") as error:
        run_queries(index, [str(bad)])
    assert error.value.code == "undecodable"
    with pytest.raises(MediaError, match="--text"):
        run_queries(index, ["two green stars"])
    with pytest.raises(SaySeeError, match="--record"):
        run_queries(index, [])
    (tmp_path / "empty").mkdir()
    with pytest.raises(SaySeeError, match="empty"):
        run_queries(index, [str(tmp_path / "empty")])
