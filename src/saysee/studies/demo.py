"""The demo: scenes, features of frozen encoders, three recipes trained on them, scores, a report, an index.

Each step keeps its result in the folder and is not repeated, so an interrupted demo resumes.
"""

from __future__ import annotations

import json
import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from saysee.data.manifest import Manifest, Row
from saysee.data.scenes.corpus import build_scenes
from saysee.encoding.encoder import Encoder
from saysee.errors import SaySeeError
from saysee.evaluation.protocols import EvaluationResult, evaluate, numbered_images
from saysee.evaluation.recall import retrieval_ranks
from saysee.files import write_text
from saysee.model.retriever import SpeechImageModel
from saysee.search.index.about import INDEX_FOLDER, IndexReport
from saysee.search.index.sources import find_source
from saysee.search.index.updating import update_index
from saysee.settings.reading import load_recipe
from saysee.settings.recipe import Recipe
from saysee.studies.ablation.runs import BREAKDOWN
from saysee.studies.other_queries import QuerySet, make_other_queries, score_other_queries
from saysee.studies.processes import cpu_shares, interrupted_once, on_devices, run_alone, train_alone
from saysee.studies.report import DemoResult, write_report
from saysee.training.data import cache_features, feature_cache
from saysee.training.trainer import Trainer

logger = logging.getLogger(__name__)

ROWS = {
    "baseline": (
        "denoising.preset=off",
        "head.layers=1",
        "head.pooling=cls",
        "head.stride=1",
        "contrastive.negatives=batch",
        "speech_noise.clips=0",
    ),
    "SaySee": ("denoising.preset=off",),
    "CMD": ("denoising.preset=paper",),
}
"""The compared rows and what each sets in the recipe ``nano``: SpeechCLIP parallel; SaySee's recipe, as
``docs/method.md`` describes it; and that recipe with the paper's cross-modal denoising."""
_ONCE = ("scenes", "features", "training")  # what the names of steps begin with that a second call does not repeat
CLIPS, IMAGES = 6, 2
WORDS = 9  # most words of an example: longer ones do not fit beside each other


@dataclass(frozen=True)
class DemoSettings:
    """Sizes of the demo; with the defaults it takes about eleven minutes on two CPU cores."""

    images: int = 2600  # number of images, five clips each
    val_images: int = 100  # of these, the validation split
    test_images: int = 1000  # of these, the test split
    other_queries: int = 200  # number of captions that other voices speak
    recipe_overrides: tuple[str, ...] = ()  # dotted flags that override the recipe ``nano``
    seed: int = 0  # of the corpus and of every training


@interrupted_once()
def run_demo(folder: str | Path, settings: DemoSettings | None = None) -> DemoResult:
    """Does the missing steps, and writes ``report.html`` and the index ``index``; all that it makes is in ``folder``.

    Raises SaySeeError if a step failed, or the folder holds a demo of another seed.
    """
    folder, settings = Path(folder).resolve(), settings or DemoSettings()
    folder.mkdir(parents=True, exist_ok=True)
    steps = _Steps(folder / "steps.json", settings.seed)
    manifest_path = folder / "scenes" / "manifest.parquet"
    with steps.timed("scenes", "drawing and synthesizing scenes", done=manifest_path.exists()):
        build_scenes(
            folder / "scenes",
            images=settings.images,
            val_images=settings.val_images,
            test_images=settings.test_images,
            seed=settings.seed,
        )
    test = Manifest.read(manifest_path).select("test")
    recipes = {name: _recipe(folder, name, own, settings) for name, own in ROWS.items()}
    runs, results, others = _train_and_score(folder, recipes, test, settings, steps)
    best = max(runs, key=lambda name: float(runs[name]["best_val_mean_R@1"]))
    images = results[best].images
    assert images is not None
    model = SpeechImageModel.from_pretrained(folder / "runs" / best / "best")
    with steps.timed("scoring other queries", "scoring other queries"):
        scored = score_other_queries(model, test, images, others)
    demo = DemoResult(
        folder=folder,
        seed=settings.seed,
        settings=vars(settings),
        test=test,
        results=results,
        best=best,
        model=model,
        others=scored,
        runs=runs,
        seconds=steps.seconds,
    )
    with steps.timed("index"):
        index_test_split(demo)
    write_report(demo)
    return demo


def _train_and_score(
    folder: Path, recipes: dict[str, Recipe], test: Manifest, settings: DemoSettings, steps: _Steps
) -> tuple[dict[str, dict[str, Any]], dict[str, EvaluationResult], list[QuerySet]]:
    """Trains what is not trained yet, and scores every row; makes the other queries meanwhile.

    Returns by row the result of the run and its scores; and the other queries.
    """
    trained = {name: (Path(recipe.output) / "result.json").exists() for name, recipe in recipes.items()}
    with steps.timed("features", "features of the frozen encoders", done=all(trained.values())):
        if not all(trained.values()):
            run_alone(_cache_features, recipes["baseline"])
    runs: dict[str, dict[str, Any]] = {}
    results: dict[str, EvaluationResult] = {}
    others: list[QuerySet] = []

    def train(name: str) -> None:
        with steps.timed(f"training {name}", f"training: {name}", done=trained[name]):
            runs[name] = train_alone(recipes[name], folder / f"{name}.yaml", name)
        with steps.timed(f"scoring {name}"):
            results[name] = run_alone(_score, recipes[name], test)

    def make() -> None:
        with steps.timed("other queries", "other queries"):
            others.extend(run_alone(make_other_queries, test, settings.other_queries, settings.seed))

    jobs: list[Callable[[], None]] = [*(partial(train, name) for name in reversed(recipes)), make]  # the longest first
    on_devices(lambda job: job(), jobs, cpu_shares(len(jobs)))
    return {name: runs[name] for name in recipes}, {name: results[name] for name in recipes}, others


def _recipe(folder: Path, name: str, own: tuple[str, ...], settings: DemoSettings) -> Recipe:
    return load_recipe(
        "nano",
        [
            f"--output={folder / 'runs' / name}",
            f"--data.manifest={folder / 'scenes' / 'manifest.parquet'}",
            f"--features.folder={folder / 'features'}",
            *(f"--{each}" for each in own),
            f"--training.seed={settings.seed}",
            *settings.recipe_overrides,
        ],
    )


def _score(recipe: Recipe, test: Manifest) -> EvaluationResult:
    """Scores the best model of a run on the test split, with the vectors."""
    encoder = Encoder(Path(recipe.output) / "best", cache=feature_cache(recipe.features, test.root))
    return evaluate(encoder, test, split="test", by=BREAKDOWN, keep_vectors=True)


def _cache_features(recipe: Recipe) -> None:
    """Caches the features of all splits, for training and evaluation."""
    trainer = Trainer(recipe)
    trainer.cache_features()
    encoder = Encoder(trainer.model, cache=feature_cache(recipe.features, trainer.manifest.root))
    cache_features([(encoder, trainer.manifest.select("test"), False)], trainer.model)


class _Steps:
    """Seconds of each step, kept between calls in a JSON file; SaySeeError if that is of another seed."""

    def __init__(self, path: Path, seed: int) -> None:
        self._path, self._seed, self._shown, self._lock = path, seed, 0, threading.Lock()
        self.seconds: dict[str, float] = {}
        if path.exists():
            kept = json.loads(path.read_text(encoding="utf-8"))
            if kept["seed"] != seed:
                raise SaySeeError(
                    f"{path.parent} holds a demo of seed {kept['seed']}; give another --to, or --seed {kept['seed']}"
                )
            self.seconds = {name: took for name, took in kept["seconds"].items() if name.startswith(_ONCE)}

    @contextmanager
    def timed(self, name: str, title: str = "", done: bool = False) -> Iterator[None]:
        """Adds the time of a ``with`` block to a step, also if it is interrupted, unless the step was done before.

        Steps may run at once, in threads.
        """
        if title:
            with self._lock:
                self._shown += 1
                logger.info("%d/%d %s", self._shown, len(ROWS) + 4, title)
        start = time.perf_counter()
        try:
            yield
        finally:
            with self._lock:
                if not done:
                    self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
                    write_text(self._path, json.dumps({"seed": self._seed, "seconds": self.seconds}))


def index_test_split(demo: DemoResult) -> IndexReport:
    """Makes the index ``index`` in the demo's folder, or brings it up to date, with the vectors of the evaluation.

    Its examples are six clips and two images of as many scenes, drawn at random by the demo's seed: where there are
    enough, clips of at most nine words whose first object has a shape and a color that no other example's has. Of the
    clips, the share whose own image ranks first is that of the whole split; those come first.
    """
    test, result, images = demo.test, demo.results[demo.best], demo.test.images()
    assert result.speech is not None
    assert result.images is not None
    ranks = retrieval_ranks(result.speech, result.images, numbered_images(test)[1]).speech_to_image
    clips, shown = choose_examples(test, ranks == 1, random.Random(demo.seed))
    marks = {row.clip: "image" for row in test if row.image_id in shown} | dict.fromkeys(clips, "clip")
    # The page marks the words of examples; no other row needs its lists, which are most of the metadata.
    lists = {row.clip: {"objects": None, "words": row.extra["words"] if row.clip in clips else None} for row in test}
    rows = [replace(row, extra={**row.extra, **lists[row.clip], "example": marks.get(row.clip)}) for row in test]
    rows.sort(key=lambda row: clips.index(row.clip) if row.clip in clips else CLIPS)  # examples keep this order
    scenes, manifest = test.root.name, demo.folder / "test.parquet"
    moved = [replace(row, clip=f"{scenes}/{row.clip}", image=f"{scenes}/{row.image}") for row in rows]
    Manifest(moved, demo.folder).write(manifest)
    vectors: Any = {
        ("image", f"{scenes}/{row.image}"): vector for row, vector in zip(images, result.images, strict=True)
    }
    vectors |= {("clip", f"{scenes}/{row.clip}"): vector for row, vector in zip(test, result.speech, strict=True)}
    encoder = Encoder(demo.folder / "runs" / demo.best / "best", device="cpu")
    source = replace(find_source(manifest), vectors=vectors)
    return update_index(encoder, source, demo.folder / INDEX_FOLDER, batch_size=1000)


def choose_examples(test: Manifest, right: Any, draw: random.Random) -> tuple[list[str], set[str]]:
    """The paths of six clips, and the ids of two images; :func:`index_test_split` has the rule.

    ``right`` [N] is whether the own image of each row's clip ranks first.
    """
    order = draw.sample(range(len(test)), len(test))
    wanted = {True: round(CLIPS * float(right.mean()))}
    wanted[False] = CLIPS - wanted[True]
    chosen: dict[bool, list[Row]] = {True: [], False: []}
    seen: set[str] = set()
    for number, varied in [(number, varied) for varied in (True, False) for number in order]:
        row, found = test.rows[number], bool(right[number])
        new = {row.image_id, *(_first_object(row) if varied else ())}
        fits = not varied or len((row.text or "").split()) <= WORDS
        if len(chosen[found]) < wanted[found] and fits and not new & seen:
            chosen[found].append(row)
            seen |= new
    others = (row.image_id for number in order if (row := test.rows[number]).image_id not in seen)
    return [row.clip for row in chosen[True] + chosen[False]], set(islice(dict.fromkeys(others), IMAGES))


def _first_object(row: Row) -> list[str]:
    """Shape and color of the object that is named first."""
    named = next(word["objects"][0] for word in row.extra["words"] if word["objects"])
    return [row.extra["objects"][named][key] for key in ("shape", "color")]
