"""From a model and a manifest to scores, with a model that knows its vectors by file name."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from rich.console import Console

from saysee.data.manifest import Manifest, Row
from saysee.errors import ManifestError, SaySeeError
from saysee.evaluation import protocols
from saysee.evaluation.comparison import Comparison, System
from saysee.evaluation.protocols import evaluate, evaluate_vectors
from saysee.evaluation.recall import retrieval_measures, retrieval_ranks

N_IMAGES = 12


class NamedVectors:
    """Gives the vector that was laid down for a file, and keeps what it was asked."""

    def __init__(self, vectors):
        self.vectors = vectors
        self.asked = {"speech": [], "images": []}

    def encode_speech(self, clips, *, batch_size=32, progress=True):
        return self._encode("speech", clips)

    def encode_images(self, images, *, batch_size=32, progress=True):
        return self._encode("images", images)

    def _encode(self, kind, paths):
        self.asked[kind] += [path.name for path in paths]
        return np.array([self.vectors[path.name] for path in paths], dtype=np.float32)


def corpus(tmp_path, twins=False, noise=0.0):
    """Twelve test images with three clips each (shuffled), and two training rows that nobody may ask for."""
    rng = np.random.default_rng(0)
    rows, vectors = [], {}
    for image in range(N_IMAGES):
        vectors[f"{image}.png"] = rng.standard_normal(8)
        for nth in range(3):
            vectors[f"{image}_{nth}.wav"] = vectors[f"{image}.png"] + noise * rng.standard_normal(8)
            # Images 0 and 1 are each other's twins, as are 2 and 3.
            extra = {"twin_of": str(image ^ 1) if image < 4 else None} if twins else {}
            speaker, language = ("ann", "bob", None)[nth], "en" if image < 4 else "de"
            clip = f"sound/{image}_{nth}.wav"
            rows.append(Row(clip, f"{image}.png", str(image), "test", "text", speaker, language, extra))
    rows = [rows[place] for place in rng.permutation(len(rows))]
    extra = {"twin_of": None} if twins else {}
    rows += [Row(f"sound/t{n}.wav", f"t{n}.png", f"t{n}", "train", "text", "ann", "en", extra) for n in range(2)]
    return Manifest(rows, root=tmp_path), NamedVectors(vectors)


def test_each_clip_and_each_distinct_image_is_encoded_once(tmp_path):
    manifest, model = corpus(tmp_path)
    result = evaluate(model, manifest, progress=False)
    assert sorted(model.asked["speech"]) == sorted(f"{i}_{n}.wav" for i in range(N_IMAGES) for n in range(3))
    assert sorted(model.asked["images"]) == sorted(f"{i}.png" for i in range(N_IMAGES))
    assert (result.overall.clips, result.overall.images, result.overall.gallery_images) == (36, 12, 12)
    assert result.encode_speech_seconds >= 0
    assert result.encode_images_seconds >= 0


def test_clips_are_scored_against_their_own_image_in_whatever_order_rows_come(tmp_path):
    manifest, model = corpus(tmp_path)
    assert evaluate(model, manifest, progress=False).overall.mean_recall_at_1 == 100
    noisy, model = corpus(tmp_path, noise=1.0)
    mean = evaluate(model, noisy, progress=False).overall.mean_recall_at_1
    images = np.array([model.vectors[f"{image}.png"] for image in range(N_IMAGES)])
    speech = np.array([model.vectors[f"{image}_{n}.wav"] for image in range(N_IMAGES) for n in range(3)])
    direct = retrieval_measures(retrieval_ranks(speech, images, np.arange(36) // 3))
    assert mean == pytest.approx(direct.mean_recall_at_1)
    assert mean < 100


def test_groups_are_those_of_any_column(tmp_path):
    manifest, model = corpus(tmp_path, twins=True, noise=0.5)
    result = evaluate(model, manifest, by=["speaker", "language", "twin_of"], progress=False)
    assert list(result.groups) == ["speaker", "language", "twin_of"]
    assert list(result.groups["speaker"]) == ["(none)", "ann", "bob"]
    assert result.groups["speaker"]["ann"].image_to_speech is None
    german = result.groups["language"]["de"]
    assert (german.clips, german.images, german.gallery_images) == (24, 8, 12)
    assert sum(group.clips for group in result.groups["twin_of"].values()) == 36


def test_an_unknown_column_or_split_is_an_error_before_anything_is_encoded(tmp_path):
    manifest, model = corpus(tmp_path)
    with pytest.raises(ManifestError, match="accent"):
        evaluate(model, manifest, by=["accent"], progress=False)
    with pytest.raises(ManifestError, match="dev"):
        evaluate(model, manifest, split="dev", progress=False)
    assert model.asked == {"speech": [], "images": []}


def test_twin_accuracy_counts_clips_closer_to_their_image_than_to_its_twin(tmp_path):
    manifest, model = corpus(tmp_path, twins=True)
    assert evaluate(model, manifest, progress=False).twin_accuracy.accuracy == 100
    for nth in range(3):  # the clips of image 0 say what its twin shows
        model.vectors[f"0_{nth}.wav"] = model.vectors["1.png"]
    twins = evaluate(model, manifest, progress=False).twin_accuracy
    assert (twins.accuracy, twins.clips) == (75, 12)
    assert twins.interval[0] < 75 < twins.interval[1]


@pytest.mark.parametrize("tile", [3, 256])
def test_of_images_with_a_twin_those_are_counted_whose_nearest_neighbor_it_is(tmp_path, monkeypatch, tile):
    monkeypatch.setattr(protocols, "_TILE", tile)
    manifest, model = corpus(tmp_path, twins=True)
    near = 0.01 * np.arange(8)
    model.vectors["1.png"] = 3 * model.vectors["0.png"] + near  # however long: what counts is the direction
    model.vectors["9.png"] = model.vectors["2.png"] + near
    model.vectors["10.png"] = model.vectors["3.png"] + near
    twins = evaluate(model, manifest, progress=False).twin_accuracy
    assert twins.nearest == 50  # 0 and 1 have each other, 2 and 3 have strangers
    assert twins.to_dict()["twin_is_nearest_picture"] == 50


def test_a_tie_with_the_twin_is_a_miss(tmp_path):
    manifest, model = corpus(tmp_path, twins=True)
    for image in range(4):
        model.vectors[f"{image}.png"] = np.ones(8)
    assert evaluate(model, manifest, progress=False).twin_accuracy.accuracy == 0


def test_no_twin_accuracy_where_the_corpus_has_no_twins(tmp_path):
    manifest, model = corpus(tmp_path)
    assert evaluate(model, manifest, progress=False).twin_accuracy is None
    rows = [Row(f"{n}.wav", f"{n}.png", str(n), "test", extra={"twin_of": "elsewhere"}) for n in range(2)]
    assert evaluate_vectors(np.eye(2), np.eye(2), Manifest(rows, root=tmp_path)).twin_accuracy is None


def test_kept_vectors_score_the_same_again(tmp_path):
    manifest, model = corpus(tmp_path, twins=True, noise=1.0)
    result = evaluate(model, manifest, by=["language"], progress=False, keep_vectors=True)
    again = evaluate_vectors(result.speech, result.images, manifest.select("test"), by=["language"])
    assert (again.overall, again.groups, again.twin_accuracy) == (result.overall, result.groups, result.twin_accuracy)
    assert again.split == "test"
    assert evaluate(model, manifest, progress=False).speech is None


def test_vectors_that_do_not_fit_the_rows_are_an_error(tmp_path):
    manifest, _ = corpus(tmp_path)
    with pytest.raises(SaySeeError, match="for 36 clips and 12 images"):
        evaluate_vectors(np.ones((36, 8)), np.ones((36, 8)), manifest.select("test"))


def test_to_dict_is_json_without_vectors(tmp_path):
    manifest, model = corpus(tmp_path, twins=True, noise=1.0)
    values = evaluate(model, manifest, by=["speaker"], progress=False, keep_vectors=True).to_dict()
    assert json.loads(json.dumps(values, allow_nan=False)) == values
    assert list(values) == ["split", "overall", "by", "mteb", "twin_accuracy", "speech_text", "word_errors", "seconds"]
    expected = ["accuracy", "interval", "clips", "chance", "twin_is_nearest_picture"]
    assert list(values["twin_accuracy"]) == expected
    assert values["by"]["speaker"]["ann"]["image_to_speech"] is None


def test_no_intervals_without_resamples(tmp_path):
    manifest, model = corpus(tmp_path, twins=True)
    values = evaluate(model, manifest, progress=False, resamples=0).to_dict()
    assert values["overall"]["interval"] is values["twin_accuracy"]["interval"] is None


def test_table_shows_every_group_and_the_dash_where_there_is_no_measure(tmp_path):
    manifest, model = corpus(tmp_path, twins=True, noise=1.0)
    result = evaluate(model, manifest, by=["speaker"], progress=False)
    page = io.StringIO()
    Console(file=page, width=200).print(*Comparison(["c"], [System("m", [result])]).tables())
    text = page.getvalue()
    for part in ("all", "speaker = ann", "speaker = (none)", "S→I R@10", "mean R@1", "hard twins", "–", "chance"):
        assert part in text
    assert f"{result.overall.mean_recall_at_1:.1f}" in text


def test_a_value_that_looks_like_markup_is_shown_as_it_is(tmp_path):
    rows = [Row(f"{n}.wav", f"{n}.png", str(n), "test", speaker=f"[bold]{n}") for n in range(2)]
    page = io.StringIO()
    result = evaluate_vectors(np.eye(2), np.eye(2), Manifest(rows, root=tmp_path), by=["speaker"])
    Console(file=page, width=200).print(*Comparison(["c"], [System("m", [result])]).tables())
    assert "speaker = [bold]0" in page.getvalue()
