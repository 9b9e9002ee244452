"""SaySee in MTEB: its tasks run, and its figures are those that our protocol has under their own names."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image as Picture

from saysee.data.manifest import Manifest, Row
from saysee.errors import SaySeeError
from saysee.evaluation.protocols import evaluate
from saysee.model.retriever import SpeechImageModel

mteb = pytest.importorskip("mteb", reason="mteb is not installed: it is an extra of 500 MB, left out of dev")

from datasets import Audio, Dataset, Image  # noqa: E402
from mteb.abstasks.retrieval import AbsTaskRetrieval  # noqa: E402
from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData  # noqa: E402
from mteb.abstasks.task_metadata import TaskMetadata  # noqa: E402
from mteb.models.models_protocols import EncoderProtocol  # noqa: E402

from saysee.evaluation.mteb import MtebEncoder  # noqa: E402

PICTURES, EACH = 12, 3


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    """Clips of various lengths and rates, three a picture; no two alike."""
    rng = np.random.default_rng(11)
    rows = []
    for number in range(PICTURES):
        Picture.fromarray(rng.integers(0, 255, (40, 50, 3), np.uint8)).save(tmp_path / f"{number}.png")
        for n in range(EACH):
            rate = (16_000, 22_050)[n % 2]
            tone = np.sin(np.arange(rate // 2 + 700 * n) * rng.uniform(0.02, 0.3)) * rng.uniform(0.1, 0.9)
            soundfile.write(tmp_path / f"{number}_{n}.wav", tone + rng.normal(0, 0.05, len(tone)), rate)
            text = ("a red square", "two green stars", "a dog runs on the beach")[n]
            rows.append(Row(f"{number}_{n}.wav", f"{number}.png", f"p{number:02d}", "test", text))
    return Manifest(rows, tmp_path)


@pytest.fixture
def model(hubert_configs: Any, clip_folder: Path) -> SpeechImageModel:
    return SpeechImageModel.from_encoders(hubert_configs["base"], clip_folder)


def task_of(manifest: Manifest, query: str, document: str) -> Any:
    """A task of the kind of SpokenCOCOA2IRetrieval, of files within tables as the hub has them."""

    def table(modality: str) -> tuple[Any, list[tuple[str, str]]]:
        rows = manifest.images() if modality == "image" else manifest.rows
        ids = [(row.image_id if modality == "image" else row.clip.removesuffix(".wav"), row.image_id) for row in rows]
        if modality == "text":
            return Dataset.from_dict({"id": [own for own, _ in ids], "text": [row.text for row in rows]}), ids
        paths = [manifest.image_path(row) if modality == "image" else manifest.clip_path(row) for row in rows]
        column = [{"bytes": path.read_bytes(), "path": None} for path in paths]
        content = Dataset.from_dict({"id": [own for own, _ in ids], modality: column})
        return content.cast_column(modality, Image() if modality == "image" else Audio()), ids

    queries, query_ids = table(query)
    corpus, corpus_ids = table(document)
    relevant = {own: {other: 1 for other, its in corpus_ids if its == image} for own, image in query_ids}
    letters = {"audio": "a", "image": "i", "text": "t"}

    class SmallTask(AbsTaskRetrieval):  # type: ignore[misc]
        metadata = TaskMetadata(
            name=f"Small{query.title()}{document.title()}",
            description="made for a test",
            dataset={"path": "none/none", "revision": "0"},
            type="Any2AnyRetrieval",
            category=f"{letters[query]}2{letters[document]}",
            modalities=[query, document],
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score="ndcg_at_10",
        )

        def load_data(self, **kwargs: Any) -> None:
            split = RetrievalSplitData(queries=queries, corpus=corpus, relevant_docs=relevant, top_ranked=None)
            self.dataset = {"default": {"test": split}}
            self.data_loaded = True

    return SmallTask()


def scores_of(model: Any, task: Any) -> dict[str, float]:
    result = mteb.evaluate(MtebEncoder(model), task, cache=None, show_progress_bar=False)
    scores: dict[str, float] = result.task_results[0].scores["test"][0]
    return scores


def test_it_is_an_encoder_of_mteb_with_the_model_s_modalities(model: SpeechImageModel, hubert_configs: Any) -> None:
    encoder = MtebEncoder(model, name="me/mine")
    assert isinstance(encoder, EncoderProtocol)
    assert encoder.mteb_model_meta.name == "me/mine"
    assert encoder.mteb_model_meta.modalities == ["audio", "image", "text"]
    vision = SpeechImageModel.from_encoders(hubert_configs["base"], model.config.vision_config)
    assert MtebEncoder(vision).mteb_model_meta.modalities == ["audio", "image"]


def test_a_saved_run_is_loaded_and_named_after_its_folder(model: SpeechImageModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "flickr8k-base" / "best")
    assert MtebEncoder(tmp_path / "flickr8k-base" / "best").mteb_model_meta.name == "saysee/flickr8k-base"


def test_speech_to_image_is_scored_as_by_our_protocol(model: SpeechImageModel, manifest: Manifest) -> None:
    ours = evaluate(model, manifest, progress=False, resamples=0).overall.speech_to_image
    found = scores_of(model, task_of(manifest, "audio", "image"))
    for k in (1, 5, 10):
        assert found[f"recall_at_{k}"] * 100 == pytest.approx(ours[f"R@{k}"], abs=1e-3)
    assert found["ndcg_at_10"] * 100 == pytest.approx(ours["nDCG@10"], abs=1e-3)
    assert 0 < found["recall_at_5"] < 1  # a test of scores that are all or nothing would say little


def test_image_to_speech_is_scored_as_by_our_protocol_under_mteb_s_names(
    model: SpeechImageModel, manifest: Manifest
) -> None:
    ours = evaluate(model, manifest, progress=False, resamples=0).overall.image_to_speech
    assert ours is not None
    found = scores_of(model, task_of(manifest, "image", "audio"))
    for k in (1, 5, 10):
        assert found[f"recall_at_{k}"] * 100 == pytest.approx(ours[f"shared_recall@{k}"], abs=1e-3)
    assert found["ndcg_at_10"] * 100 == pytest.approx(ours["nDCG@10"], abs=1e-3)


def test_text_searches_images_too(model: SpeechImageModel, manifest: Manifest) -> None:
    assert 0 <= scores_of(model, task_of(manifest, "text", "image"))["ndcg_at_10"] <= 1


def test_samples_paths_and_bytes_give_the_same_vectors(model: SpeechImageModel, manifest: Manifest) -> None:
    paths = [manifest.clip_path(row) for row in manifest.rows[:4]]
    sounds = [soundfile.read(path) for path in paths]
    tables = [
        Dataset.from_dict({"audio": [{"bytes": None, "path": str(path)} for path in paths]}).cast_column(
            "audio", Audio()
        ),
        Dataset.from_dict({"audio": [{"array": array, "sampling_rate": rate} for array, rate in sounds]}),
    ]
    encoder, whole = MtebEncoder(model), model.encode_speech(paths, progress=False)
    for table in tables:
        loader = type("Loader", (), {"dataset": table})
        vectors = encoder.encode(loader, task_metadata=None, hf_split="test", hf_subset="default", batch_size=2)
        assert np.allclose(vectors, whole, atol=1e-4)


def test_a_row_of_image_and_text_is_an_error(model: SpeechImageModel) -> None:
    picture = io.BytesIO()
    Picture.new("RGB", (8, 8)).save(picture, "PNG")
    table = Dataset.from_dict({"image": [{"bytes": picture.getvalue(), "path": None}], "text": ["a"]})
    loader = type("Loader", (), {"dataset": table})
    metadata = type("Metadata", (), {"name": "Both"})
    with pytest.raises(SaySeeError, match="Both has the columns image, text; a SaySee model encodes one of"):
        MtebEncoder(model).encode(loader, task_metadata=metadata, hf_split="test", hf_subset="default")
