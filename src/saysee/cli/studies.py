"""``saysee ablate``, ``overhead``, ``reconstruction``, ``robustness`` and ``demo``: whole experiments."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

from saysee.cli.evaluate import TRANSCRIPTS, cascade_of, load_encoder, read_corpus, sorted_places
from saysee.cli.printing import Result
from saysee.errors import ConfigError

Number = TypeVar("Number", int, float)


def ablate(
    recipe: str,
    *,
    to: Path,
    seeds: int = 5,
    rows: str | None = None,
    grid: str = "cmd",
    sizes: str = "",
    split: str = "test",
    no_equal_time: bool = False,
    devices: str = "",
    overrides: tuple[str, ...] = (),
    command: str = "",
) -> Result:
    """Compare variants of a recipe over several seeds.

    A flag with the name of a setting, such as --data.manifest, overrides the recipe in all of them.

    Args:
        recipe: a YAML file of settings, or the name of a packaged recipe
        to: folder of the runs and tables; finished runs are not repeated
        seeds: number of runs per row
        rows: names of the rows to run besides the baseline, separated by commas (default: all)
        grid: a YAML file of rows, or a packaged one: cmd (variants of denoising), places (where its noise is put),
            ladder (the parts of the recipe) or languages (one language or all)
        sizes: shares of the training images to train on as well, separated by commas, such as 0.25,0.5,1
        split: the split to score; use val to choose a variant
        no_equal_time: do not train slower rows again for the training time of the baseline
        devices: run on several devices at once, such as cuda:0,cuda:1; a device twice runs two at once on it
    """
    from saysee.studies.ablation.study import AblationSettings, run_ablation

    shares = _numbers("--sizes", sizes, float, "0.25,0.5,1")
    chosen = None if rows is None else tuple(name.strip() for name in rows.split(","))
    on = tuple(name.strip() for name in devices.split(",")) if devices else ()
    settings = AblationSettings(overrides, seeds, chosen, grid, shares, split, not no_equal_time, on, command)
    result = run_ablation(recipe, to, settings)
    return Result(result.to_dict(), [*result.to_tables(), f"table: {result.folder / 'table.md'}"])


def overhead(
    recipe: str,
    *,
    to: Path,
    batch_sizes: str = "32,64",
    depths: str = "1,2",
    rounds: int = 3,
    overrides: tuple[str, ...] = (),
) -> Result:
    """Measure what cross-modal denoising costs in training, and that a query costs the same.

    The baseline and CMD take steps in turn, each in a process of its own, with cached and with recomputed features:
    time, peak memory, FLOPs by part. No model is saved. The folder gets table.md, results.json and overhead.png. A flag
    with the name of a setting, such as --data.manifest, overrides the recipe.

    Args:
        recipe: a YAML file of settings with denoising, or the name of a packaged recipe
        to: folder of the results
        batch_sizes: batch sizes, separated by commas
        depths: numbers of layers of the fusion encoder, separated by commas
        rounds: turns of each row; the spread is over them
    """
    from saysee.studies.overhead import run_overhead

    sizes, layers = _numbers("--batch-sizes", batch_sizes, int, "32,64"), _numbers("--depths", depths, int, "1,2")
    result = run_overhead(recipe, overrides, batch_sizes=sizes, depths=layers, rounds=rounds)
    result.write(to)
    shown = [*result.to_tables(), result.to_line(), f"picture: {to / 'overhead.png'}"]
    return Result({"to": str(to), **result.to_dict()}, shown)


def reconstruction(
    model: Path,
    manifest: Path,
    *,
    to: Path,
    split: str = "test",
    images: int = 1000,
    seed: int = 0,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> Result:
    """Measure what cross-modal denoising rebuilds, with and without the other modality.

    For each source of noise and shares of noisy tokens from 0 to 1: how often what is rebuilt is nearest to its own
    target, with the right other modality, with that of another item, and with none. The folder gets table.md,
    results.json and reconstruction.png.

    Args:
        model: folder of a model that was saved with its fusion encoder (training.save_fusion: true)
        manifest: a .parquet or .jsonl file
        to: folder of the results
        split: the split to measure on
        images: the most images, drawn at random, each with one clip
        seed: seed of the draws
        device: device to compute on
    """
    from saysee.studies.reconstruction import reconstruct

    result = reconstruct(model, manifest, split=split, images=images, seed=seed, device=device)
    result.write(to)
    shown = [result.to_table(), *result.to_lines(), f"picture: {to / 'reconstruction.png'}"]
    return Result({"to": str(to), **result.to_dict()}, shown)


def _numbers(flag: str, text: str, kind: Callable[[str], Number], example: str) -> tuple[Number, ...]:
    """The numbers of a list; none of an empty text."""
    try:
        return tuple(kind(word) for word in text.split(",")) if text else ()
    except ValueError as error:
        raise ConfigError(f"{flag} is {text!r}; give numbers separated by commas, such as {example}") from error


def demo(*, to: Path = Path("demo"), seed: int = 0, full: bool = False) -> Iterator[Result]:
    """Make a corpus, train three recipes on it, evaluate them, write a report, and index the test split.

    Args:
        to: folder of the corpus, the models, the report and the index
        seed: seed of the corpus and of the training
        full: then run all studies on the corpus and the models, which takes a night; the same command resumes
    """
    from saysee.studies.demo import DemoSettings, run_demo

    result = run_demo(to, DemoSettings(seed=seed))
    saysee = "saysee" if shutil.which("saysee") else f"{sys.executable} -m saysee"
    lines = [f"report: {result.report}", f"search it by voice: {saysee} serve {to}"]
    yield Result(result.to_dict(), [result.to_table(), *lines])
    if full:
        from saysee.studies.full import REFERENCE_SECONDS, run_studies

        studies = run_studies(result.folder, result.seconds.get("training CMD", REFERENCE_SECONDS))
        values = {"page": str(studies.page), "studies": studies.records}
        yield Result(values, [f"studies: {studies.page}"], failures=studies.failures)


def robustness(
    models_and_manifest: Sequence[str],
    *,
    to: Path,
    conditions: str | None = None,
    split: str = "test",
    clips: int | None = None,
    seed: int = 0,
    by: Sequence[str] = (),
    noises: Path | None = None,
    rooms: Path | None = None,
    features: Path | None = None,
    language: str | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> Result:
    """Score models on changed speech and images: noise, rooms, codecs, speed, lost parts, blur and more.

    MODEL is the folder or hub name of a SaySee model, or a cascade (as for saysee evaluate), such as
    cascade:tiny.en+runs/a/best for the transcribed speech of the same model. All models hear the same changed clips,
    and what is finished is kept: the same command resumes.

    Args:
        models_and_manifest: MODEL [MODEL ...] MANIFEST
        to: folder of the table, the picture and the results
        conditions: names, or families of them, with strengths of your own, such as noise=20,0,room,telephone (default:
            all); an unknown name lists them
        split: the split to score
        clips: number of clips that are queries, drawn by the seed (default: all); the image gallery stays whole
        seed: seed of the noise, the rooms and all other draws
        by: also score each value of this column separately (repeatable)
        noises: folder of noises of your own, such as MUSAN: a condition for each subfolder
        rooms: folder of room responses of your own, such as simulated_rirs of RIRS_NOISES
        features: folder of cached features of the clean files, such as scenes/features
        language: the spoken language, such as en, for the Whisper of a cascade
        device: device to compute on
    """
    models, manifests = sorted_places(models_and_manifest)
    if len(manifests) > 1:
        raise ConfigError(f"robustness scores one corpus, not {', '.join(manifests)}; run it once for each")
    cascades = {model: cascade_of(model) for model in models}
    if any(parts and parts.recognizer == TRANSCRIPTS for parts in cascades.values()):
        fix = "give a recognizer, such as cascade:tiny.en+…"
        raise ConfigError(f"a cascade with {TRANSCRIPTS!r} hears no speech; {fix}")
    corpus = read_corpus(manifests[0], split, by)
    from saysee.evaluation.comparison import short_names
    from saysee.model.loading import kind_of
    from saysee.studies.robustness.study import RobustnessSettings, run_robustness

    for model, parts in cascades.items():
        kind_of(parts.clip if parts else model)  # raises before the long work
    names = zip(models, short_names(models), strict=True)
    loaders = {name: partial(_load, model, cascades[model], device, features, language) for model, name in names}
    settings = RobustnessSettings(conditions or "", split, clips, seed, by, noises, rooms)
    result = run_robustness(loaders, corpus, to, settings)
    tables = [result.summary(), *filter(None, [result.groups()])]
    return Result(result.to_dict(), [*tables, f"table: {to / 'table.md'}", f"picture: {to / 'robustness.png'}"])


def _load(model: str, cascade: Any, device: str, features: Path | None, language: str | None) -> Any:
    from saysee.encoding.encoder import Encoder

    encoder, heard_by = load_encoder(model, cascade, device, features, language)
    if heard_by is not None:
        return Encoder(encoder.model, cache=encoder.cache, recognizer=heard_by)
    if encoder.warning:
        raise ConfigError(f"{encoder.warning}; train the model first")
    return encoder
