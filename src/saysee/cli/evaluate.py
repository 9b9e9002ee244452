"""``saysee evaluate``: a model or a cascade, on one corpus or several."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from saysee.cli.printing import Result
from saysee.errors import ConfigError, ManifestError
from saysee.hardware import torch_device

if TYPE_CHECKING:
    pass

CASCADE = "cascade:"
EXAMPLE = "cascade:openai/whisper-small+openai/clip-vit-base-patch32"
TRANSCRIPTS = "manifest"
"""In place of a recognizer: the manifest's own texts."""


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
    cascade:openai/whisper-small+openai/clip-vit-base-patch32. ASR is a Whisper or a CTC recognizer, or 'manifest' for
    the texts of the manifest.

    Args:
        model: folder or hub name of a SaySee model, or cascade:ASR+CLIP
        manifest: .parquet or .jsonl manifests; MANIFEST:SPLIT scores another split than --split
        split: the split to score
        by: also score each value of this column separately (repeatable; one manifest only)
        language: the spoken language, such as en, for the Whisper of a cascade
        batch_size: files encoded together
        device: device to compute on
    """
    from saysee.data.manifest import Manifest

    if by and len(manifest) > 1:
        raise ConfigError("--by breaks down one corpus; give one manifest with it")
    cascade = _cascade_of(model)
    if language is not None and (cascade is None or cascade[0] == TRANSCRIPTS):
        raise ConfigError(f"--language is for the recognizer of a cascade; the model is {model}")
    paths, splits = zip(*(_manifest_and_split(place, split) for place in manifest), strict=True)
    corpora = [Manifest.read(path) for path in paths]
    for path, name, corpus in zip(paths, splits, corpora, strict=True):
        try:
            corpus.select(name)  # before the long work
        except ManifestError as error:
            raise ManifestError(f"{path}: {error}") from None
    from saysee.evaluation.protocols import corpus_names, to_matrix, to_table

    described, score = (
        _load_model(model, torch_device(device))
        if cascade is None
        else _load_cascade(*cascade, language, torch_device(device))
    )
    results = [
        score(corpus, split=name, by=by, batch_size=batch_size) for corpus, name in zip(corpora, splits, strict=True)
    ]
    scores = [{"manifest": path, **result.to_dict()} for path, result in zip(paths, results, strict=True)]
    if len(results) == 1:
        return Result(described | scores[0], [to_table(results[0])])
    table = to_matrix(dict(zip(corpus_names(paths, splits), results, strict=True)))
    return Result(described | {"corpora": scores}, [table])


def _manifest_and_split(place: str, split: str) -> tuple[str, str]:
    """A manifest's path, and the split after its suffix and a colon; without one, ``split``.

    A path may contain colons: only one after .parquet or .jsonl separates, and a word that ends in such a suffix is a
    path as it is.
    """
    named = re.fullmatch(r"(.+\.(?:parquet|jsonl)):(.+)", place, re.IGNORECASE)
    if named is None or place.lower().endswith((".parquet", ".jsonl")):
        return place, split
    return named[1], named[2]


def _cascade_of(model: str) -> tuple[str, str] | None:
    """Recognizer and CLIP of ``cascade:ASR+CLIP``; None for a SaySee model."""
    if not model.startswith(CASCADE):
        return None
    recognizer, _, clip = model.removeprefix(CASCADE).partition("+")
    if not recognizer or not clip:
        raise ConfigError(f"{model} is no cascade; give cascade:ASR+CLIP, such as {EXAMPLE}")
    return recognizer, clip


def _load_model(model: str, device: str) -> tuple[dict[str, Any], Callable[..., Any]]:
    """How the result describes the model, and what scores a manifest with it."""
    from saysee.encoding.encoder import Encoder
    from saysee.evaluation.protocols import evaluate

    return {"model": model}, partial(evaluate, Encoder(model, device))


def _load_cascade(
    recognizer: str, clip: str, language: str | None, device: str
) -> tuple[dict[str, Any], Callable[..., Any]]:
    """The same of a cascade."""
    from saysee.encoding.encoder import Encoder
    from saysee.encoding.recognizer import SpeechRecognizer
    from saysee.evaluation.cascade import evaluate_cascade

    encoder = Encoder(clip, device)
    if recognizer == TRANSCRIPTS:
        return {"cascade": {"transcripts": recognizer, "clip": clip}}, partial(
            evaluate_cascade, encoder, recognizer=None
        )
    asr = SpeechRecognizer(recognizer, language=language, device=device)
    return {"cascade": {"asr": recognizer, "clip": clip}}, partial(evaluate_cascade, encoder, recognizer=asr)
