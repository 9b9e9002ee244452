"""``saysee evaluate``: score models and cascades on corpora."""

import re
from collections.abc import Sequence
from functools import partial
from glob import glob
from itertools import product
from pathlib import Path
from typing import Any, Literal, NamedTuple

from saysee.cli.printing import Result
from saysee.errors import ConfigError, ManifestError

CASCADE = "cascade:"
TRANSCRIPTS = "manifest"  # in place of a recognizer: the texts of the manifest
_MANIFEST = re.compile(r"(.+\.(?:parquet|jsonl)):(.+)", re.IGNORECASE)
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


class Cascade(NamedTuple):
    """The parts of ``cascade:ASR+CLIP``."""

    recognizer: str
    clip: str


def evaluate(
    models_and_manifests: Sequence[str],
    *,
    split: str = "test",
    by: Sequence[str] = (),
    format: Literal["table", "markdown", "csv", "latex"] = "table",
    mteb: bool = False,
    localization: bool = False,
    language: str | None = None,
    features: Path | None = None,
    untrained: bool = False,
    rerank: int | None = None,
    batch_size: int = 32,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> Result:
    """Score models and cascades on corpora by the standard protocol, in one table.

    MODEL is the folder or hub name of a SaySee model, or a cascade; MANIFEST is a .parquet or .jsonl file, and
    MANIFEST:SPLIT scores another split than --split. All models are scored on all manifests, and compared with the
    first. Runs that differ in their seed alone are one row, with mean and deviation.

    A cascade is a speech recognizer followed by the text encoder of a CLIP: cascade:ASR+CLIP, such as
    cascade:small+openai/clip-vit-base-patch32. ASR is a size of Whisper, a folder or hub name of a Whisper or of a CTC
    recognizer, or 'manifest' for the texts of the manifest.

    Args:
        models_and_manifests: MODEL [MODEL ...] MANIFEST [MANIFEST ...]
        split: the split to score
        by: also score each value of this column separately (repeatable; one manifest only)
        format: how the table is printed: for the terminal, or as Markdown, LaTeX (booktabs) or CSV of plain numbers
        mteb: also show MTEB's measures, under its names
        localization: score where attention lies while a word for an object is spoken, in place of retrieval; MANIFEST
            has the times of words and the boxes of objects, as that of 'saysee data scenes'
        language: the spoken language, such as en, for the Whisper of a cascade
        features: folder of cached features, such as scenes/features: what it does not have is computed and added
        untrained: score a model whose speech head was never trained
        rerank: also score each model with this many best results of each query re-ranked by its fusion encoder
        batch_size: files encoded together
        device: device to compute on
    """
    models, manifests = sorted_places(models_and_manifests)
    cascades = {model: cascade_of(model) for model in models}
    if language is not None and not any(parts and parts.recognizer != TRANSCRIPTS for parts in cascades.values()):
        raise ConfigError(f"--language is for the recognizer of a cascade; there is none among {', '.join(models)}")
    if by and len(manifests) > 1:
        raise ConfigError("--by breaks down one corpus; give one manifest with it")
    if localization and (by or mteb or features or any(cascades.values())):
        raise ConfigError("--localization cannot be combined with --by, --mteb, --features or a cascade")
    if rerank is not None and (localization or any(cascades.values())):
        raise ConfigError("--rerank cannot be combined with --localization or a cascade")
    if rerank is not None and rerank < 1:
        raise ConfigError(f"--rerank is {rerank}; it must be at least 1")
    paths, splits = zip(*(_path_and_split(place, split) for place in manifests), strict=True)
    corpora = [read_corpus(path, part, by) for path, part in zip(paths, splits, strict=True)]
    from saysee.evaluation.comparison import Comparison, System, short_names
    from saysee.evaluation.reranking import evaluate_reranked

    load = partial(
        _scorer, device=device, features=features, language=language, untrained=untrained, rerank=rerank is not None
    )
    if len(models) > 1:
        for model, cascade in cascades.items():
            load(model, cascade)  # an error of the last model comes before the long work on the first
    if localization:
        corpora = [corpus.select(part) for corpus, part in zip(corpora, splits, strict=True)]
        return _localize(models, dict(zip(short_names(paths, splits), corpora, strict=True)), device, untrained, format)
    options: dict[str, Any] = {"by": by, "batch_size": batch_size}
    if rerank is not None:
        options["keep_vectors"] = True
    scored: dict[str, list[System]] = {}
    for model, name in dict(zip(models, short_names(models), strict=True)).items():
        encoder, score, about, facts = load(model, cascades[model])
        results = [score(corpus, split=part, **options) for corpus, part in zip(corpora, splits, strict=True)]
        scored[model] = [System(name, results, about, facts)]
        if rerank is not None:
            pairs = zip(corpora, results, strict=True)
            again = [evaluate_reranked(encoder, corpus, result, rerank, by=by) for corpus, result in pairs]
            scored[model].append(scored[model][0].reranked(again))
        del encoder, score  # before the next model is loaded: memory for one
    systems = [system for model in models for system in scored[model]]
    comparison = Comparison(short_names(paths, splits), systems, mteb)
    return Result(comparison.to_dict(paths), _shown(comparison.tables(), comparison.lines, format))


def _shown(tables: list[Any], lines: Any, format: str) -> list[Any]:
    """What is printed of tables, or of lines of the same values as CSV."""
    from saysee.evaluation.table import csv_text

    if format in ("markdown", "latex"):
        return ["\n\n".join(getattr(table, f"to_{format}")() for table in tables)]
    return [csv_text(lines).rstrip("\n")] if format == "csv" else tables


def _localize(models: Sequence[str], corpora: dict[str, Any], device: str, untrained: bool, format: str) -> Result:
    """Scores the maps of each model by each source that it has."""
    from saysee.encoding.encoder import Encoder
    from saysee.evaluation.comparison import short_names
    from saysee.evaluation.localization import localization_table, localize, sources_of

    results = []
    for model, name in zip(models, short_names(models), strict=True):
        encoder = Encoder(model, device)
        _check_trained(encoder, untrained)
        for (corpus, rows), source in product(corpora.items(), sources_of(encoder)):
            results.append((corpus, name, localize(encoder, rows, source)))
    values = [{"corpus": corpus, "model": name, **found.to_dict()} for corpus, name, found in results]
    flat = []
    for line in values:
        scores = {f"{name} {part}": value for name, of in line["scores"].items() for part, value in of.items()}
        flat.append({name: value for name, value in line.items() if name != "scores"} | scores)
    return Result({"localization": values}, _shown([localization_table(results)], flat, format))


def read_corpus(path: str, split: str, by: Sequence[str]) -> Any:
    """A manifest that has this split and these columns."""
    from saysee.data.manifest import Manifest

    corpus = Manifest.read(path)
    try:
        rows = corpus.select(split)
        for column in by:
            rows.column(column)
    except ManifestError as error:
        raise ManifestError(f"{path}: {error}") from None
    return corpus


def _scorer(
    model: str,
    cascade: Cascade | None,
    device: str,
    features: Path | None,
    language: str | None,
    untrained: bool,
    rerank: bool,
) -> tuple[Any, Any, dict[str, Any], Any]:
    """The encoder, a function that scores a corpus, what the model is, and the facts about the run that trained it.

    Raises SaySeeError if the model cannot be scored as asked.
    """
    from saysee.encoding.reranking import check_can_rerank
    from saysee.evaluation import protocols
    from saysee.evaluation.cascade import check_has_text, evaluate_cascade

    encoder, recognizer = load_encoder(model, cascade, device, features, language)
    if cascade is None:
        _check_trained(encoder, untrained)
        if rerank:
            check_can_rerank(encoder)
        described = {"model": model} | ({"untrained": True} if encoder.warning else {})
        facts = getattr(encoder.model, "trained", None) or {}
        return encoder, partial(protocols.evaluate, encoder), described, facts if "recipe" in facts else None
    check_has_text(encoder)
    kind = "transcripts" if recognizer is None else "asr"
    about = {"cascade": {kind: cascade.recognizer, "clip": cascade.clip}}
    return encoder, partial(evaluate_cascade, encoder, recognizer=recognizer), about, None


def load_encoder(
    model: str, cascade: Cascade | None, device: str, features: Path | None, language: str | None
) -> tuple[Any, Any]:
    """The encoder of a model, or of the CLIP of a cascade, and the cascade's recognizer; None if there is none."""
    from saysee.encoding.cache import FeatureCache
    from saysee.encoding.encoder import Encoder
    from saysee.encoding.recognizer import SpeechRecognizer

    cache = None if features is None else FeatureCache(features)
    encoder = Encoder(model if cascade is None else cascade.clip, device, cache=cache)
    if cascade is None or cascade.recognizer == TRANSCRIPTS:
        return encoder, None
    return encoder, SpeechRecognizer(cascade.recognizer, language=language, device=encoder.model.device)


def _check_trained(encoder: Any, untrained: bool) -> None:
    if encoder.warning and not untrained:
        raise ConfigError(f"{encoder.warning}; train the model, or score it as it is with --untrained")


def sorted_places(places: Sequence[str]) -> tuple[list[str], list[str]]:
    """Models and manifests among the places, each in order; a pattern that no shell has expanded is what it matches.

    Raises ConfigError if a place is neither, or one kind is missing.
    """
    models, manifests = [], []
    for given in places:
        matches = [] if given.startswith(CASCADE) or Path(given).exists() else sorted(glob(given))
        for place in matches or [given]:
            if place.startswith(CASCADE) or (Path(place) / "config.json").is_file():
                models.append(place)
            elif place.lower().endswith((".parquet", ".jsonl")) or _MANIFEST.fullmatch(place):
                manifests.append(place)
            elif _HUB_NAME.fullmatch(place) and not Path(place).exists():
                models.append(place)
            else:
                known = "a folder with config.json, such as runs/first/best, OWNER/NAME on the hub, or cascade:ASR+CLIP"
                raise ConfigError(f"{place} is neither a manifest (.parquet or .jsonl) nor a model: {known}")
    for kind, found in (("MODEL", models), ("MANIFEST", manifests)):
        if not found:
            raise ConfigError(f"no {kind} among {' '.join(places)}; give MODEL [MODEL ...] MANIFEST [MANIFEST ...]")
    return models, manifests


def cascade_of(model: str) -> Cascade | None:
    """The parts of ``cascade:ASR+CLIP``; None for a SaySee model."""
    if not model.startswith(CASCADE):
        return None
    recognizer, _, clip = model.removeprefix(CASCADE).partition("+")
    if not recognizer or not clip:
        fix = "give cascade:ASR+CLIP, such as cascade:small+openai/clip-vit-base-patch32"
        raise ConfigError(f"{model} is not a cascade; {fix}")
    return Cascade(recognizer, clip)


def _path_and_split(place: str, split: str) -> tuple[str, str]:
    """Path and split of ``MANIFEST:SPLIT``, where the path may contain colons too; ``split`` for a path alone."""
    named = _MANIFEST.fullmatch(place)
    if named is None or place.lower().endswith((".parquet", ".jsonl")):
        return place, split
    return named[1], named[2]
