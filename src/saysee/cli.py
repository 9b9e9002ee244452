"""The command line: parse, call, print.

Every verb shows its progress on stderr and one result on stdout (``--json`` for machines). Exit codes: 0 done, 2 a
mistake of the user's, told in one line, 130 interrupted. A verb imports what it needs when it is called, so that
``saysee --help`` answers at once.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from saysee.errors import ConfigError, ManifestError, SaySeeError
from saysee.version import __version__

if TYPE_CHECKING:
    from saysee.data.corpora.preparing import Prepared
    from saysee.data.manifest import Manifest

EXIT_DONE, EXIT_MISTAKE, EXIT_INTERRUPTED = 0, 2, 130

_REASONS = 20
"""Files that cannot be used are told one by one up to here."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: the words after ``saysee``; None takes the process's own.

    Returns:
        The exit code.
    """
    # OpenMP's threads spin while they wait by default. With a loader's process beside them on few cores that made a
    # training step two to ten times slower; sleeping threads cost nothing measurable. Read when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # oneDNN keeps what it compiled for the last 1,024 shapes. Batches of speech hardly ever have the same one twice, so
    # that only filled memory: half a gigabyte in sixteen steps of a small HuBERT.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "32")
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    parser = _build_parser()
    try:
        options, rest = parser.parse_known_args([word for word in words if word != "--debug"])
        if options.verb is _evaluate:  # of MODEL MANIFEST …, argparse leaves over those that stand behind a flag
            options.places += [word for word in rest if not word.startswith("-")]
            rest = [word for word in rest if word.startswith("-")]
        if rest and options.verb not in (_train, _ablate, _pretrain):
            raise ConfigError(f"unknown argument {rest[0]!r}; see 'saysee {options.name} --help'")
        options.rest, options.words = rest, words
        code: int = options.verb(options)
        return code
    except SaySeeError as error:
        if debug:
            raise
        return _refuse(error)
    except OSError as error:
        if debug:
            raise
        where = f"{error.filename}: " if error.filename else ""
        return _refuse(f"{where}{error.strerror or error}")
    except KeyboardInterrupt:
        print("saysee: interrupted; what is finished is kept", file=sys.stderr)
        return EXIT_INTERRUPTED


# ---------------------------------------------------------------------- the verbs


def _data_scenes(options: argparse.Namespace) -> int:
    from saysee.data.scenes.corpus import build_scenes

    manifest = build_scenes(
        options.to,
        images=options.images,
        seed=options.seed,
        val_images=options.val_images,
        test_images=options.test_images,
        workers=options.workers,
    )
    _print_result(options, {"manifest": str(manifest)}, str(manifest))
    return EXIT_DONE


def _data_flickr8k(options: argparse.Namespace) -> int:
    from saysee.data.corpora.flickr8k import prepare_flickr8k

    prepared = prepare_flickr8k(
        options.audio, options.images, options.to, text=options.text, allow_missing=options.allow_missing
    )
    return _print_prepared(options, prepared)


def _data_spokencoco(options: argparse.Namespace) -> int:
    from saysee.data.corpora.spokencoco import prepare_spokencoco

    prepared = prepare_spokencoco(
        options.audio, options.images, options.to, karpathy=options.karpathy, allow_missing=options.allow_missing
    )
    return _print_prepared(options, prepared)


def _data_places(options: argparse.Namespace) -> int:
    from saysee.data.corpora.places import prepare_places

    prepared = prepare_places(
        options.metadata, options.audio, options.images, options.to, allow_missing=options.allow_missing
    )
    return _print_prepared(options, prepared)


def _data_folder(options: argparse.Namespace) -> int:
    from saysee.data.corpora.folder import FolderSettings, prepare_folder

    settings = FolderSettings(
        pair_by=options.pair_by,
        table=options.csv,
        val_share=options.val_share,
        test_share=options.test_share,
        seed=options.seed,
        language=options.language,
    )
    prepared = prepare_folder(options.folder, options.to, settings, allow_missing=options.allow_missing)
    return _print_prepared(options, prepared)


def _data_verify(options: argparse.Namespace) -> int:
    from saysee.data.manifest import Manifest
    from saysee.data.verify import problems_table, problems_to_dict, verify

    manifest = Manifest.read(options.manifest)
    problems = verify(manifest, max_seconds=options.max_seconds, workers=options.workers)
    if options.json:
        print(json.dumps(problems_to_dict(manifest, problems)))
    elif problems:
        _print_rich(problems_table(problems))
    if problems:
        noun = "file" if len(problems) == 1 else "files"
        return _refuse(f"{options.manifest}: {len(problems)} {noun} cannot be used; mend them or take out their rows")
    if not options.json:
        pictures = len(manifest.images())
        print(f"{options.manifest}: all of {len(manifest)} clips and {pictures} pictures can be used")
    return EXIT_DONE


def _train(options: argparse.Namespace) -> int:
    if options.settings:
        from saysee.config import recipe_help

        print(recipe_help())
        return EXIT_DONE
    if options.recipe is None:
        raise ConfigError("which recipe? 'saysee train RECIPE.yaml'; 'saysee train --settings' lists every setting")
    from saysee.config import load_recipe

    recipe = load_recipe(options.recipe, options.rest)
    _quiet_libraries()
    from saysee.training.trainer import Trainer

    result = Trainer(recipe).fit(resume=options.resume)
    text = (
        f"{recipe.output}/best: mean R@1 {result['best_val_mean_R@1']:.1f} % on {recipe.data.val_split} at step "
        f"{result['best_step']} of {result['steps']}, {result['training_seconds']:.0f} s"
    )
    _print_result(options, {"model": f"{recipe.output}/best", **result}, text)
    return EXIT_DONE


def _ablate(options: argparse.Namespace) -> int:
    import shlex
    from pathlib import Path

    from saysee.studies.ablation import AblationSettings, run_ablation

    result = run_ablation(
        options.recipe,
        options.to,
        AblationSettings(
            overrides=tuple(options.rest),
            seeds=options.seeds,
            rows=None if options.rows is None else tuple(name.strip() for name in options.rows.split(",")),
            grid=None if options.grid is None else Path(options.grid),
            sizes=tuple(_numbers("--sizes", options.sizes)),
            split=options.split,
            command=shlex.join(["saysee", *options.words]),
        ),
    )
    if options.json:
        print(json.dumps(result.to_dict()))
    else:
        for table in result.to_tables():
            _print_rich(table)
        print(f"table: {result.folder / 'table.md'}")
    return EXIT_DONE


def _pretrain(options: argparse.Namespace) -> int:
    from pathlib import Path

    _quiet_libraries()
    from saysee.pretraining.recipes import ENCODERS, load_settings

    settings = load_settings(options.encoder, options.recipe, options.rest)
    figures = ENCODERS[options.encoder].pretrain(Path(options.to), settings)
    model = Path(options.to) / "model"
    shown = {name: round(value, 2) if isinstance(value, float) else value for name, value in figures.items()}
    told = ", ".join(f"{name} {value}" for name, value in shown.items())
    _print_result(options, {"model": str(model), **figures}, f"{model}: {told}")
    return EXIT_DONE


def _evaluate(options: argparse.Namespace) -> int:
    from saysee.data.manifest import Manifest

    _check_evaluate(options)
    paths = options.places if options.cascade else options.places[1:]
    manifests = [Manifest.read(path) for path in paths]
    for path, manifest in zip(paths, manifests, strict=True):
        try:
            manifest.select(options.split)  # before the long work
        except ManifestError as error:
            raise ManifestError(f"{path}: {error}") from None
    _quiet_libraries()
    from saysee.evaluation.protocols import corpus_names, to_matrix, to_table

    system, score = _cascade(options, manifests) if options.cascade else _model(options)
    results = [
        score(manifest, split=options.split, by=options.by, batch_size=options.batch_size) for manifest in manifests
    ]
    corpora = [{"manifest": path, **result.to_dict()} for path, result in zip(paths, results, strict=True)]
    if options.json:
        print(json.dumps({**system, **corpora[0]} if len(corpora) == 1 else {**system, "corpora": corpora}))
    elif len(results) == 1:
        _print_rich(to_table(results[0]))
    else:
        _print_rich(to_matrix(dict(zip(corpus_names(paths), results, strict=True))))
    return EXIT_DONE


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

    model = SpeechImageModel.from_pretrained(options.places[0]).to(_device(options.device))
    return {"model": options.places[0]}, partial(evaluate, model)


def _cascade(options: argparse.Namespace, manifests: Sequence[Manifest]) -> tuple[dict[str, Any], Any]:
    """The same of a cascade."""
    from functools import partial

    from saysee.evaluation.cascade import Cascade, ManifestTexts, SpeechRecognizer, evaluate_cascade

    device = _device(options.device)
    transcriber = (
        ManifestTexts(manifests)
        if options.asr is None
        else SpeechRecognizer(options.asr, language=options.language, device=device)
    )
    cascade = Cascade(options.clip, transcriber, device=device)
    heard_by = {"transcripts": options.transcripts} if options.asr is None else {"asr": options.asr}
    return {"cascade": {**heard_by, "clip": options.clip}}, partial(evaluate_cascade, cascade)


def _index(options: argparse.Namespace) -> int:
    if options.model_option is not None:
        if options.model is not None:
            raise ConfigError("the model is given twice; give it once, first or by --model")
        options.model = options.model_option
    upkeep = options.check or options.compact
    if upkeep is not None:
        _refuse_beside("--check" if options.check else "--compact", options, ("to", "model", "source", "from_vectors"))
        return _index_check(options) if options.check else _index_compact(options)
    if options.to is None:
        raise ConfigError("where to? 'saysee index MODEL FOLDER --to INDEX'")
    _quiet_libraries()
    if options.from_vectors is None:
        if options.model is None or options.source is None:
            raise ConfigError("which model and which files? 'saysee index MODEL FOLDER --to INDEX'")
        from saysee.search.encoding import Encoder
        from saysee.search.indexing import update_index
        from saysee.search.sources import find_source

        source = find_source(options.source)  # what is wrong with it is told before a model is loaded
        encoder = Encoder.load(options.model, _device(options.device))
        report = update_index(encoder, source, options.to, batch_size=options.batch_size, workers=options.workers)
    else:
        if options.ids is None or options.model is None or options.source is not None:
            raise ConfigError("--from-vectors VECTORS goes with --ids IDS.csv --model MODEL --to INDEX and no folder")
        from saysee.search.encoding import Encoder
        from saysee.search.given_vectors import index_vectors

        encoder = Encoder.load(options.model, _device(options.device))
        report = index_vectors(encoder, options.from_vectors, options.ids, options.to)
    for note in report.notes:
        print(f"saysee: {note}", file=sys.stderr)
    _print_refused([reason for _, reason in report.refused])
    _print_result(options, report.to_dict(), report.to_line())
    return EXIT_DONE


def _index_check(options: argparse.Namespace) -> int:
    from saysee.search.index import Index

    index = Index.open(options.check)
    problems, counts = index.check(), index.counts()
    if options.json:
        print(json.dumps({"index": options.check, **counts, "problems": problems}))
    if problems:
        for problem in problems[:-1]:
            _refuse(problem)
        return _refuse(problems[-1])
    if not options.json:
        print(f"{options.check}: {counts['image']:,} pictures and {counts['clip']:,} clips, all well")
    return EXIT_DONE


def _index_compact(options: argparse.Namespace) -> int:
    from saysee.search.index import Index

    before, after = Index.open(options.compact).compact()
    text = f"{options.compact}: {after / 1e6:.1f} MB, {before / 1e6:.1f} MB before"
    _print_result(options, {"index": options.compact, "bytes_before": before, "bytes": after}, text)
    return EXIT_DONE


def _search(options: argparse.Namespace) -> int:
    from saysee.search.index import Index

    if options.k < 1:
        raise ConfigError(f"-k is {options.k}; it must be at least 1")
    index = Index.open(options.index, model=options.model, device=_device(options.device))
    _quiet_libraries()
    from saysee.search.queries import answer

    kinds: dict[str | None, Any] = {"images": "image", "clips": "clip", None: None}
    answers = answer(index, options.queries, options.text, k=options.k, where=options.where, kind=kinds[options.find])
    if options.json:
        print(json.dumps({"index": options.index, **answers.to_dict()}))
    else:
        for table in answers.to_tables():
            _print_rich(table)
    _print_refused(answers.refused)
    return EXIT_DONE


def _demo(options: argparse.Namespace) -> int:
    _quiet_libraries()
    from saysee.studies.demo import DemoSettings, run_demo

    result = run_demo(options.to, DemoSettings(seed=options.seed))
    if options.json:
        print(json.dumps(result.to_dict()))
    else:
        _print_rich(result.to_table())
        print(f"report: {result.report}")
    return EXIT_DONE


# ---------------------------------------------------------------------- the parser


class _Parser(argparse.ArgumentParser):
    """Tells a mistake in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_MISTAKE, f"{self.prog}: {message}; see '{self.prog} --help'\n")


def _build_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="saysee",
        description="Say what you want to see, and find the picture; show a picture, and find the speech.",
        epilog="Every verb takes --json, for a result that machines read, and --debug, for the traceback of an error.",
    )
    parser.add_argument("--version", action="version", version=f"saysee {__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True, parser_class=_Parser)

    data = verbs.add_parser("data", help="make or check a manifest")
    sources = data.add_subparsers(title="what", metavar="WHAT", required=True, parser_class=_Parser)

    scenes = _verb(sources, "scenes", _data_scenes, "the embedded corpus: drawn scenes with synthesised speech")
    scenes.add_argument("--to", required=True, metavar="DIR", help="folder of the corpus")
    scenes.add_argument("--images", type=int, default=3000, metavar="N", help="pictures, five clips each (%(default)s)")
    scenes.add_argument("--val-images", type=int, metavar="N", help="of these, pictures to validate on (a twentieth)")
    scenes.add_argument("--test-images", type=int, metavar="N", help="of these, pictures to test on (three twentieths)")
    scenes.add_argument("--seed", type=int, default=0, metavar="S", help="same seed, same corpus (%(default)s)")
    scenes.add_argument("--workers", type=int, metavar="N", help="processes (one a core)")

    flickr8k = _corpus_verb(sources, "flickr8k", _data_flickr8k, "Flickr8k with its spoken captions", allowed=10)
    _add_media_folders(flickr8k)
    flickr8k.add_argument("--text", metavar="DIR", help="folder of the lists, if not in the others or beside them")

    coco = _corpus_verb(sources, "spokencoco", _data_spokencoco, "SpokenCOCO, in its own split or in Karpathy's")
    _add_media_folders(coco)
    coco.add_argument("--karpathy", metavar="FILE", help="split by this dataset_coco.json")

    places = _corpus_verb(sources, "places", _data_places, "the Places audio captions")
    places.add_argument(
        "--metadata", required=True, nargs="+", metavar="PATH", help="folder of train.json and val.json, or the files"
    )
    _add_media_folders(places)

    folder = _corpus_verb(sources, "folder", _data_folder, "a folder of your own sounds and pictures")
    folder.add_argument("folder", metavar="DIR", help="folder of the files")
    folder.add_argument(
        "--pair-by",
        choices=("auto", "csv", "stem", "sub-folder"),
        default="auto",
        help="auto takes a table where there is one, else what pairs more clips (%(default)s)",
    )
    folder.add_argument("--csv", metavar="FILE", help="a table with the columns clip and image")
    folder.add_argument(
        "--val-share", type=float, default=0.1, metavar="S", help="pictures to validate on (%(default)s)"
    )
    folder.add_argument("--test-share", type=float, default=0.1, metavar="S", help="pictures to test on (%(default)s)")
    folder.add_argument("--seed", type=int, default=0, metavar="S", help="another seed, other pictures (%(default)s)")
    folder.add_argument("--language", metavar="TAG", help="of the speech, such as en, where no table says it")

    check = _verb(sources, "verify", _data_verify, "open every file of a manifest and tell what cannot be used")
    check.add_argument("manifest", metavar="MANIFEST", help="a .parquet or .jsonl manifest")
    check.add_argument("--max-seconds", type=float, default=60.0, metavar="S", help="longest clip (%(default)s)")
    check.add_argument("--workers", type=int, metavar="N", help="processes (one a core)")

    train = _verb(
        verbs, "train", _train, "train what a recipe describes; --data.batch_size 64 and the like override it"
    )
    train.add_argument(
        "recipe", nargs="?", metavar="RECIPE", help="a YAML file of settings, or a recipe of the package"
    )
    train.add_argument(
        "--resume",
        choices=("auto", "never"),
        default="never",
        help="auto goes on with the run in the output folder; never refuses a folder that holds one (%(default)s)",
    )
    train.add_argument("--settings", action="store_true", help="list every setting with its default")

    ablate = _verb(
        verbs,
        "ablate",
        _ablate,
        "compare rows of settings over a recipe, seed by seed; --data.manifest and the like too",
    )
    ablate.add_argument("recipe", metavar="RECIPE", help="a YAML file of settings, or a recipe of the package")
    ablate.add_argument("--to", required=True, metavar="DIR", help="folder of runs and tables; what is done is kept")
    ablate.add_argument("--seeds", type=int, default=5, metavar="N", help="runs of each row (%(default)s)")
    ablate.add_argument("--rows", metavar="NAME,NAME", help="run these rows only, and the baseline")
    ablate.add_argument("--grid", metavar="FILE", help="a YAML file of rows; left out, the package's own")
    ablate.add_argument(
        "--sizes", default="", metavar="SHARE,SHARE", help="train on shares of the pictures too, such as 0.25,0.5,1"
    )
    ablate.add_argument("--split", default="test", help="which split scores them: val to choose (%(default)s)")

    pretrain = _verb(
        verbs, "pretrain", _pretrain, "make an encoder like the package's own; --loop.steps 100 and the like override"
    )
    pretrain.add_argument("encoder", choices=("hubert", "clip"), help="which: hubert-nano or clip-nano")
    pretrain.add_argument("--to", required=True, metavar="DIR", help="folder of data, log, checkpoints and model")
    pretrain.add_argument("--recipe", metavar="FILE", help="a YAML file of settings; left out, the package's own")

    score = _verb(verbs, "evaluate", _evaluate, "score a model, or a cascade, on a split by the field's protocol")
    score.usage = (
        "saysee evaluate [options] MODEL MANIFEST [MANIFEST ...]\n"
        "       saysee evaluate [options] --cascade --asr MODEL --clip MODEL MANIFEST [MANIFEST ...]"
    )
    score.add_argument(
        "places",
        nargs="+",
        metavar="MODEL MANIFEST ...",
        help="folder or hub name of a SaySee model, but for a cascade; .parquet or .jsonl manifests, a row each",
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
    score.add_argument("--split", default="test", help="which split (%(default)s)")
    score.add_argument("--by", action="append", default=[], metavar="COLUMN", help="break down by a column; repeatable")
    score.add_argument("--batch-size", type=int, default=32, metavar="N", help="files encoded together (%(default)s)")
    score.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"), help="where (%(default)s)")

    index = _verb(verbs, "index", _index, "make a search index of pictures and clips, or bring one up to date")
    index.add_argument("model", nargs="?", metavar="MODEL", help="folder or hub name of a SaySee model")
    index.add_argument("source", nargs="?", metavar="FOLDER|MANIFEST", help="what to index, with all sub-folders")
    index.add_argument("--to", metavar="INDEX", help="folder of the index")
    index.add_argument("--batch-size", type=int, default=32, metavar="N", help="files encoded together (%(default)s)")
    index.add_argument("--workers", type=int, metavar="N", help="threads that decode (one a core)")
    index.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"), help="where (%(default)s)")
    index.add_argument("--from-vectors", metavar="FILE", help="CLIP vectors that you have, .npy or .parquet")
    index.add_argument("--ids", metavar="CSV", help="a line for each of these vectors, with the column path")
    index.add_argument("--model", dest="model_option", metavar="MODEL", help="the model, with --from-vectors")
    upkeep = index.add_mutually_exclusive_group()
    upkeep.add_argument("--check", metavar="INDEX", help="read a whole index and tell what is wrong with it")
    upkeep.add_argument("--compact", metavar="INDEX", help="give back the room of what was removed")

    search = _verb(verbs, "search", _search, "find pictures by speech or text, and clips or pictures by a picture")
    search.add_argument("index", metavar="INDEX", help="folder of the index")
    search.add_argument("queries", nargs="*", metavar="QUERY", help="a sound, a picture, or a folder of them")
    search.add_argument("--text", action="append", default=[], metavar="TEXT", help="in writing; repeatable")
    search.add_argument("-k", type=int, default=10, metavar="N", help="most hits for each query (%(default)s)")
    search.add_argument("--where", metavar="CONDITION", help="an SQL expression, such as \"folder LIKE 'holiday%%'\"")
    search.add_argument(
        "--for",
        dest="find",
        choices=("images", "clips"),
        help="what to find; left out: for pictures clips where the index has any, else pictures",
    )
    search.add_argument("--model", metavar="MODEL", help="where the index's model lies now")
    search.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"), help="where (%(default)s)")

    demo = _verb(verbs, "demo", _demo, "the whole way: make scenes, train baseline and CMD, score both, write a report")
    demo.add_argument("--to", default="demo", metavar="DIR", help="folder of all it makes (%(default)s)")
    demo.add_argument("--seed", type=int, default=0, metavar="S", help="of the corpus and the training (%(default)s)")
    return parser


def _verb(parsers: Any, name: str, verb: Any, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = parsers.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.set_defaults(verb=verb, name=parser.prog.removeprefix("saysee "))
    return parser


def _corpus_verb(parsers: Any, name: str, verb: Any, text: str, allowed: int = 0) -> argparse.ArgumentParser:
    parser = _verb(parsers, name, verb, text)
    parser.add_argument("--to", required=True, metavar="MANIFEST", help="the .parquet or .jsonl to write")
    parser.add_argument(
        "--allow-missing",
        type=int,
        default=allowed,
        metavar="N",
        help="files that may be missing or empty (%(default)s)",
    )
    return parser


def _add_media_folders(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--audio", required=True, metavar="DIR", help="folder of the clips, in whatever layout")
    parser.add_argument("--images", required=True, metavar="DIR", help="folder of the pictures, likewise")


# ---------------------------------------------------------------------- printing


def _print_prepared(options: argparse.Namespace, prepared: Prepared) -> int:
    for note in prepared.notes:
        print(f"saysee: {note}", file=sys.stderr)
    _print_result(options, prepared.to_dict(), prepared.to_line())
    return EXIT_DONE


def _print_result(options: argparse.Namespace, result: dict[str, Any], text: str) -> None:
    print(json.dumps(result) if options.json else text)


def _print_refused(reasons: Sequence[str]) -> None:
    for reason in reasons[:_REASONS]:
        print(f"saysee: {' '.join(reason.split())}", file=sys.stderr)
    if len(reasons) > _REASONS:
        print(f"saysee: {len(reasons) - _REASONS:,} more files cannot be used; --json lists all", file=sys.stderr)


def _refuse_beside(flag: str, options: argparse.Namespace, others: Sequence[str]) -> None:
    for name in others:
        if getattr(options, name) is not None:
            raise ConfigError(f"{flag} INDEX stands alone; leave out {name.replace('_', '-')}")


def _print_rich(content: Any) -> None:
    from rich.console import Console

    # A pipe has no width of its own; tables must not be folded there.
    Console(width=None if sys.stdout.isatty() else 160).print(content)


def _refuse(message: object) -> int:
    print(f"saysee: {' '.join(str(message).split())}", file=sys.stderr)
    return EXIT_MISTAKE


def _numbers(flag: str, text: str) -> list[float]:
    try:
        return [float(word) for word in text.split(",")] if text else []
    except ValueError as error:
        raise ConfigError(f"{flag} is {text!r}; give numbers with commas between, such as 0.25,0.5,1") from error


def _quiet_libraries() -> None:
    """Silences what libraries print beside our own progress."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)


def _device(name: str) -> str:
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch sees no CUDA device here; use --device cpu")
    return name


if __name__ == "__main__":
    sys.exit(main())
