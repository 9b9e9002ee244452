"""The demo's report: one self-contained HTML file."""

from __future__ import annotations

import base64
import io
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape
from markupsafe import Markup
from PIL import Image

from saysee.data.manifest import Manifest, Row
from saysee.encoding.attention import attention_map
from saysee.encoding.encoder import Encoder
from saysee.evaluation.localization import attention_on_object, word_maps
from saysee.evaluation.protocols import EvaluationResult
from saysee.files import write_text
from saysee.media.images import load_image
from saysee.model.retriever import SpeechImageModel
from saysee.studies.other_queries import OtherQueries
from saysee.studies.plots import attention_image, curves_svg
from saysee.training.log_records import read_metrics

QUERIES, TOP, ATTENTION_CLIPS = 10, 5, 3
THUMBNAIL = 132


@dataclass(frozen=True)
class DemoReport:
    """The contents of the report.

    Attributes:
        test: rows of the test split.
        models: best model by row of the table; attention is that of one with a fusion encoder.
        results: evaluation by row, with vectors.
        best: the row whose model is best on the validation split.
        others: other kinds of queries to that model.
        runs: ``result.json`` of the training by row.
        runs_folder: the folder of the runs, by row.
        seconds: seconds by step.
        settings: settings by name, of what has no recipe: the corpus.
        seed: of the demo, and of the choice of queries.
    """

    test: Manifest
    models: Mapping[str, SpeechImageModel]
    results: Mapping[str, EvaluationResult]
    best: str
    others: Sequence[OtherQueries]
    runs: Mapping[str, Mapping[str, Any]]
    runs_folder: Path
    seconds: Mapping[str, float]
    settings: Mapping[str, Mapping[str, Any]]
    seed: int


def write_report(path: Path, report: DemoReport) -> Path:
    """Writes the report atomically, and returns its path."""
    environment = json.loads((report.runs_folder / report.best / "environment.json").read_text("utf-8"))
    template = Environment(loader=PackageLoader("saysee", "studies"), autoescape=select_autoescape()).get_template(
        "report.html"
    )
    text = template.render(
        results={name: result.to_dict() for name, result in report.results.items()},
        runs=report.runs,
        seconds=report.seconds,
        curves=[Markup(svg) for svg in _curves(report)],
        queries=_queries(report),
        shown_model=report.best,
        others=report.others,
        attention=_attention(report),
        recipes={name: (report.runs_folder / name / "recipe.yaml").read_text("utf-8") for name in report.runs},
        settings={name: json.dumps(dict(values), indent=2) for name, values in report.settings.items()},
        environment=environment,
        counts={"clips": len(report.test), "images": len(report.test.images())},
        seed=report.seed,
    )
    write_text(path, text)
    return path


def _curves(report: DemoReport) -> list[str]:
    logs = {name: read_metrics(report.runs_folder / name) for name in report.runs}
    charts = []
    for title, axis, kind, metric in (
        ("Contrastive loss", "nats", "train", "contrastive_loss"),
        ("Mean R@1 on the validation split", "percent", "val", "mean_R@1"),
        ("Denoising loss", "nats", "train", "denoising_loss"),
    ):
        series = {}
        for name, log in logs.items():
            if lines := [line for line in log if line["kind"] == kind and metric in line]:
                series[name] = ([line["step"] for line in lines], [line[metric] for line in lines])
        if series:
            charts.append(curves_svg(title, axis, series))
    return charts


def _queries(report: DemoReport) -> list[dict[str, Any]]:
    """Ten random clips, and the five images that rank first with the best model."""
    result, images = report.results[report.best], report.test.images()
    assert result.speech is not None
    assert result.images is not None
    queries = []
    for index in random.Random(report.seed).sample(range(len(report.test)), QUERIES):
        row = report.test.rows[index]
        scores = SpeechImageModel.similarity(result.speech[index : index + 1], result.images)[0]
        order = scores.argsort()[::-1]
        rank = next(rank for rank, number in enumerate(order, start=1) if images[number].image_id == row.image_id)
        answers = [
            {
                "image": _image_url(_thumbnail(load_image(report.test.image_path(images[number])))),
                "score": float(scores[number]),
                "right": images[number].image_id == row.image_id,
            }
            for number in order[:TOP]
        ]
        queries.append({"clip": _clip(report.test, row), "speaker": row.speaker, "rank": rank, "answers": answers})
    return queries


def _attention(report: DemoReport) -> list[dict[str, Any]]:
    """Three random clips: attention of the fusion encoder during each word."""
    found = [(name, model) for name, model in report.models.items() if model.fusion is not None]
    if not found:
        return []
    name, model = found[-1]
    encoder, clips = Encoder(model), []
    for index in random.Random(report.seed + 1).sample(range(len(report.test)), ATTENTION_CLIPS):
        row = report.test.rows[index]
        image = load_image(report.test.image_path(row))
        attention = attention_map(encoder, report.test.clip_path(row), image)
        spoken, objects, frame_seconds = row.extra["words"], row.extra["objects"], model.speech_encoder.frame_seconds
        on_object = attention_on_object(attention, spoken, objects, frame_seconds)
        words = []
        for word, weights in zip(spoken, word_maps(attention, spoken, frame_seconds), strict=True):
            boxes = [objects[number]["box"] for number in word["objects"]]
            words.append({"word": word["word"], "image": _image_url(attention_image(image, weights, boxes))})
        clips.append(
            {"model": name, "clip": _clip(report.test, row), "lift": on_object and on_object.lift, "words": words}
        )
    return clips


def _clip(test: Manifest, row: Row) -> dict[str, Any]:
    return {"text": row.text, "audio": _data_url(test.clip_path(row).read_bytes(), "audio/flac")}


def _thumbnail(image: Image.Image) -> Image.Image:
    return image.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)


def _image_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return _data_url(buffer.getvalue(), "image/jpeg")


def _data_url(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
