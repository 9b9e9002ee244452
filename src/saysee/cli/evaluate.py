"""``saysee evaluate``: score a model or a cascade on one corpus or several."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

from saysee.cli.printing import Result
from saysee.errors import ConfigError, ManifestError

CASCADE = "cascade:"
TRANSCRIPTS = "manifest"  # in place of a recognizer: the texts of the manifest


def evaluate(
    model: str,
    manifest: Sequence[str],
    *,
    split: str = "test",
    by: Sequence[str] = (),
    language: str | None = None,
    batch_size: int = 32,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> Result:
    """Score a model, or a cascade, on a split by the standard protocol.

    A cascade is a speech recognizer followed by the text encoder of a CLIP: cascade:ASR+CLIP, such as
    cascade:small+openai/clip-vit-base-patch32. ASR is a size of Whisper, a folder or hub name of a Whisper or of a CTC
    recognizer, or 'manifest' for the texts of the manifest.

    Args:
        model: folder or hub name of a SaySee model, or cascade:ASR+CLIP
        manifest: .parquet or .jsonl manifests; MANIFEST:SPLIT scores another split than --split
        split: the split to score
        by: also score each value of this column separately (repeatable; one manifest only)
        language: the spoken language, such as en, for the Whisper of a cascade
        batch_size: files encoded together
        device: device to compute on
    """
    if by and len(manifest) > 1:
        raise ConfigError("--by breaks down one corpus; give one manifest with it")
    cascade = _recognizer_and_clip(model)
    if language is not None and (cascade is None or cascade[0] == TRANSCRIPTS):
        raise ConfigError(f"--language is for the recognizer of a cascade; the model is {model}")
    from saysee.data.manifest import Manifest

    paths, splits = zip(*(_path_and_split(place, split) for place in manifest), strict=True)
    corpora = [Manifest.read(path) for path in paths]
    for path, name, corpus in zip(paths, splits, corpora, strict=True):
        try:
            corpus.select(name)  # before the long work
        except ManifestError as error:
            raise ManifestError(f"{path}: {error}") from None
    from saysee.encoding.encoder import Encoder
    from saysee.encoding.recognizer import SpeechRecognizer
    from saysee.evaluation import protocols
    from saysee.evaluation.cascade import evaluate_cascade

    if cascade is None:
        described: dict[str, Any] = {"model": model}
        score = partial(protocols.evaluate, Encoder(model, device))
    else:
        name, clip = cascade
        described = {"cascade": {"transcripts" if name == TRANSCRIPTS else "asr": name, "clip": clip}}
        encoder, recognizer = Encoder(clip, device), None
        if name != TRANSCRIPTS:
            recognizer = SpeechRecognizer(name, language=language, device=encoder.model.device)
        score = partial(evaluate_cascade, encoder, recognizer=recognizer)
    results = [
        score(corpus, split=name, by=by, batch_size=batch_size) for corpus, name in zip(corpora, splits, strict=True)
    ]
    scores = [{"manifest": path, **result.to_dict()} for path, result in zip(paths, results, strict=True)]
    if len(results) == 1:
        return Result(described | scores[0], [protocols.to_table(results[0])])
    table = protocols.to_matrix(dict(zip(protocols.corpus_names(paths, splits), results, strict=True)))
    return Result(described | {"corpora": scores}, [table])


def _recognizer_and_clip(model: str) -> tuple[str, str] | None:
    """The two parts of ``cascade:ASR+CLIP``; None for a SaySee model."""
    if not model.startswith(CASCADE):
        return None
    recognizer, _, clip = model.removeprefix(CASCADE).partition("+")
    if not recognizer or not clip:
        example = "cascade:small+openai/clip-vit-base-patch32"
        raise ConfigError(f"{model} is not a cascade; give cascade:ASR+CLIP, such as {example}")
    return recognizer, clip


def _path_and_split(place: str, split: str) -> tuple[str, str]:
    """Path and split of ``MANIFEST:SPLIT``, where the path may contain colons too; ``split`` for a path alone."""
    named = re.fullmatch(r"(.+\.(?:parquet|jsonl)):(.+)", place, re.IGNORECASE)
    if named is None or place.lower().endswith((".parquet", ".jsonl")):
        return place, split
    return named[1], named[2]
