"""The grid of an ablation (rows, each a name and settings that override the recipe), and the parts of its runs.

What has a process of its own imports torch when it is called.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from saysee.data.manifest import Manifest
from saysee.errors import ConfigError
from saysee.settings.reading import RECIPES, denoising_preset, flatten, load_recipe, read_yaml
from saysee.settings.recipe import Recipe
from saysee.studies.ablation.table import LANGUAGE, RECALLS, images_in_share
from saysee.training.records import read_metrics

BREAKDOWN = ("novel_pair", "hard_twin")
GRIDS = RECIPES / "ablation"
"""The packaged grids: what denoising is worth (``cmd``), also with its noise elsewhere (``places``), each part of
SaySee's recipe (``ladder``), and one language or all that the embedded corpus can speak (``languages``)."""
BASELINE = "baseline"  # a row of this name is the baseline; if there is none, the first row is
ROW_SECTIONS = ("model", "head", "data", "fusion", "contrastive", "speech_noise", "matching", "denoising", "optimizer")
"""What a row may set. Rows that set model, head or data have a start or batches of their own."""
SHARED = ("data.manifest", "data.train_split", "data.val_split", "optimizer.accumulate")
"""What all rows share: the corpus, and the clips of a step."""


def grid_file(grid: str | Path) -> Path:
    """The file of a packaged grid, by its name, or the path itself."""
    packaged = GRIDS / f"{grid}.yaml"
    return packaged if packaged.is_file() else Path(grid)


def read_grid(path: Path) -> dict[str, dict[str, Any]]:
    """Reads a grid: dotted settings by row, the baseline first.

    The file is YAML, and maps names to settings, nested or dotted. ``denoising.preset`` stands for the settings of that
    preset; the row's own settings override them.

    Raises ConfigError if it cannot be read, or is no such mapping.
    """
    content = read_yaml(path, f"grid {path}", "give the path of a YAML file of rows")
    if len(content) < 2:
        raise ConfigError(f"grid {path} has {len(content)} rows; give at least two, such as 'a: {{}}'")
    slugs: dict[str, str] = {}
    grid: dict[str, dict[str, Any]] = {}
    for name, row in content.items():
        where = f"grid {path}: row {name!r}"
        if not isinstance(name, str) or "," in name or not slug(name):
            raise ConfigError(f"{where} must have a name of letters and digits, without commas")
        other = slugs.setdefault(slug(name), name)
        if other != name:
            raise ConfigError(f"{where} and row {other!r} would share a folder; rename one")
        if not isinstance(row, Mapping | None):
            raise ConfigError(f"{where} is {row!r}; give settings, or {{}} for the recipe as it is")
        grid[name] = _row_settings(row or {}, where)
    first = BASELINE if BASELINE in grid else next(iter(grid))
    return {first: grid.pop(first), **grid}


def choose_rows(grid: Mapping[str, Any], rows: Sequence[str] | None, file: Path) -> list[str]:
    """The chosen rows (None: all) and the baseline, in the order of the grid. Raises ConfigError for no such row."""
    baseline, *others = grid
    for name in rows or ():
        if name not in grid:
            raise ConfigError(f"--rows: {name!r} is no row of {file}; give some of: {', '.join(grid)}")
    return [baseline, *(name for name in others if rows is None or name in rows)]


def check_overrides(grid: Mapping[str, Mapping[str, Any]], overrides: Sequence[str], file: Path) -> None:
    """Raises ConfigError if a flag sets what a row sets too: it would have no effect on that row."""
    for word in overrides:
        flag = word.removeprefix("--").partition("=")[0]
        for row, settings in grid.items():
            if word.startswith("--") and (flag in settings or flag == "denoising.preset"):
                raise ConfigError(f"--{flag} is set by row {row!r} of {file}; to change it, give another --grid")


def _row_settings(row: Mapping[Any, Any], where: str) -> dict[str, Any]:
    """Dotted settings of a row, with those of its preset: a row overrides settings, not whole sections."""
    settings = dict(flatten(row))
    for dotted in settings:
        section, _, name = dotted.partition(".")
        if section not in ROW_SECTIONS or not name or dotted in SHARED:
            may = (
                f"rows share corpus and budget, so a row may set {', '.join(ROW_SECTIONS)}, but not {', '.join(SHARED)}"
            )
            raise ConfigError(f"{where} sets {dotted}; {may}; set it in the recipe, for every row")
    preset = settings.pop("denoising.preset", None)
    if preset is None:
        return settings
    return {f"denoising.{name}": value for name, value in denoising_preset(preset, where).items()} | settings


def slug(name: str) -> str:
    """The name of a row as part of a folder name."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def cache_features(recipe: Recipe) -> None:
    """Caches the features of frozen encoders; the first run would otherwise need more memory than the others."""
    from saysee.training.trainer import Trainer

    Trainer(recipe, name="ablate").cache_features()


def score_run(folder: Path, split: str) -> dict[str, Any]:
    """Scores the best model of a finished run on a split of its manifest.

    Returns ``evaluation``, from ``EvaluationResult.to_dict``, and ``measures``: its main values and the cost of
    training, without those that the corpus or the row does not have.
    """
    from saysee.encoding.encoder import Encoder
    from saysee.evaluation.protocols import evaluate
    from saysee.training.data import feature_cache

    recipe = load_recipe(folder / "recipe.yaml")
    manifest = Manifest.read(recipe.data.manifest)
    environment = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    # Where training recomputed the features, those of this split would fill the disk for a single use.
    cached = environment.get("recomputed", "unknown") is None
    cache = feature_cache(recipe.features, manifest.root) if cached else None
    encoder = Encoder(folder / "best", recipe.training.device, cache=cache)
    by = [column for column in BREAKDOWN if column in manifest.extra_columns]
    if len({row.language for row in manifest.select(split)}) > 1:
        by.append("language")
    evaluation = evaluate(encoder, manifest, split=split, by=by, resamples=0, texts=False).to_dict()
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return {"measures": _measures(evaluation, result, _attention_lift(folder, result)), "evaluation": evaluation}


def share_of_images(manifest: Manifest, split: str, share: float) -> Manifest:
    """The manifest with a share of the images of one split, at least one, each with all its clips.

    The choice depends on nothing but the image ids, and a smaller share is part of a larger one; other splits are
    whole.
    """
    ids = {row.image_id for row in manifest.select(split)}
    drawn = sorted(ids, key=lambda image_id: hashlib.sha256(image_id.encode("utf-8", "surrogateescape")).digest())
    kept = set(drawn[: images_in_share(len(ids), share)])
    return Manifest([row for row in manifest if row.split != split or row.image_id in kept], manifest.root)


def is_frozen(recipe: Recipe) -> bool:
    """Whether both encoders are frozen."""
    return recipe.model.speech_trainable == 0 and recipe.model.image_trainable == 0


def _measures(evaluation: Mapping[str, Any], result: Mapping[str, Any], lift: float | None) -> dict[str, float]:
    overall, twins = evaluation["overall"], evaluation["twin_accuracy"]
    novel = evaluation["by"].get("novel_pair", {}).get("True")
    languages, costs = evaluation["by"].get("language", {}), ("steps", "best_step", "training_seconds")
    found = {
        "mean_R@1": overall["mean_R@1"],
        **{name: overall[name[:15]] and overall[name[:15]][name[16:]] for name in RECALLS},
        "hard_twins": twins and twins["accuracy"],
        "novel_pairs_R@1": novel and novel["speech_to_image"]["R@1"],
        "attention_lift": lift,
        **{LANGUAGE + name: of["speech_to_image"]["R@1"] for name, of in languages.items()},
        **{name: result[name] for name in (*costs, "seconds_per_step", "peak_memory_mib")},
    }
    return {name: float(value) for name, value in found.items() if value is not None}


def _attention_lift(folder: Path, result: Mapping[str, Any]) -> float | None:
    """The lift on validation images at the best step; None without a fusion encoder."""
    lines = (line for line in read_metrics(folder) if line["kind"] == "val" and line["step"] == result["best_step"])
    return next(lines, {}).get("attention_lift")
