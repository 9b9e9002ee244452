"""The whole way, once: scenes, features of frozen encoders, baseline and CMD from one start, scores, one report.

Every step leaves its result in the folder and is not done again, so a demo that was broken off goes on where it was.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from saysee.data.manifest import Manifest
from saysee.data.scenes.corpus import build_scenes
from saysee.encoding.encoder import Encoder
from saysee.errors import SaySeeError
from saysee.evaluation.protocols import evaluate
from saysee.files import write_text
from saysee.model.retriever import SpeechImageModel
from saysee.settings.reading import load_recipe
from saysee.settings.recipe import Recipe
from saysee.studies.other_queries import OtherQueries, ask_otherwise
from saysee.studies.processes import run_alone, train_alone
from saysee.studies.report import DemoReport, write_report
from saysee.training.features import cache_features, feature_cache
from saysee.training.trainer import Trainer

RECIPE = "nano"
ROWS = {"baseline": "off", "CMD": "paper"}
"""What is compared, and its preset of cross-modal denoising: contrastive learning alone, and with the paper's
reading."""

BREAKDOWN = ("novel_pair", "hard_twin")


@dataclass(frozen=True)
class DemoSettings:
    """Sizes of the demo; the defaults are what two cores do in under six minutes.

    Attributes:
        images: pictures in all, five clips each.
        val_images: of these, to watch the training by.
        test_images: of these, to score on.
        other_queries: captions that are asked again by other voices.
        recipe_overrides: dotted flags laid over the recipe ``nano``.
        seed: of the corpus and of every training.
    """

    images: int = 2600
    val_images: int = 100
    test_images: int = 1000
    other_queries: int = 200
    recipe_overrides: tuple[str, ...] = ()
    seed: int = 0


@dataclass(frozen=True)
class DemoResult:
    """What the demo found.

    Attributes:
        report: path of the HTML report.
        scores: row to its evaluation, as ``EvaluationResult.to_dict`` gives it.
        others: other ways of asking the row that was best on the validation split.
        runs: row to its training's ``result.json``.
        seconds: step to the seconds that it took, in this call or the one that did it.
    """

    report: Path
    scores: dict[str, dict[str, Any]]
    others: list[OtherQueries]
    runs: dict[str, dict[str, Any]]
    seconds: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            "report": str(self.report),
            "scores": self.scores,
            "other_queries": [each.to_dict() for each in self.others],
            "runs": self.runs,
            "seconds": self.seconds,
        }

    def to_table(self) -> Table:
        """The rows of scores, in percent, with 95 % intervals of the mean R@1, and what the training cost."""
        table = Table(title="test split, percent")
        table.add_column("")
        for way in ("speech → image", "image → speech"):
            for k in (1, 5, 10):
                table.add_column(f"{way}\nR@{k}", justify="right")
        table.add_column("mean R@1\n(95 % interval)", justify="right")
        table.add_column("training\ns/step", justify="right")
        for name, scores in self.scores.items():
            overall = scores["overall"]
            recalls = [overall[way][f"R@{k}"] for way in ("speech_to_image", "image_to_speech") for k in (1, 5, 10)]
            low, high = overall["interval"]["mean_R@1"]
            table.add_row(
                name,
                *[f"{recall:.1f}" for recall in recalls],
                f"{overall['mean_R@1']:.2f} ({low:.2f} to {high:.2f})",
                f"{self.runs[name]['seconds_per_step']:.2f}",
            )
        chance = next(iter(self.scores.values()))["overall"]["chance_mean_R@1"]
        table.add_row("chance", *[""] * 6, f"{chance:.2f}", "", style="dim")
        return table


def run_demo(folder: str | Path, settings: DemoSettings | None = None) -> DemoResult:
    """Does what is not done yet, and writes ``report.html``.

    Args:
        folder: of all that the demo makes.
        settings: see :class:`DemoSettings`; None takes the defaults.

    Raises:
        SaySeeError: a step failed; the message says why.
    """
    folder, settings = Path(folder).resolve(), settings or DemoSettings()
    folder.mkdir(parents=True, exist_ok=True)
    steps = _Steps(folder / "steps.json", settings.seed)
    scenes = folder / "scenes"

    _say("1/5 drawing and speaking scenes")
    with steps.timed("scenes", done=(scenes / "manifest.parquet").exists()):
        manifest_path = build_scenes(
            scenes,
            images=settings.images,
            val_images=settings.val_images,
            test_images=settings.test_images,
            seed=settings.seed,
        )
    manifest = Manifest.read(manifest_path)
    recipes = {name: _recipe(folder, name, preset, settings) for name, preset in ROWS.items()}
    first = next(iter(recipes.values()))

    _say("2/5 features of the frozen encoders")
    if not all((Path(recipe.output) / "result.json").exists() for recipe in recipes.values()):
        with steps.timed("features"):
            run_alone(_keep_features, first)

    runs: dict[str, dict[str, Any]] = {}
    for number, (name, recipe) in enumerate(recipes.items(), start=3):
        _say(f"{number}/5 training: {name}")
        with steps.timed(f"training {name}", done=(Path(recipe.output) / "result.json").exists()):
            runs[name] = train_alone(recipe, folder / f"{name}.yaml", name)

    _say("5/5 scoring on the test split")
    steps.forget("scoring")
    models = {name: SpeechImageModel.from_pretrained(folder / "runs" / name / "best") for name in ROWS}
    cache = feature_cache(first.features, manifest.root)
    with steps.timed("scoring"):
        results = {
            name: evaluate(Encoder(model, cache=cache), manifest, split="test", by=BREAKDOWN, keep_vectors=True)
            for name, model in models.items()
        }
        test = manifest.select("test")
        best = max(runs, key=lambda name: float(runs[name]["best_val_mean_R@1"]))
        images = results[best].images
        assert images is not None
        others = ask_otherwise(models[best], test, images, queries=settings.other_queries, seed=settings.seed)
    report = write_report(
        folder / "report.html",
        DemoReport(
            test=test,
            models=models,
            results=results,
            best=best,
            others=others,
            runs=runs,
            runs_folder=folder / "runs",
            seconds=steps.seconds,
            settings={"demo": vars(settings)},
            seed=settings.seed,
        ),
    )
    scores = {name: result.to_dict() for name, result in results.items()}
    return DemoResult(report, scores, others, runs, steps.seconds)


def _recipe(folder: Path, name: str, preset: str, settings: DemoSettings) -> Recipe:
    return load_recipe(
        RECIPE,
        [
            f"--output={folder / 'runs' / name}",
            f"--data.manifest={folder / 'scenes' / 'manifest.parquet'}",
            f"--features.folder={folder / 'features'}",
            f"--denoising.preset={preset}",
            f"--training.seed={settings.seed}",
            *settings.recipe_overrides,
        ],
    )


def _keep_features(recipe: Recipe) -> None:
    """Those of all splits, so that training and scoring find them."""
    trainer = Trainer(recipe)
    trainer.keep_features()
    encoder = Encoder(trainer.model, cache=feature_cache(recipe.features, trainer.manifest.root))
    cache_features([(encoder, trainer.manifest.select("test"), False)], trainer.model)


class _Steps:
    """Seconds of each step, kept across calls: a step that a call finds done keeps the time that it took.

    Args:
        path: the JSON file.
        seed: the demo's seed; a folder of another seed is refused.
    """

    def __init__(self, path: Path, seed: int) -> None:
        self._path, self._seed = path, seed
        self.seconds: dict[str, float] = {}
        if path.exists():
            kept = json.loads(path.read_text(encoding="utf-8"))
            if kept["seed"] != seed:
                raise SaySeeError(
                    f"{path.parent} holds a demo of seed {kept['seed']}; give another --to, or --seed {kept['seed']}"
                )
            self.seconds = kept["seconds"]

    @contextmanager
    def timed(self, name: str, done: bool = False) -> Iterator[None]:
        """Adds the time of a ``with`` block to a step, also when it is broken off, unless the step was done before."""
        start = time.perf_counter()
        try:
            yield
        finally:
            if not done:
                self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
                write_text(self._path, json.dumps({"seed": self._seed, "seconds": self.seconds}))

    def forget(self, name: str) -> None:
        """Drops the time of a step that every call does anew."""
        self.seconds.pop(name, None)


def _say(text: str) -> None:
    print(f"demo: {text}", file=sys.stderr, flush=True)
