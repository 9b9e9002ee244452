"""``saysee data``: make or check a manifest."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from saysee.cli.parsing import Parser, verb
from saysee.cli.printing import EXIT_DONE, print_result, print_rich, refuse
from saysee.errors import ConfigError

if TYPE_CHECKING:
    from saysee.data.corpora.preparing import Prepared


def add_verbs(verbs: Any) -> None:
    """Adds ``data`` with what stands below it."""
    data = verbs.add_parser("data", help="make or check a manifest")
    sources = data.add_subparsers(title="what", metavar="WHAT", required=True, parser_class=Parser)

    scenes = verb(sources, "scenes", _data_scenes, "the embedded corpus: drawn scenes with synthesised speech")
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

    _add_hf(_corpus_verb(sources, "hf", _data_hf, "a data set of the Hugging Face hub, or WebDataset tars"))

    check = verb(sources, "verify", _data_verify, "open every file of a manifest and tell what cannot be used")
    check.add_argument("manifest", metavar="MANIFEST", help="a .parquet or .jsonl manifest")
    check.add_argument("--max-seconds", type=float, default=60.0, metavar="S", help="longest clip (%(default)s)")
    check.add_argument("--workers", type=int, metavar="N", help="processes (one a core)")


def _corpus_verb(parsers: Any, name: str, run: Any, text: str, allowed: int = 0) -> argparse.ArgumentParser:
    parser = verb(parsers, name, run, text)
    parser.add_argument("--to", required=True, metavar="MANIFEST", help="the .parquet or .jsonl to write")
    parser.add_argument(
        "--allow-missing",
        type=int,
        default=allowed,
        metavar="N",
        help="files that may be missing or empty (%(default)s)",
    )
    return parser


def _add_hf(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="folder of save_to_disk or of Parquet; .parquet, .arrow or .tar files; {000..010} stands for numbers",
    )
    for flag, what in (
        ("audio", "the clips"),
        ("image", "the pictures"),
        ("text", "what is spoken ('' for none)"),
        ("speaker", "who speaks"),
        ("language", "the language"),
        ("id", "what the captions of one picture share; left out, equal pictures are one"),
        ("split", "the split"),
    ):
        parser.add_argument(f"--{flag}-column", metavar="NAME", help=f"column, member or JSON key of {what}")
    parser.add_argument(
        "--split",
        action="append",
        default=[],
        metavar="NAME=SPLIT",
        help="call a split of the data set so; repeatable (validation is val)",
    )
    parser.add_argument(
        "--val-share", type=float, default=0.0, metavar="S", help="of one split, pictures to validate on"
    )
    parser.add_argument("--test-share", type=float, default=0.0, metavar="S", help="of one split, pictures to test on")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="another seed, other pictures (%(default)s)")
    parser.add_argument("--language", metavar="TAG", help="of the speech, such as en, where no column says it")


def _add_media_folders(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--audio", required=True, metavar="DIR", help="folder of the clips, in whatever layout")
    parser.add_argument("--images", required=True, metavar="DIR", help="folder of the pictures, likewise")


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
    print_result(options, {"manifest": str(manifest)}, str(manifest))
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


def _data_hf(options: argparse.Namespace) -> int:
    from saysee.data.corpora.hf import HfSettings, prepare_hf
    from saysee.data.corpora.records import FLAGS

    named = {role: getattr(options, flag[2:].replace("-", "_")) for role, flag in FLAGS.items()}
    splits = dict(word.partition("=")[::2] for word in options.split)
    if not all(splits.values()) or "" in splits:
        raise ConfigError("--split takes NAME=SPLIT, such as validation=val")
    settings = HfSettings(
        columns={role: name for role, name in named.items() if name is not None},
        splits=splits,
        val_share=options.val_share,
        test_share=options.test_share,
        seed=options.seed,
        language=options.language,
    )
    prepared = prepare_hf(options.sources, options.to, settings, allow_missing=options.allow_missing)
    return _print_prepared(options, prepared)


def _data_verify(options: argparse.Namespace) -> int:
    from saysee.data.manifest import Manifest
    from saysee.data.verify import problems_table, problems_to_dict, verify

    manifest = Manifest.read(options.manifest)
    problems = verify(manifest, max_seconds=options.max_seconds, workers=options.workers)
    if options.json:
        print(json.dumps(problems_to_dict(manifest, problems)))
    elif problems:
        print_rich(problems_table(problems))
    if problems:
        noun = "file" if len(problems) == 1 else "files"
        return refuse(f"{options.manifest}: {len(problems)} {noun} cannot be used; mend them or take out their rows")
    if not options.json:
        pictures = len(manifest.images())
        print(f"{options.manifest}: all of {len(manifest)} clips and {pictures} pictures can be used")
    return EXIT_DONE


def _print_prepared(options: argparse.Namespace, prepared: Prepared) -> int:
    for note in prepared.notes:
        print(f"saysee: {note}", file=sys.stderr)
    print_result(options, prepared.to_dict(), prepared.to_line())
    return EXIT_DONE
