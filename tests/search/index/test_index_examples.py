"""Examples of queries that an index carries, vectors that are known already, and the folder around an index."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from saysee import Index, SaySeeError
from saysee.data.manifest import Manifest, Row
from saysee.encoding.encoder import Encoder
from saysee.search.index.about import MAX_EXAMPLES
from saysee.search.index.sources import find_source
from saysee.search.index.updating import update_index


@pytest.fixture
def manifest(photos) -> Manifest:
    """Three clips of two images; a manifest of them is in the folder."""
    image = ["holiday/0.png", "holiday/1.png", "holiday/1.png"]
    rows = [Row(f"clips/{i}.wav", image[i], image[i], "test", text=f"text {i}") for i in range(3)]
    return Manifest(rows, photos)


def written(manifest: Manifest, *examples: str | None):
    """The source of the manifest, its rows with a column ``example``."""
    rows = [replace(row, extra={"example": value}) for row, value in zip(manifest, examples, strict=True)]
    Manifest(rows, manifest.root).write(manifest.root / "rows.jsonl")
    return find_source(manifest.root / "rows.jsonl")


def test_clips_and_images_marked_in_the_manifest_are_examples(encoder, manifest, place):
    update_index(encoder, written(manifest, "clip", "image", "image"), place)
    index = Index.open(place, model=encoder.model)
    assert [item.path for item in index.examples()] == ["clips/0.wav", "holiday/1.png"]
    assert index.examples()[0].metadata["text"] == "text 0"
    update_index(encoder, written(manifest, None, "image", "clip"), place)
    assert [item.path for item in index.examples()] == ["clips/2.wav"], "not all rows of the image have it"
    (manifest.root / "clips/2.wav").unlink()
    update_index(encoder, written(manifest, None, "image", "clip"), place, allow_removals=True)
    assert index.examples() == []


def test_an_index_without_examples_has_none(encoder, photos, place):
    update_index(encoder, photos, place)
    assert Index.open(place, model=encoder.model).examples() == []


def test_known_vectors_are_stored_and_the_model_encodes_only_the_others(encoder, manifest, place, counted):
    source = written(manifest, None, None, None)
    known = {
        key: np.eye(24, dtype=np.float32)[n]
        for n, key in enumerate([("image", "holiday/0.png"), ("clip", "clips/1.wav")])
    }
    report = update_index(encoder, replace(source, vectors=known), place)
    assert (report.images, report.clips, report.encoded) == (2, 3, 3)
    assert counted() == 3
    index = Index.open(place, model=encoder.model)
    assert index.search(vectors=np.eye(24)[:1], k=1)[0][0].score == pytest.approx(1)
    assert index.search(vectors=np.eye(24)[1:2], k=1, kind="clip")[0][0].path.endswith("1.wav")
    again = update_index(encoder, source, place)
    assert (again.kept, again.encoded) == (5, 0)


def test_the_folder_that_holds_an_index_opens_it(encoder, photos, tmp_path):
    update_index(encoder, photos, tmp_path / "demo" / "index")
    assert Index.open(tmp_path / "demo").folder == tmp_path / "demo" / "index"
    assert Index.open(tmp_path / "demo" / "index").counts() == {"image": 6, "clip": 3}
    with pytest.raises(SaySeeError, match="photos") as refused:
        Index.open(photos)
    assert str(photos / "index") in str(refused.value)
    assert "\n" not in str(refused.value)


def test_clips_that_a_model_cannot_encode_take_no_example_of_an_image(clip_folder, photos, tmp_path):
    number = MAX_EXAMPLES + 1
    rows = [Row(f"{i}.wav", "work/4.png", "4", "test", extra={"example": "clip"}) for i in range(number)]
    rows.append(Row("last.wav", "work/5.png", "5", "test", extra={"example": "image"}))
    Manifest(rows, photos).write(photos / "rows.jsonl")
    report = update_index(Encoder(clip_folder), find_source(photos / "rows.jsonl"), tmp_path / "index")
    assert (report.ignored[".wav"], report.images) == (number + 1, 2)
    assert [item.path for item in Index.open(tmp_path / "index").examples()] == ["work/5.png"]
