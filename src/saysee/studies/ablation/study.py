"""Ablation: variants of a recipe, trained from the same start with the same budget, over several seeds.

    run_ablation("flickr8k-base", "ablation", AblationSettings(seeds=5))

A row is a name and settings that override the recipe. For one seed all rows start from the same weights and see the
same batches, but for rows that set ``model``, ``head`` or ``data``. There are two equal budgets: every row is trained
for the recipe's steps, and a row whose steps are slower than the baseline's is trained again, for as many steps as fit
into the baseline's training time.

Each run has a process of its own. Finished runs are kept: another call does only what is missing.
"""

import copy
import hashlib
import json
import logging
import os
import platform
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saysee.data.manifest import Manifest
from saysee.errors import CheckpointError, ConfigError
from saysee.files import write_text
from saysee.settings.reading import changed_settings, load_recipe, recipe_to_dict, resolve_recipe
from saysee.settings.recipe import Recipe
from saysee.studies.ablation.runs import (
    cache_features,
    check_overrides,
    choose_rows,
    grid_file,
    is_frozen,
    read_grid,
    score_run,
    share_of_images,
    slug,
)
from saysee.studies.ablation.table import (
    EQUAL_STEPS,
    EQUAL_TIME,
    AblationResult,
    RunScores,
    steps_in_equal_time,
    write_tables,
)
from saysee.studies.processes import interrupted_once, on_devices, run_alone, train_alone

logger = logging.getLogger(__name__)

STUDY_FILE, RUNS = "study.json", "runs"


@dataclass(frozen=True)
class AblationSettings:
    """Extent of a study."""

    overrides: tuple[str, ...] = ()  # dotted flags that override the recipe, for every row
    seeds: int = 5  # number of seeds, from the recipe's ``training.seed`` on
    rows: tuple[str, ...] | None = None  # names of the rows to run besides the baseline; None is all
    grid: str | Path = "cmd"  # a YAML file of rows, or the name of one of the package's, such as ``ladder``
    sizes: tuple[float, ...] = ()  # shares of the training images to train on too, each above 0 and at most 1
    split: str = "test"  # the split to score; ``val`` to choose between rows
    equal_time: bool = True  # train slower rows again, for the baseline's time
    # one run at a time on each: ``cpu``, ``cuda`` or ``cuda:N``, also several times; empty is one at a time
    devices: tuple[str, ...] = ()
    command: str = "run_ablation(...)"  # how the study was started, for the table


@dataclass(frozen=True)
class Run:
    """One training of the study."""

    row: str  # name of the row
    seed: int  # of the weights, the order of the data, the noise and the dropout
    budget: str = EQUAL_STEPS  # ``EQUAL_STEPS`` or ``EQUAL_TIME``
    share: float = 1.0  # of the training images

    def __str__(self) -> str:
        share = "" if self.share == 1 else f", {self.share:g} of the images"
        return f"{self.row}, seed {self.seed}, {self.budget}{share}"


def run_ablation(recipe: str | Path, folder: str | Path, settings: AblationSettings | None = None) -> AblationResult:
    """Does the missing runs of a recipe, and writes the tables into their folder.

    Raises SaySeeError if a setting, the grid or the manifest cannot be used, the folder holds another study, or a run
    failed; KeyboardInterrupt if it was interrupted: finished runs are kept, and the current run has its checkpoint.
    """
    study = _Study(recipe, Path(folder).resolve(), settings or AblationSettings())
    study.claim()
    devices = study.settings.devices
    # Tables after each seed; with several devices after all, so that none of them waits for the end of a seed.
    parts = [[seed] for seed in study.seeds] if len(devices) < 2 else [study.seeds]
    with interrupted_once():
        for seeds in parts:
            for runs in study.stages(seeds):
                study.cache_features(runs)
                on_devices(study.do, runs, devices)
            result = write_tables(study.folder, study.description(), study.scores())
    return result


class _Study:
    """A checked plan and its folder; SaySeeError if a setting, the grid or the manifest cannot be used."""

    def __init__(self, recipe: str | Path, folder: Path, settings: AblationSettings) -> None:
        self.folder, self.settings, self.recipe_name = folder, settings, str(recipe)
        self.base = load_recipe(recipe, settings.overrides)
        file = grid_file(settings.grid)
        self.grid = read_grid(file)
        check_overrides(self.grid, settings.overrides, file)
        self.baseline = next(iter(self.grid))
        self.rows = choose_rows(self.grid, settings.rows, file)
        if not self.base.data.manifest:
            raise ConfigError("data.manifest is not set; give the path of a manifest: --data.manifest PATH")
        self.manifest = Manifest.read(self.base.data.manifest)
        self.seeds = range(self.base.training.seed, self.base.training.seed + settings.seeds)
        self.shares = sorted(set(settings.sizes) - {1.0})
        self._features_of: set[str] = set()
        self._check()
        for row in self.grid:  # before the long work
            self.recipe(Run(row, self.base.training.seed), self.base.training.steps)

    def stages(self, seeds: Sequence[int]) -> Iterator[list[Run]]:
        """The runs of some seeds; those of equal time follow from those of equal steps, when these are done."""
        yield [Run(row, seed, share=share) for seed in seeds for share in (1.0, *self.shares) for row in self.rows]
        if self.settings.equal_time:
            slower = (Run(row, seed, EQUAL_TIME) for seed in seeds for row in self.rows)
            yield [run for run in slower if self.steps(run) < self.base.training.steps]

    def cache_features(self, runs: Sequence[Run]) -> None:
        """Caches the features of frozen encoders: a run would otherwise need more memory and time than the others."""
        for run in runs:
            recipe = self.recipe(run, self.steps(run))
            made_by = recipe_to_dict(recipe)
            made_by["data"].pop("manifest")
            key = json.dumps([made_by[part] for part in ("model", "head", "data")])
            if is_frozen(recipe) and key not in self._features_of and not (self.path(run) / "result.json").exists():
                run_alone(cache_features, recipe)
                self._features_of.add(key)

    def do(self, run: Run) -> None:
        """Trains and scores a run, unless that is done, and removes its checkpoints."""
        path, scores_file = self.path(run), self.scores_file(run)
        recipe_file = path.with_name(f"{path.name}.yaml")
        if not scores_file.exists():
            logger.info("%s", run)
            if not (path / "result.json").exists():
                path.parent.mkdir(exist_ok=True)
                train_alone(self.recipe(run, self.steps(run)), recipe_file, str(run))
            scores = {**vars(run), **run_alone(score_run, path, self.settings.split)}
            write_text(scores_file, json.dumps(scores, indent=1) + "\n")
        shutil.rmtree(path / "checkpoints", ignore_errors=True)
        recipe_file.unlink(missing_ok=True)

    def steps(self, run: Run) -> int:
        """Optimizer steps of a run."""
        steps = self.base.training.steps
        if run.budget == EQUAL_STEPS:
            return steps
        results = [self.path(Run(row, run.seed)) / "result.json" for row in (self.baseline, run.row)]
        seconds = [_read(file)["seconds_per_step"] for file in results]
        return steps_in_equal_time(steps, *seconds)

    def path(self, run: Run) -> Path:
        """Folder of a run."""
        what = run.budget.replace(" ", "-") if run.share == 1 else f"share-{run.share:g}"
        return self.folder / RUNS / f"{slug(run.row)}.seed-{run.seed}.{what}"

    def scores_file(self, run: Run) -> Path:
        """The scores of a run on the study's split."""
        return self.path(run) / f"scores-{self.settings.split}.json"

    def recipe(self, run: Run, steps: int) -> Recipe:
        """The recipe of a run."""
        settings = recipe_to_dict(self.base)
        for dotted, value in self.grid[run.row].items():
            section, name = dotted.split(".", 1)
            settings[section][name] = copy.deepcopy(value)
        settings["output"] = str(self.path(run))
        settings["data"]["manifest"] = str(self.manifest_path(run.share))
        # A manifest of fewer images is in another folder, but shares the features of the whole.
        settings["features"]["folder"] = self.base.features.folder or str(self.manifest_path(1.0).parent / "features")
        settings["training"] |= {"seed": run.seed, "steps": steps}
        return resolve_recipe(settings, where=f"row {run.row!r} of the grid")

    def manifest_path(self, share: float) -> Path:
        """The manifest with a share of the training images."""
        if share == 1:
            return Path(self.base.data.manifest).resolve()
        return self.folder / "manifests" / f"share-{share:g}.parquet"

    def claim(self) -> None:
        """Writes ``study.json`` and the manifests of the sizes, or resumes the study of the folder.

        Raises CheckpointError if the folder holds something else, or this study with other settings.
        """
        file = self.folder / STUDY_FILE
        before: dict[str, Any] = {"grid": {}, "calls": []}
        if file.exists():
            self._check_unchanged(before := _read(file))
        elif self.folder.exists() and any(self.folder.iterdir()):
            raise CheckpointError(f"{self.folder} holds other files and no ablation; give another --to")
        self.folder.mkdir(parents=True, exist_ok=True)
        processor = {"processor": _cpu_name(), "processors": os.cpu_count()}
        call = {"command": self.settings.command, "date": time.strftime("%Y-%m-%d"), **processor}
        # A call that finds everything done is not recorded.
        runs = (run for runs in self.stages(self.seeds) for run in runs)
        done = file.exists() and all(self.scores_file(run).exists() for run in runs)
        calls = before["calls"] if done else [*before["calls"], call]
        content = {**self._identity(), "grid": {**before["grid"], **self.grid}, "calls": calls}
        write_text(file, json.dumps(content, indent=2) + "\n")
        for share in self.shares:
            if not self.manifest_path(share).exists():
                share_of_images(self.manifest, self.base.data.train_split, share).write(self.manifest_path(share))

    def description(self) -> dict[str, Any]:
        """Contents of ``study.json``, with the scored split, the budgets and the number of training images."""
        train = self.manifest.select(self.base.data.train_split)
        of_call = {"split": self.settings.split, "equal_time": self.settings.equal_time}
        return {**_read(self.folder / STUDY_FILE), **of_call, "training_images": len(train.images())}

    def scores(self) -> list[RunScores]:
        """All runs in the folder that are scored on the split, also those of other calls."""
        files = sorted((self.folder / RUNS).glob(f"*/scores-{self.settings.split}.json"))
        names = ("row", "seed", "budget", "share", "measures", "evaluation")
        contents = ((_read(file), _read(file.with_name("environment.json"))) for file in files)
        return [
            RunScores(**{name: of[name] for name in names}, environment=environment) for of, environment in contents
        ]

    def _identity(self) -> dict[str, Any]:
        """What must not change in a folder."""
        recipe = _fixed_settings(self.base)
        recipe["data"]["manifest"] = str(self.manifest_path(1.0))
        return {
            "recipe_name": self.recipe_name,
            "recipe": recipe,
            "manifest_sha256": hashlib.sha256(self.manifest_path(1.0).read_bytes()).hexdigest(),
            "baseline": self.baseline,
        }

    def _check_unchanged(self, before: Mapping[str, Any]) -> None:
        now = self._identity()
        old_recipe = resolve_recipe(before["recipe"], where=str(self.folder / STUDY_FILE))  # adds newer settings
        pairs = list(changed_settings(_fixed_settings(old_recipe), now["recipe"]))
        pairs += [(name, before[name], now[name]) for name in ("baseline", "manifest_sha256")]
        # New rows may be added: they do not affect the runs in the folder.
        pairs += [(f"row {row!r}", before["grid"][row], self.grid[row]) for row in self.grid if row in before["grid"]]
        slugs = {slug(row): row for row in before["grid"]}
        pairs += [(f"row {row!r}", slugs[slug(row)], row) for row in self.grid if slug(row) in slugs]
        for name, old, new in pairs:
            if old != new:
                what = f"{self.folder} holds an ablation with another {name} ({old!r}, now {new!r})"
                raise CheckpointError(f"{what}; give another --to, or the same settings")

    def _check(self) -> None:
        settings, base = self.settings, self.base
        if settings.seeds < 1:
            raise ConfigError(f"--seeds is {settings.seeds}; it must be at least 1")
        if base.training.patience:
            fix = "set it to 0: runs that stop early have no equal budget"
            raise ConfigError(f"training.patience is {base.training.patience}; {fix}")
        for device in settings.devices:
            _check_device(device, base.training.device)
        if settings.equal_time and len(settings.devices) > len(set(settings.devices)):
            logger.warning(
                "runs that share a device slow each other down, so results of equal time are unreliable; add "
                "--no-equal-time"
            )
        self.manifest.select(settings.split)
        for row in self.rows:
            language = self.grid[row].get("data.language", base.data.language)
            for name in ("train_split", "val_split"):
                self.manifest.select(getattr(base.data, name), f"--data.{name}", language)
        for share in settings.sizes:
            if not 0 < share <= 1:
                raise ConfigError(f"--sizes has {share:g}; give shares above 0 and at most 1")
            part = share_of_images(self.manifest, base.data.train_split, share).select(base.data.train_split)
            for row in self.rows:
                language = self.grid[row].get("data.language", base.data.language)
                batch = self.grid[row].get("data.batch_size", base.data.batch_size)
                clips = sum(not language or clip.language == language for clip in part)
                if clips < batch:
                    what = f"{share:g} of the training images has {clips} clips for row {row!r}"
                    fix = "give a larger share or smaller batches"
                    raise ConfigError(f"--sizes: {what}, and data.batch_size is {batch}; {fix}")


def _check_device(device: str, of_recipe: str) -> None:
    import torch

    kind, _, number = device.partition(":")
    if device != "cpu" and (kind != "cuda" or not (number or "0").isdecimal()):
        raise ConfigError(f"--devices has {device!r}; give cpu, cuda or cuda:N, separated by commas")
    if kind == "cuda" and of_recipe == "cpu":
        raise ConfigError(f"--devices has {device}, but training.device is cpu; set it to auto")
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise ConfigError(f"--devices has {device}, but torch finds {torch.cuda.device_count()} GPUs")


def _read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def _fixed_settings(recipe: Recipe) -> dict[str, Any]:
    """A recipe as plain values, without what may differ between calls."""
    settings = recipe_to_dict(recipe)
    del settings["output"], settings["training"]["seed"]
    del settings["features"]["folder"], settings["features"]["limit_gb"]
    return settings


def _cpu_name() -> str:
    """The model of the CPU, if the system reports it."""
    file = Path("/proc/cpuinfo")  # of Linux
    named = re.search(r"^model name\s*:\s*(.+)", file.read_text("utf-8") if file.exists() else "", re.MULTILINE)
    return named[1].strip() if named else platform.processor() or platform.machine()
