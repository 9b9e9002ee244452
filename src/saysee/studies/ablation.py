"""What each choice of the method is worth: a grid of rows, trained from the same start on the same budget.

    run_ablation("flickr8k-base", "ablation", AblationSettings(seeds=5))

A row is a name and the settings that it lays over the recipe. For one seed every row starts from the same weights and
meets the same batches. The budget is equal twice over: every row is trained for the recipe's steps, and a row whose
steps are slower than the baseline's is trained once more, for as many steps as fit into the baseline's training time.

Runs come one after the other, each in its own process. What is finished is kept: called again, the study does only
what is missing. ``table.md``, ``table.csv``, ``runs.csv`` and the plots are made anew from all that the folder holds.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saysee.data.manifest import Manifest
from saysee.errors import CheckpointError, ConfigError
from saysee.files import write_text
from saysee.settings.reading import load_recipe, recipe_to_dict, resolve_recipe
from saysee.settings.recipe import Recipe
from saysee.studies.ablation_grid import DEFAULT_GRID, choose_rows, flat, read_grid, refuse_flags_of_rows, slug
from saysee.studies.ablation_table import (
    EQUAL_STEPS,
    EQUAL_TIME,
    AblationResult,
    RunScores,
    images_in_share,
    steps_in_equal_time,
    write_tables,
)
from saysee.studies.processes import run_alone, sigterm_as_interrupt, train_alone
from saysee.training.log_records import read_metrics

BREAKDOWN = ("novel_pair", "hard_twin")

STUDY_FILE, RUNS, MANIFESTS = "study.json", "runs", "manifests"


@dataclass(frozen=True)
class AblationSettings:
    """What is run over a recipe.

    Attributes:
        overrides: dotted flags laid over the recipe, for every row.
        seeds: number of seeds, counted up from the recipe's ``training.seed``.
        rows: names of the rows to run, the baseline always with them; None runs all of the grid.
        grid: a YAML file of rows; None takes the package's.
        sizes: shares of the training pictures to train on besides all of them, each above 0 and at most 1.
        split: which split scores the runs: ``test`` to report, ``val`` to choose.
        command: what the table says that it was made by.
    """

    overrides: tuple[str, ...] = ()
    seeds: int = 5
    rows: tuple[str, ...] | None = None
    grid: Path | None = None
    sizes: tuple[float, ...] = ()
    split: str = "test"
    command: str = "run_ablation(...)"


@dataclass(frozen=True)
class Run:
    """One training of the study.

    Attributes:
        row: name of the row.
        seed: of the weights, the order of the data, the noise and the dropout.
        budget: ``EQUAL_STEPS`` or ``EQUAL_TIME``.
        share: of the training pictures.
    """

    row: str
    seed: int
    budget: str = EQUAL_STEPS
    share: float = 1.0

    @property
    def folder_name(self) -> str:
        """Name of the run's folder, which the progress line shows too."""
        what = self.budget.replace(" ", "-") if self.share == 1 else f"share-{self.share:g}"
        return f"{slug(self.row)}.seed-{self.seed}.{what}"

    def __str__(self) -> str:
        return f"{self.row}, seed {self.seed}, {self.budget}" + (
            "" if self.share == 1 else f", {self.share:g} of the pictures"
        )


def run_ablation(recipe: str | Path, folder: str | Path, settings: AblationSettings | None = None) -> AblationResult:
    """Does the runs that are not done yet, and writes the tables.

    Args:
        recipe: a YAML file of settings, or the name of a recipe of the package.
        folder: of the runs and the tables.
        settings: see :class:`AblationSettings`; None takes the defaults.

    Raises:
        SaySeeError: a setting, the grid or the manifest cannot be used, the folder holds another study, or a run
            failed.
        KeyboardInterrupt: interrupted; finished runs are kept, and the run that was under way has its checkpoint.
    """
    folder, settings = Path(folder).resolve(), settings or AblationSettings()
    study = _Study(recipe, folder, settings)
    study.claim()
    with sigterm_as_interrupt():
        for seed in study.seeds:
            for run in study.runs(seed):
                study.do(run)
            result = write_tables(folder, study.description(), study.scores())  # what is done can be read at once
    return result


def share_of_pictures(manifest: Manifest, split: str, share: float) -> Manifest:
    """The manifest with a share of one split's pictures, each with all its clips, and every other split whole.

    Which pictures is told by their ids alone: the same for any seed and any order of the rows, and a smaller share is
    part of a larger one.

    Args:
        manifest: of the corpus.
        split: to take the share of.
        share: above 0 and at most 1; at least one picture stays.
    """
    ids = {row.image_id for row in manifest.select(split)}
    drawn = sorted(ids, key=lambda image_id: hashlib.sha256(image_id.encode("utf-8", "surrogateescape")).digest())
    kept = set(drawn[: images_in_share(len(ids), share)])
    return Manifest([row for row in manifest if row.split != split or row.image_id in kept], manifest.root)


def score_run(folder: Path, split: str) -> dict[str, Any]:
    """Scores a finished run's best model.

    Args:
        folder: of the run.
        split: of its manifest.

    Returns:
        ``evaluation``, as ``EvaluationResult.to_dict`` gives it, and ``measures``, its main figures by name with what
        the training cost; a measure that the corpus or the row does not have is left out.
    """
    import torch

    from saysee.encoding.encoder import Encoder
    from saysee.evaluation.protocols import evaluate
    from saysee.model.retriever import SpeechImageModel
    from saysee.training.features import feature_cache

    recipe = load_recipe(folder / "recipe.yaml")
    manifest = Manifest.read(recipe.data.manifest)
    model = SpeechImageModel.from_pretrained(folder / "best")
    if recipe.training.device == "auto" and torch.cuda.is_available():
        model = model.to("cuda")
    by = [column for column in BREAKDOWN if column in manifest.extra_columns]
    # Trained encoders are this run's own: what they give is of no use to another run.
    cached = recipe.features.keep != "off" and _is_frozen(recipe)
    encoder = Encoder(model, cache=feature_cache(recipe.features, manifest.root) if cached else None)
    evaluation = evaluate(encoder, manifest, split=split, by=by, resamples=0).to_dict()
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return {"measures": _measures(evaluation, result, _attention_lift(folder, result)), "evaluation": evaluation}


def keep_features(recipe: Recipe) -> None:
    """Computes what the frozen encoders give, if it is kept: or the first run alone would carry its memory."""
    from saysee.training.trainer import Trainer

    Trainer(recipe, name="ablate").keep_features()


class _Study:
    """The plan, checked, and the folder that it is carried out in.

    Raises:
        SaySeeError: something of it cannot be used.
    """

    def __init__(self, recipe: str | Path, folder: Path, settings: AblationSettings) -> None:
        self.folder, self.settings, self.recipe_name = folder, settings, str(recipe)
        self.base = load_recipe(recipe, settings.overrides)
        grid_file = settings.grid or DEFAULT_GRID
        self.grid = read_grid(grid_file)
        refuse_flags_of_rows(self.grid, settings.overrides, grid_file)
        self.baseline = next(iter(self.grid))
        self.rows = choose_rows(self.grid, settings.rows, grid_file)
        self.manifest = self._read_manifest()
        self.seeds = range(self.base.training.seed, self.base.training.seed + settings.seeds)
        self.shares = sorted(set(settings.sizes) - {1.0})
        self._features_kept = False
        self._check()
        for row in self.grid:
            self.recipe(Run(row, self.base.training.seed), self.base.training.steps)  # refused before the long work

    def runs(self, seed: int) -> Iterator[Run]:
        """The runs of a seed, in order: the budget of equal time follows from the runs of equal steps."""
        yield from (Run(row, seed) for row in self.rows)
        for row in self.rows:
            if self.steps(run := Run(row, seed, EQUAL_TIME)) < self.base.training.steps:
                yield run
        yield from (Run(row, seed, share=share) for share in self.shares for row in self.rows)

    def do(self, run: Run) -> None:
        """Trains and scores a run, as far as that is not done; its checkpoints are then of no more use."""
        path = self.path(run)
        scores_file = path / f"scores-{self.settings.split}.json"
        if not scores_file.exists():
            _say(f"{run}")
            if not (path / "result.json").exists():
                path.parent.mkdir(exist_ok=True)
                if not self._features_kept and _is_frozen(self.base) and self.base.features.keep != "off":
                    run_alone(keep_features, self.recipe(run, self.steps(run)))
                self._features_kept = True
                train_alone(self.recipe(run, self.steps(run)), path.with_name(f"{path.name}.yaml"), str(run))
            scores = {**vars(run), **run_alone(score_run, path, self.settings.split)}
            write_text(scores_file, json.dumps(scores, indent=1) + "\n")
        shutil.rmtree(path / "checkpoints", ignore_errors=True)
        path.with_name(f"{path.name}.yaml").unlink(missing_ok=True)

    def steps(self, run: Run) -> int:
        """The optimiser steps of a run."""
        steps = self.base.training.steps
        if run.budget == EQUAL_STEPS:
            return steps
        seconds = [
            json.loads((self.path(Run(row, run.seed)) / "result.json").read_text(encoding="utf-8"))["seconds_per_step"]
            for row in (self.baseline, run.row)
        ]
        return steps_in_equal_time(steps, *seconds)

    def path(self, run: Run) -> Path:
        """Folder of a run."""
        return self.folder / RUNS / run.folder_name

    def recipe(self, run: Run, steps: int) -> Recipe:
        """The recipe of a run."""
        settings = recipe_to_dict(self.base)
        for dotted, value in self.grid[run.row].items():
            section, name = dotted.split(".", 1)
            settings[section][name] = copy.deepcopy(value)
        settings["output"] = str(self.path(run))
        settings["data"]["manifest"] = str(self.manifest_path(run.share))
        # A manifest of fewer pictures lies elsewhere, but its features are those of the whole.
        settings["features"]["folder"] = self.base.features.folder or str(self.manifest_path(1.0).parent / "features")
        settings["training"] |= {"seed": run.seed, "steps": steps}
        return resolve_recipe(settings, where=f"row {run.row!r} of the grid")

    def manifest_path(self, share: float) -> Path:
        """Where the manifest with a share of the training pictures lies."""
        if share == 1:
            return Path(self.base.data.manifest).resolve()
        return self.folder / MANIFESTS / f"share-{share:g}.parquet"

    # ------------------------------------------------------------------ the folder

    def claim(self) -> None:
        """Takes the folder, or goes on with the study that it holds.

        Raises:
            CheckpointError: it holds something else, or this study with other settings.
        """
        file = self.folder / STUDY_FILE
        if file.exists():
            there = json.loads(file.read_text(encoding="utf-8"))
            self._refuse_change(there)
        elif self.folder.exists() and any(self.folder.iterdir()):
            raise CheckpointError(f"{self.folder} holds something else than an ablation; give another --to")
        else:
            there = {"grid": {}, "calls": []}
        self.folder.mkdir(parents=True, exist_ok=True)
        call = {
            "command": self.settings.command,
            "date": time.strftime("%Y-%m-%d"),
            "processor": _processor_name(),
            "processors": os.cpu_count(),
        }
        # A call that finds all done adds nothing to what the table says of how it was made.
        calls = there["calls"] if file.exists() and self._is_done() else [*there["calls"], call]
        content = {**self._identity(), "grid": {**there["grid"], **self.grid}, "calls": calls}
        write_text(file, json.dumps(content, indent=2) + "\n")
        for share in self.shares:
            if not self.manifest_path(share).exists():
                share_of_pictures(self.manifest, self.base.data.train_split, share).write(self.manifest_path(share))

    def description(self) -> dict[str, Any]:
        """What ``study.json`` holds, with the split that was scored."""
        content = json.loads((self.folder / STUDY_FILE).read_text(encoding="utf-8"))
        train = self.manifest.select(self.base.data.train_split)
        return {**content, "split": self.settings.split, "training_images": len(train.images())}

    def scores(self) -> list[RunScores]:
        """All runs of the folder that are scored on the split, whichever call did them."""
        found = []
        for file in sorted((self.folder / RUNS).glob(f"*/scores-{self.settings.split}.json")):
            content = json.loads(file.read_text(encoding="utf-8"))
            environment = json.loads(file.with_name("environment.json").read_text(encoding="utf-8"))
            names = ("row", "seed", "budget", "share", "measures", "evaluation")
            found.append(RunScores(**{name: content[name] for name in names}, environment=environment))
        return found

    def _is_done(self) -> bool:
        """Whether every run of this call is finished and scored."""

        def scored(run: Run) -> bool:
            return (self.path(run) / f"scores-{self.settings.split}.json").exists()

        return all(
            all(scored(Run(row, seed)) for row in self.rows) and all(scored(run) for run in self.runs(seed))
            for seed in self.seeds
        )

    def _identity(self) -> dict[str, Any]:
        """What may not change in a folder."""
        recipe = _fixed(self.base)
        recipe["data"]["manifest"] = str(self.manifest_path(1.0))
        content = hashlib.sha256(self.manifest_path(1.0).read_bytes()).hexdigest()
        return {
            "recipe_name": self.recipe_name,
            "recipe": recipe,
            "manifest_sha256": content,
            "baseline": self.baseline,
        }

    def _refuse_change(self, there: Mapping[str, Any]) -> None:
        here = self._identity()
        old_recipe = resolve_recipe(there["recipe"], where=str(self.folder / STUDY_FILE))  # new settings have defaults
        old, new = dict(flat(_fixed(old_recipe))), dict(flat(here["recipe"]))
        pairs = [(name, old.get(name), new.get(name)) for name in sorted(old.keys() | new.keys())]
        pairs += [(name, there[name], here[name]) for name in ("baseline", "manifest_sha256")]
        # A row more is welcome: it has no bearing on the runs that are there.
        pairs += [(f"row {row!r}", there["grid"][row], self.grid[row]) for row in self.grid if row in there["grid"]]
        slugs = {slug(row): row for row in there["grid"]}
        pairs += [(f"row {row!r}", slugs[slug(row)], row) for row in self.grid if slug(row) in slugs]
        for name, before, now in pairs:
            if before != now:
                raise CheckpointError(
                    f"{self.folder} holds an ablation with another {name} ({before!r}, now {now!r}); "
                    "give another --to, or the same settings"
                )

    # ------------------------------------------------------------------ checks

    def _read_manifest(self) -> Manifest:
        if not self.base.data.manifest:
            raise ConfigError("data.manifest is not set; give the path of a manifest: --data.manifest PATH")
        return Manifest.read(self.base.data.manifest)

    def _check(self) -> None:
        settings, base = self.settings, self.base
        if settings.seeds < 1:
            raise ConfigError(f"--seeds is {settings.seeds}; it must be at least 1")
        if base.training.patience:
            raise ConfigError(
                f"training.patience is {base.training.patience}: runs that stop early have no equal budget; set it to 0"
            )
        for split in (base.data.val_split, settings.split):
            self.manifest.select(split)
        for share in settings.sizes:
            if not 0 < share <= 1:
                raise ConfigError(f"--sizes: {share:g} is no share of the training pictures; give 0 < share <= 1")
            part = share_of_pictures(self.manifest, base.data.train_split, share).select(base.data.train_split)
            if len(part) < base.data.batch_size:
                raise ConfigError(
                    f"--sizes: {share:g} of the training pictures has {len(part)} clips and data.batch_size is "
                    f"{base.data.batch_size}; give a larger share or smaller batches"
                )


# ---------------------------------------------------------------------- the measures


def _measures(evaluation: Mapping[str, Any], result: Mapping[str, Any], lift: float | None) -> dict[str, float]:
    overall, twins = evaluation["overall"], evaluation["twin_accuracy"]
    novel = evaluation["by"].get("novel_pair", {}).get("True")
    found = {
        "mean_R@1": overall["mean_R@1"],
        **{
            f"{way}_R@{k}": overall[way][f"R@{k}"]
            for way in ("speech_to_image", "image_to_speech")
            for k in (1, 5, 10)
            if overall[way] is not None
        },
        "hard_twins": twins and twins["accuracy"],
        "novel_pairs_R@1": novel and novel["speech_to_image"]["R@1"],
        "attention_lift": lift,
        **{name: result[name] for name in ("steps", "best_step", "training_seconds", "seconds_per_step")},
        "peak_memory_mib": result["peak_memory_mib"],
    }
    return {name: float(value) for name, value in found.items() if value is not None}


def _attention_lift(folder: Path, result: Mapping[str, Any]) -> float | None:
    """The lift that training measured on validation pictures at the best step; None without a fusion encoder."""
    for line in read_metrics(folder):
        if line["kind"] == "val" and line["step"] == result["best_step"]:
            return line.get("attention_lift")
    return None


def _fixed(recipe: Recipe) -> dict[str, Any]:
    """A recipe as plain values, without what may change while a study goes on."""
    settings = recipe_to_dict(recipe)
    del settings["output"], settings["training"]["seed"]
    del settings["features"]["folder"], settings["features"]["limit_gb"]
    return settings


def _is_frozen(recipe: Recipe) -> bool:
    return recipe.model.speech_trainable == 0 and recipe.model.image_trainable == 0


def _processor_name() -> str:
    """The processor's model, as far as the system tells."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # no Linux
    return platform.processor() or platform.machine()


def _say(text: str) -> None:
    print(f"ablate: {text}", file=sys.stderr, flush=True)
