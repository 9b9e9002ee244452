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

from saysee.data.manifest import Manifest
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

QUERIES, TOP, ATTENTION_PICTURES = 10, 5, 3
THUMBNAIL = 132


@dataclass(frozen=True)
class DemoReport:
    """What the report is made from.

    Attributes:
        test: rows of the test split.
        models: row of the table to its best model; the attention pictures come from one that has a fusion encoder.
        results: row to its evaluation, with vectors.
        best: the row whose model was best on the validation split: the test split chooses nothing.
        others: other ways of asking that model.
        runs: row to its training's result.
        runs_folder: the runs' folders, by row.
        seconds: step to seconds.
        settings: name to settings of what is in no recipe: the corpus.
        seed: of the demo; it also draws the queries, so they are not chosen by their outcome.
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
    """Writes the report, whole or not at all.

    Args:
        path: of the HTML file.
        report: see :class:`DemoReport`.

    Returns:
        The path.
    """
    environment = Environment(loader=PackageLoader("saysee", "studies"), autoescape=select_autoescape())
    template = environment.get_template("report.html")
    recipes = {name: (report.runs_folder / name / "recipe.yaml").read_text(encoding="utf-8") for name in report.runs}
    surroundings = json.loads((report.runs_folder / next(iter(report.runs)) / "environment.json").read_text("utf-8"))
    text = template.render(
        results={name: result.to_dict() for name, result in report.results.items()},
        runs=report.runs,
        seconds=report.seconds,
        curves=[Markup(svg) for svg in _curves(report)],
        queries=_queries(report),
        shown_model=report.best,
        others=report.others,
        attention=_attention(report),
        recipes=recipes,
        settings={name: json.dumps(dict(values), indent=2) for name, values in report.settings.items()},
        surroundings=surroundings,
        counts={"clips": len(report.test), "pictures": len(report.test.images())},
        seed=report.seed,
    )
    write_text(path, text)
    return path


def _curves(report: DemoReport) -> list[str]:
    metrics = {name: read_metrics(report.runs_folder / name) for name in report.runs}

    def series(kind: str, figure: str) -> dict[str, tuple[list[float], list[float]]]:
        return {
            name: ([line["step"] for line in lines], [line[figure] for line in lines])
            for name, every in metrics.items()
            if (lines := [line for line in every if line["kind"] == kind and figure in line])
        }

    charts = [
        ("Contrastive loss", "nats", "train", "contrastive_loss"),
        ("Mean R@1 on the validation split", "percent", "val", "mean_R@1"),
        ("Denoising loss", "nats", "train", "denoising_loss"),
    ]
    return [curves_svg(title, axis, found) for title, axis, kind, figure in charts if (found := series(kind, figure))]


def _queries(report: DemoReport) -> list[dict[str, Any]]:
    """Ten clips drawn by the seed, and the five pictures that the shown model puts first."""
    result = report.results[report.best]
    assert result.speech is not None
    assert result.images is not None
    pictures = report.test.images()
    queries = []
    for index in random.Random(report.seed).sample(range(len(report.test)), QUERIES):
        row = report.test.rows[index]
        scores = SpeechImageModel.similarity(result.speech[index : index + 1], result.images)[0]
        order = scores.argsort()[::-1]
        right = next(place for place, number in enumerate(order, start=1) if pictures[number].image_id == row.image_id)
        queries.append(
            {
                "text": row.text,
                "speaker": row.speaker,
                "sound": _data_url(report.test.clip_path(row).read_bytes(), "audio/flac"),
                "rank": right,
                "answers": [
                    {
                        "picture": _picture_url(_thumbnail(load_image(report.test.image_path(pictures[number])))),
                        "score": float(scores[number]),
                        "right": pictures[number].image_id == row.image_id,
                    }
                    for number in order[:TOP]
                ],
            }
        )
    return queries


def _attention(report: DemoReport) -> list[dict[str, Any]]:
    """Three clips drawn by the seed: where the fusion encoder looks while each word is spoken."""
    found = [(name, model) for name, model in report.models.items() if model.fusion is not None]
    if not found:
        return []
    name, model = found[-1]
    encoder = Encoder(model)
    draw = random.Random(report.seed + 1)
    pictures = []
    for index in draw.sample(range(len(report.test)), ATTENTION_PICTURES):
        row = report.test.rows[index]
        picture = load_image(report.test.image_path(row))
        attention = attention_map(encoder, report.test.clip_path(row), picture)
        words, frame_seconds = row.extra["words"], model.speech_encoder.frame_seconds
        measure = attention_on_object(attention, words, row.extra["objects"], frame_seconds)
        maps = word_maps(attention, words, frame_seconds)
        pictures.append(
            {
                "model": name,
                "text": row.text,
                "sound": _data_url(report.test.clip_path(row).read_bytes(), "audio/flac"),
                "lift": None if measure is None else measure.lift,
                "words": [
                    {
                        "word": word["word"],
                        "picture": _picture_url(
                            attention_image(
                                picture, weights, [row.extra["objects"][number]["box"] for number in word["objects"]]
                            )
                        ),
                    }
                    for word, weights in zip(row.extra["words"], maps, strict=True)
                ],
            }
        )
    return pictures


def _thumbnail(picture: Image.Image) -> Image.Image:
    return picture.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)


def _picture_url(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    return _data_url(buffer.getvalue(), "image/jpeg")


def _data_url(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
