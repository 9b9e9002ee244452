"""Search with the first hits re-ranked: the same order in Python and on the command line, and what cannot be read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from saysee import Index, SaySeeError
from saysee.cli import main
from saysee.encoding.encoder import Encoder
from saysee.encoding.reranking import match, reranked_score
from saysee.search.index.updating import update_index


@pytest.fixture
def index(matching_folder, photos, tmp_path) -> Index:
    update_index(Encoder(matching_folder), photos, tmp_path / "index")
    return Index.open(tmp_path / "index")


def names(hits) -> list[str]:
    return [Path(hit.path).name for hit in hits]


def test_clips_find_images_and_images_clips_in_the_order_of_the_score(index, photos):
    encoder, changed = index.encoder, 0
    for ask, kind in (
        ({"speech": sorted(photos.rglob("*.wav"))}, "image"),
        ({"images": sorted(photos.rglob("*.png"))}, "clip"),
    ):
        plain = index.search(**ask, k=20, kind=kind)
        (queries,) = ask.values()
        for query, before, after in zip(queries, plain, index.search(**ask, k=20, kind=kind, rerank=4), strict=True):
            asked = encoder.tokens("clip" if kind == "image" else "image", query)
            scores = []
            for hit in before[:4]:
                tokens = encoder.tokens(kind, hit.path)
                logit = match(encoder, *((asked, tokens) if kind == "image" else (tokens, asked)))[0]
                scores.append(reranked_score(hit.score, float(logit)))
            order = np.argsort(-np.array(scores), kind="stable")
            assert names(after[:4]) == [names(before)[place] for place in order]
            assert [hit.score for hit in after[:4]] == pytest.approx([scores[place] for place in order], abs=1e-4)
            assert {hit.measure for hit in after[:4]} == {"re-ranked"}
            assert after[4:] == before[4:]
            changed += names(after) != names(before)
    assert changed > 3


def test_pages_are_parts_of_one_list_and_open_files_and_samples_are_queries_too(index, photos):
    path = photos / "clips/1.wav"
    (whole,) = index.search(speech=[path], k=6, rerank=5)
    pages = [hit for offset in range(6) for hit in index.search(speech=[path], k=1, offset=offset, rerank=5)[0]]
    assert pages == whole
    with path.open("rb") as file:
        assert index.search(speech=[file], k=6, rerank=5)[0] == whole


def test_a_missing_file_keeps_its_place_and_is_reported(index, photos, tmp_path, capsys):
    query = photos / "clips/0.wav"
    before = index.search(speech=[query], k=6)[0]
    Path(before[1].path).unlink()
    Path(before[2].path).write_bytes(b"no image")
    unread: list[str] = []
    after = index.search(speech=[query], k=6, rerank=6, unread=unread)[0]
    assert after[1:3] == before[1:3]
    assert [hit.measure for hit in after] == ["re-ranked", "cosine", "cosine", *["re-ranked"] * 3]
    assert sorted(names(after)) == sorted(names(before))
    assert len(unread) == 2
    assert all(hit.path in reason for hit, reason in zip(before[1:3], unread, strict=True))

    assert main(["search", str(tmp_path / "index"), str(query), "--rerank", "6", "-k", "6", "--json"]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert [hit["path"] for hit in found["results"][0]["hits"]] == [hit.path for hit in after]
    assert found["results"][0]["hits"][0]["measure"] == "re-ranked"
    assert found["refused"] == unread
    assert captured.err.count("saysee: ") == 2
    assert main(["search", str(tmp_path / "index"), str(query), "--rerank", "6"]) == 0
    assert "re-ranked" in capsys.readouterr().out


def test_other_queries_and_models_are_refused(index, photos, encoder, tmp_path):
    clip, image = photos / "clips/0.wav", photos / "work/4.png"
    for ask in (
        {"texts": ["two green stars"]},
        {"vectors": np.ones((1, 24))},
        {"images": [image], "kind": "image"},
        {"speech": [clip], "kind": "clip"},
    ):
        with pytest.raises(SaySeeError, match="rerank is 5"):
            index.search(**ask, rerank=5)
    with pytest.raises(SaySeeError, match="0"):
        index.search(speech=[clip], rerank=0)
    with pytest.raises(SaySeeError, match=r"matching\.weight"):
        Index.open(tmp_path / "index", model=encoder.model).search(speech=[clip], rerank=5)
