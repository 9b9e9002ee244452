"""``saysee index`` and ``search``."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from saysee.cli.parsing import device, refuse_beside, verb
from saysee.cli.printing import EXIT_DONE, print_refused, print_result, print_rich, quiet_libraries, refuse
from saysee.errors import ConfigError


def add_verbs(verbs: Any) -> None:
    """Adds the verbs of an index."""
    index = verb(verbs, "index", _index, "make a search index of pictures and clips, or bring one up to date")
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

    search = verb(verbs, "search", _search, "find pictures by speech or text, and clips or pictures by a picture")
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


def _index(options: argparse.Namespace) -> int:
    if options.model_option is not None:
        if options.model is not None:
            raise ConfigError("the model is given twice; give it once, first or by --model")
        options.model = options.model_option
    upkeep = options.check or options.compact
    if upkeep is not None:
        refuse_beside("--check" if options.check else "--compact", options, ("to", "model", "source", "from_vectors"))
        return _index_check(options) if options.check else _index_compact(options)
    if options.to is None:
        raise ConfigError("where to? 'saysee index MODEL FOLDER --to INDEX'")
    quiet_libraries()
    if options.from_vectors is None:
        if options.model is None or options.source is None:
            raise ConfigError("which model and which files? 'saysee index MODEL FOLDER --to INDEX'")
        from saysee.search.encoding import Encoder
        from saysee.search.indexing import update_index
        from saysee.search.sources import find_source

        source = find_source(options.source)  # what is wrong with it is told before a model is loaded
        encoder = Encoder.load(options.model, device(options.device))
        report = update_index(encoder, source, options.to, batch_size=options.batch_size, workers=options.workers)
    else:
        if options.ids is None or options.model is None or options.source is not None:
            raise ConfigError("--from-vectors VECTORS goes with --ids IDS.csv --model MODEL --to INDEX and no folder")
        from saysee.search.encoding import Encoder
        from saysee.search.given_vectors import index_vectors

        encoder = Encoder.load(options.model, device(options.device))
        report = index_vectors(encoder, options.from_vectors, options.ids, options.to)
    for note in report.notes:
        print(f"saysee: {note}", file=sys.stderr)
    print_refused([reason for _, reason in report.refused])
    print_result(options, report.to_dict(), report.to_line())
    return EXIT_DONE


def _index_check(options: argparse.Namespace) -> int:
    from saysee.search.index import Index

    index = Index.open(options.check)
    problems, counts = index.check(), index.counts()
    if options.json:
        print(json.dumps({"index": options.check, **counts, "problems": problems}))
    if problems:
        for problem in problems[:-1]:
            refuse(problem)
        return refuse(problems[-1])
    if not options.json:
        print(f"{options.check}: {counts['image']:,} pictures and {counts['clip']:,} clips, all well")
    return EXIT_DONE


def _index_compact(options: argparse.Namespace) -> int:
    from saysee.search.index import Index

    before, after = Index.open(options.compact).compact()
    text = f"{options.compact}: {after / 1e6:.1f} MB, {before / 1e6:.1f} MB before"
    print_result(options, {"index": options.compact, "bytes_before": before, "bytes": after}, text)
    return EXIT_DONE


def _search(options: argparse.Namespace) -> int:
    from saysee.search.index import Index

    if options.k < 1:
        raise ConfigError(f"-k is {options.k}; it must be at least 1")
    index = Index.open(options.index, model=options.model, device=device(options.device))
    quiet_libraries()
    from saysee.search.queries import answer

    kinds: dict[str | None, Any] = {"images": "image", "clips": "clip", None: None}
    answers = answer(index, options.queries, options.text, k=options.k, where=options.where, kind=kinds[options.find])
    if options.json:
        print(json.dumps({"index": options.index, **answers.to_dict()}))
    else:
        for table in answers.to_tables():
            print_rich(table)
    print_refused(answers.refused)
    return EXIT_DONE
