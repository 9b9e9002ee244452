"""The result of the demo, and its report: one self-contained HTML file."""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape
from markupsafe import Markup
from PIL import Image

from saysee.data.manifest import Manifest, Row
from saysee.encoding.attention import attend
from saysee.encoding.encoder import Encoder
from saysee.evaluation.comparison import Comparison, System
from saysee.evaluation.localization import attention_on_rows, word_maps
from saysee.evaluation.protocols import EvaluationResult
from saysee.evaluation.table import Table
from saysee.files import write_text
from saysee.media.images import load_image
from saysee.model.retriever import SpeechImageModel
from saysee.search.terminal.sheet import data_url, image_url
from saysee.studies.other_queries import OtherQueries
from saysee.studies.plots import attention_image, lines_svg
from saysee.training.records import read_metrics

QUERIES, TOP, ATTENTION_CLIPS = 10, 5, 3
THUMBNAIL = (132, 132)


@dataclass(frozen=True)
class DemoResult:
    """The result of the demo."""

    folder: Path  # of the demo; ``runs/ROW`` in it is the training of a row
    seed: int  # of the demo, and of the choice of queries that the report shows
    settings: Mapping[str, Any]  # of the demo, by name
    test: Manifest  # rows of the test split
    results: Mapping[str, EvaluationResult]  # evaluation by row, with vectors
    best: str  # the row whose model is best on the validation split
    model: SpeechImageModel  # that model
    others: Sequence[OtherQueries]  # other kinds of queries to that model
    runs: Mapping[str, Mapping[str, Any]]  # ``result.json`` of the training by row
    seconds: Mapping[str, float]  # seconds by step, of the call that did it; some steps run at once

    @property
    def report(self) -> Path:
        """The HTML report."""
        return self.folder / "report.html"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "report": str(self.report),
            "scores": {name: result.to_dict() for name, result in self.results.items()},
            "other_queries": [asdict(each) for each in self.others],
            "runs": dict(self.runs),
            "seconds": dict(self.seconds),
        }

    def to_table(self) -> Table:
        """The scores in percent, the difference of the rows, and the cost of the training."""
        systems = [System(row, [result]) for row, result in self.results.items()]
        table = Comparison(["scenes"], systems).tables()[0]
        seconds = ", ".join(f"{row} {run['seconds_per_step']:.2f}" for row, run in self.runs.items())
        return replace(table, notes=[*table.notes, f"training, seconds a step: {seconds}"])


def write_report(demo: DemoResult) -> None:
    """Writes the report atomically."""
    runs = demo.folder / "runs"
    loader = PackageLoader("saysee", "studies")
    template = Environment(loader=loader, autoescape=select_autoescape()).get_template("report.html")
    text = template.render(
        results={name: result.to_dict() for name, result in demo.results.items()},
        runs=demo.runs,
        seconds=demo.seconds,
        curves=[Markup(svg) for svg in _curves(demo)],
        queries=_queries(demo),
        shown_model=demo.best,
        others=demo.others,
        attention=_attention(demo),
        recipes={name: (runs / name / "recipe.yaml").read_text("utf-8") for name in demo.runs},
        settings={"demo": json.dumps(dict(demo.settings), indent=2)},
        environment=json.loads((runs / demo.best / "environment.json").read_text("utf-8")),
        counts={"clips": len(demo.test), "images": len(demo.test.images())},
        seed=demo.seed,
    )
    write_text(demo.report, text)


def _curves(demo: DemoResult) -> list[str]:
    logs = {name: read_metrics(demo.folder / "runs" / name) for name in demo.runs}
    charts = []
    for title, axis, kind, metric in (
        ("Contrastive loss", "nats", "train", "contrastive_loss"),
        ("Mean R@1 on the validation split", "percent", "val", "mean_R@1"),
        ("Denoising loss", "nats", "train", "denoising_loss"),
    ):
        series = {
            name: [(line["step"], line[metric]) for line in log if line["kind"] == kind and metric in line]
            for name, log in logs.items()
        }
        if any(series.values()):
            charts.append(lines_svg(title, "step", axis, {name: each for name, each in series.items() if each}))
    return charts


def _queries(demo: DemoResult) -> list[dict[str, Any]]:
    """Ten random clips, and the five images that rank first with the best model."""
    result, images = demo.results[demo.best], demo.test.images()
    assert result.speech is not None
    assert result.images is not None
    queries = []
    for index in random.Random(demo.seed).sample(range(len(demo.test)), QUERIES):
        row = demo.test.rows[index]
        scores = SpeechImageModel.similarity(result.speech[index : index + 1], result.images)[0]
        order = scores.argsort()[::-1]
        rank = next(rank for rank, number in enumerate(order, start=1) if images[number].image_id == row.image_id)
        answers = []
        for number in order[:TOP]:
            shown = load_image(demo.test.image_path(images[number])).resize(THUMBNAIL, Image.Resampling.LANCZOS)
            right = images[number].image_id == row.image_id
            answers.append({"image": image_url(shown), "score": float(scores[number]), "right": right})
        queries.append({"clip": _clip(demo.test, row), "speaker": row.speaker, "rank": rank, "answers": answers})
    return queries


def _attention(demo: DemoResult) -> list[dict[str, Any]]:
    """Three random clips: which regions each word belongs to, by the best model."""
    encoder, clips = Encoder(demo.model), []
    for index in random.Random(demo.seed + 1).sample(range(len(demo.test)), ATTENTION_CLIPS):
        row = demo.test.rows[index]
        image = load_image(demo.test.image_path(row))
        regions = attend(encoder, demo.test.clip_path(row), image, "interaction")
        spoken, objects, frame_seconds = row.extra["words"], row.extra["objects"], regions.frame_seconds
        on_object = attention_on_rows([regions.frames], [row], frame_seconds)
        words = []
        for word, weights in zip(spoken, word_maps(regions.frames, spoken, frame_seconds), strict=True):
            boxes = [objects[number]["box"] for number in word["objects"]]
            words.append({"word": word["word"], "image": image_url(attention_image(image, weights, boxes))})
        clips.append({"clip": _clip(demo.test, row), "lift": on_object.get("attention_lift"), "words": words})
    return clips


def _clip(test: Manifest, row: Row) -> dict[str, Any]:
    return {"text": row.text, "audio": data_url(test.clip_path(row).read_bytes(), "audio/flac")}
