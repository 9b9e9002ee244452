"""``saysee train``, ``convert`` and ``card``: make a model, also of another system's checkpoint, and describe it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from saysee.cli.printing import Result, print_message
from saysee.errors import ConfigError
from saysee.log import is_rank_0


def train(
    recipe: str | None = None,
    *,
    resume: Literal["auto", "never"] = "never",
    dry_run: bool = False,
    settings: bool = False,
    overrides: tuple[str, ...] = (),
) -> Result | None:
    """Train a model from a recipe.

    A flag with the name of a setting overrides the recipe: --optimizer.lr 3e-4, --denoising.preset paper.

    Args:
        recipe: a YAML file of settings, or the name of a packaged recipe
        resume: auto: resume the run in the output folder; never: fail if the folder already holds one
        dry_run: take a few steps, save nothing, and print parameters, seconds per step, memory, disk space and hours
        settings: list every setting with its default
    """
    from saysee.settings.reading import load_recipe, recipe_help

    if settings:
        return Result({"settings": recipe_help()}, [recipe_help()])
    if recipe is None:
        raise ConfigError("give a recipe: 'saysee train RECIPE.yaml'; 'saysee train --settings' lists every setting")
    loaded = load_recipe(recipe, overrides)
    from saysee.training.trainer import Trainer

    if dry_run:
        from saysee.training.dry_run import dry_run as run_dry

        rehearsal = run_dry(Trainer(loaded, name="dry run"))
        return Result(rehearsal.to_dict(), [rehearsal.to_table()]) if is_rank_0() else None
    result = Trainer(loaded).fit(resume=resume)
    if not is_rank_0():
        return None
    model, score = f"{loaded.output}/best", f"{result['best_val_mean_R@1']:.1f} % on {loaded.data.val_split}"
    step = f"step {result['best_step']} of {result['steps']}, {result['training_seconds']:.0f} s"
    return Result({"model": model, **result}, [f"{model}: mean R@1 {score} at {step}"])


def speechclip(file: Path, *, to: Path, speech: str | None = None, image: str | None = None) -> Result:
    """Make a model of a published checkpoint of SpeechCLIP parallel.

    Nothing that the file names is run: it is refused if it holds more than tensors and settings.

    Args:
        file: the downloaded checkpoint
        to: folder of the model
        speech: folder or hub name of its HuBERT (default: the published one of its kind)
        image: folder or hub name of its CLIP (default: the published one of its kind)
    """
    from saysee.model.speechclip import convert_speechclip

    result = convert_speechclip(file, to, speech, image)
    if result.unknown:
        print_message(f"warning: {file}: ignored what no parallel SpeechCLIP has: {', '.join(result.unknown)}")
    return Result(result.to_dict(), [result.to_line()])


def card(
    model: str,
    *,
    scores: Sequence[Path] = (),
    to: Path | None = None,
    name: str | None = None,
    license: str | None = None,
) -> Result:
    """Write the model card of a model, with its scores and those of others beside them.

    Args:
        model: folder of a SaySee model, such as runs/first/best
        scores: output of 'saysee evaluate ... --json', for this model, another or a cascade (repeatable)
        to: the file to write (default: README.md in the model's folder)
        name: name of the model (default: the name of its run)
        license: license of the weights as the hub names it, such as apache-2.0
    """
    from saysee.model.card import OWN, read_scores, write_card

    read = [score for path in scores for score in read_scores(path, model, name)]
    for system in dict.fromkeys(score.system for score in read if score.system != OWN):
        print_message(f"{system}: in the card's table, not in its results for the hub")
    path = write_card(model, read, to=to, name=name, license=license)
    return Result({"card": str(path), "scores": len(read)}, [str(path)])
