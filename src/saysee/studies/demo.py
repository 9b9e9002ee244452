"""The whole way, once: scenes, small encoders, baseline and CMD from the same start, both scored, one report.

Every step leaves its result in the folder and is not done again, so a demo that was broken off goes on where it was.
"""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from saysee.config import load_recipe, save_recipe
from saysee.data.manifest import Manifest
from saysee.data.scenes.corpus import build_scenes
from saysee.errors import SaySeeError
from saysee.evaluation.protocols import evaluate
from saysee.files import write_text
from saysee.model.retriever import SpeechImageModel
from saysee.studies.report import DemoReport, write_report
from saysee.training.frame_labels import SmallHuBERTSettings, train_small_hubert
from saysee.training.image_text import SmallCLIPSettings, train_small_clip

ROWS = {"baseline": "off", "CMD": "paper"}
"""What is compared, and its preset of cross-modal denoising: contrastive learning alone, and with the paper's
reading."""

PATIENCE_SECONDS = 10
"""How long an interrupted training may take to end its step and write its checkpoint before it is told again."""

BREAKDOWN = ("novel_pair", "hard_twin")


@dataclass(frozen=True)
class DemoSettings:
    """Sizes of the demo; the defaults are what two cores do in under ten minutes.

    Attributes:
        images: pictures in all, five clips each.
        val_images: of these, to choose the best step on.
        test_images: of these, to score on.
        clip_steps: training steps of the small CLIP.
        hubert_steps: training steps of the small HuBERT.
        recipe_overrides: dotted flags laid over the recipe ``demo``.
        seed: of the corpus and of every training.
    """

    images: int = 2000
    val_images: int = 100
    test_images: int = 400
    clip_steps: int = SmallCLIPSettings.steps
    hubert_steps: int = SmallHuBERTSettings.steps
    recipe_overrides: tuple[str, ...] = ()
    seed: int = 0


@dataclass(frozen=True)
class DemoResult:
    """What the demo found.

    Attributes:
        report: path of the HTML report.
        scores: row to its evaluation, as ``EvaluationResult.to_dict`` gives it.
        runs: row to its training's ``result.json``.
        seconds: step to the seconds that it took, in this call or the one that did it.
    """

    report: Path
    scores: dict[str, dict[str, Any]]
    runs: dict[str, dict[str, Any]]
    seconds: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {"report": str(self.report), "scores": self.scores, "runs": self.runs, "seconds": self.seconds}

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

    scenes, clip, hubert = folder / "scenes", folder / "small-clip", folder / "small-hubert"
    clip_settings = SmallCLIPSettings(steps=settings.clip_steps, seed=settings.seed)
    hubert_settings = SmallHuBERTSettings(steps=settings.hubert_steps, seed=settings.seed)

    _say("1/6 drawing and speaking scenes")
    with steps.timed("scenes", done=(scenes / "manifest.parquet").exists()):
        manifest_path = build_scenes(
            scenes,
            images=settings.images,
            val_images=settings.val_images,
            test_images=settings.test_images,
            seed=settings.seed,
        )
    manifest = Manifest.read(manifest_path)

    _say("2/6 training a small CLIP on the written captions")
    if not clip.exists():
        with steps.timed("small CLIP"):
            _alone(train_small_clip, manifest, "train", clip, clip_settings)

    _say("3/6 training a small HuBERT on the spoken words")
    if not hubert.exists():
        with steps.timed("small HuBERT"):
            _alone(train_small_hubert, manifest, "train", hubert, hubert_settings)

    runs: dict[str, dict[str, Any]] = {}
    for number, (name, preset) in enumerate(ROWS.items(), start=4):
        _say(f"{number}/6 training: {name}")
        with steps.timed(f"training {name}", done=(folder / "runs" / name / "result.json").exists()):
            runs[name] = _train(folder, name, preset, settings)

    _say("6/6 scoring on the test split")
    steps.forget("scoring")
    models = {name: SpeechImageModel.from_pretrained(folder / "runs" / name / "best") for name in ROWS}
    with steps.timed("scoring"):
        results = {
            name: evaluate(model, manifest, split="test", by=BREAKDOWN, keep_vectors=True)
            for name, model in models.items()
        }
    report = write_report(
        folder / "report.html",
        DemoReport(
            test=manifest.select("test"),
            models=models,
            results=results,
            runs=runs,
            runs_folder=folder / "runs",
            seconds=steps.seconds,
            settings={"demo": vars(settings), "small CLIP": vars(clip_settings), "small HuBERT": vars(hubert_settings)},
            seed=settings.seed,
        ),
    )
    scores = {name: result.to_dict() for name, result in results.items()}
    return DemoResult(report, scores, runs, steps.seconds)


def _alone(work: Callable[..., Any], *arguments: Any) -> None:
    """Does work in a process of its own, so that the memory it took is free for the next step."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        process.submit(work, *arguments).result()


def _train(folder: Path, name: str, preset: str, settings: DemoSettings) -> dict[str, Any]:
    """Trains one row in a process of its own, so that its memory and its threads are its own; resumes by itself."""
    output = folder / "runs" / name
    recipe = load_recipe(
        "demo",
        [
            f"--output={output}",
            f"--data.manifest={folder / 'scenes' / 'manifest.parquet'}",
            f"--model.speech={folder / 'small-hubert'}",
            f"--model.image={folder / 'small-clip'}",
            f"--denoising.preset={preset}",
            f"--training.seed={settings.seed}",
            *settings.recipe_overrides,
        ],
    )
    recipe_file = folder / f"{name}.yaml"
    save_recipe(recipe, recipe_file)
    command = [sys.executable, "-m", "saysee", "train", str(recipe_file), "--resume", "auto", "--json"]
    code, text = _run(command)
    if code == 130:
        raise KeyboardInterrupt
    if code:
        raise SaySeeError(f"training {name} failed, for the reason above; run the demo again to go on")
    result: dict[str, Any] = json.loads(text)
    return result


def _run(command: list[str]) -> tuple[int, str]:
    """Exit code and stdout. At Ctrl-C the process, which a terminal tells too, is given time to write its
    checkpoint."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        output, _ = process.communicate()
    except KeyboardInterrupt:
        try:
            process.wait(timeout=PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            process.terminate()  # nobody told it
            process.wait()
        raise
    return process.returncode, output


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
