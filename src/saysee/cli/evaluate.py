"""``saysee evaluate``: a model, or a cascade, on a split of one corpus or more."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from saysee.cli.parsing import verb
from saysee.cli.printing import EXIT_DONE, print_rich
from saysee.errors import ConfigError, ManifestError
from saysee.hardware import torch_device

if TYPE_CHECKING:
    from saysee.data.manifest import Manifest


def add_verbs(verbs: Any) -> None:
    """Adds ``evaluate``."""
    score = verb(
        verbs,
        "evaluate",
        _evaluate,
        "score a model, or a cascade, on a split by the field's protocol",
        collects="places",
    )
    score.usage = (
        "saysee evaluate [options] MODEL MANIFEST[:SPLIT] ...\n"
        "       saysee evaluate [options] --cascade --asr MODEL --clip MODEL MANIFEST[:SPLIT] ..."
    )
    score.add_argument(
        "places",
        nargs="+",
        metavar="MODEL MANIFEST ...",
        help="folder or hub name of a SaySee model, but for a cascade; .parquet or .jsonl manifests, a row each, maybe "
        "with a split as MANIFEST:SPLIT",
    )
    score.add_argument(
        "--cascade", action="store_true", help="score a speech recogniser followed by CLIP's text encoder"
    )
    score.add_argument(
        "--asr", metavar="MODEL", help="of a cascade: folder or hub name of a Whisper or a CTC recogniser"
    )
    score.add_argument("--clip", metavar="MODEL", help="of a cascade: folder or hub name of a CLIP")
    score.add_argument(
        "--transcripts", choices=("manifest",), help="of a cascade: the manifest's own texts in place of a recogniser"
    )
    score.add_argument("--language", metavar="TAG", help="of a cascade: what is spoken, such as en, for a Whisper")
    score.add_argument(
        "--split", default="test", help="which split (%(default)s); MANIFEST:SPLIT chooses for one manifest"
    )
    score.add_argument("--by", action="append", default=[], metavar="COLUMN", help="break down by a column; repeatable")
    score.add_argument("--batch-size", type=int, default=32, metavar="N", help="files encoded together (%(default)s)")
    score.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"), help="where (%(default)s)")


def _evaluate(options: argparse.Namespace) -> int:
    from saysee.data.manifest import Manifest

    _check_evaluate(options)
    places = options.places if options.cascade else options.places[1:]
    paths, splits = zip(*(_manifest_and_split(place, options.split) for place in places), strict=True)
    manifests = [Manifest.read(path) for path in paths]
    for path, split, manifest in zip(paths, splits, manifests, strict=True):
        try:
            manifest.select(split)  # before the long work
        except ManifestError as error:
            raise ManifestError(f"{path}: {error}") from None
    from saysee.evaluation.protocols import corpus_names, to_matrix, to_table

    system, score = _cascade(options, manifests) if options.cascade else _model(options)
    results = [
        score(manifest, split=split, by=options.by, batch_size=options.batch_size)
        for manifest, split in zip(manifests, splits, strict=True)
    ]
    corpora = [{"manifest": path, **result.to_dict()} for path, result in zip(paths, results, strict=True)]
    if options.json:
        print(json.dumps({**system, **corpora[0]} if len(corpora) == 1 else {**system, "corpora": corpora}))
    elif len(results) == 1:
        print_rich(to_table(results[0]))
    else:
        print_rich(to_matrix(dict(zip(corpus_names(paths, splits), results, strict=True))))
    return EXIT_DONE


def _manifest_and_split(place: str, split: str) -> tuple[str, str]:
    """A manifest's path, and the split behind its suffix and a colon; without one, ``split``.

    A path may hold colons itself: only one behind .parquet or .jsonl divides, and a word that ends in such a suffix is
    a path as it is.
    """
    named = re.fullmatch(r"(.+\.(?:parquet|jsonl)):(.+)", place, re.IGNORECASE)
    if named is None or place.lower().endswith((".parquet", ".jsonl")):
        return place, split
    return named[1], named[2]


def _check_evaluate(options: argparse.Namespace) -> None:
    needed = 1 if options.cascade else 2
    if len(options.places) < needed:
        raise ConfigError("which manifest? 'saysee evaluate MODEL MANIFEST'; a cascade takes no MODEL, but a manifest")
    if options.by and len(options.places) > needed:
        raise ConfigError("--by breaks one corpus down; give one manifest with it")
    for flag in ("asr", "clip", "transcripts", "language"):
        if not options.cascade and getattr(options, flag) is not None:
            raise ConfigError(f"--{flag} is for a cascade of recogniser and CLIP; give --cascade with it, and no MODEL")
    if options.cascade and options.clip is None:
        raise ConfigError("--cascade needs --clip: folder or hub name of a CLIP, such as openai/clip-vit-base-patch32")
    if options.cascade and (options.asr is None) == (options.transcripts is None):
        raise ConfigError(
            "--cascade needs either --asr, such as openai/whisper-small, or --transcripts manifest, not both"
        )
    if options.language is not None and options.asr is None:
        raise ConfigError("--language tells a recogniser what is spoken; give --asr with it")


def _model(options: argparse.Namespace) -> tuple[dict[str, Any], Any]:
    """How the result names the model, and what scores a manifest with it."""
    from functools import partial

    from saysee.evaluation.protocols import evaluate
    from saysee.model.retriever import SpeechImageModel

    model = SpeechImageModel.from_pretrained(options.places[0]).to(torch_device(options.device))
    return {"model": options.places[0]}, partial(evaluate, model)


def _cascade(options: argparse.Namespace, manifests: Sequence[Manifest]) -> tuple[dict[str, Any], Any]:
    """The same of a cascade."""
    from functools import partial

    from saysee.evaluation.cascade import Cascade, ManifestTexts, SpeechRecognizer, evaluate_cascade

    place = torch_device(options.device)
    transcriber = (
        ManifestTexts(manifests)
        if options.asr is None
        else SpeechRecognizer(options.asr, language=options.language, device=place)
    )
    cascade = Cascade(options.clip, transcriber, device=place)
    heard_by = {"transcripts": options.transcripts} if options.asr is None else {"asr": options.asr}
    return {"cascade": {**heard_by, "clip": options.clip}}, partial(evaluate_cascade, cascade)
