"""``saysee index`` and ``search``."""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saysee.cli.parsing import refuse_beside, verb
from saysee.cli.printing import EXIT_DONE, print_refused, print_result, print_rich, refuse
from saysee.errors import ConfigError
from saysee.hardware import torch_device

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from saysee.search.index.index import Index
    from saysee.search.terminal.queries import SearchResults


def add_verbs(verbs: Any) -> None:
    """Adds the verbs of an index."""
    index = verb(verbs, "index", _index, "make a search index of pictures and clips, or bring one up to date")
    index.add_argument("model", nargs="?", metavar="MODEL", help="folder or hub name of a SaySee model")
    index.add_argument("source", nargs="?", metavar="FOLDER|MANIFEST", help="what to index, with all sub-folders")
    index.add_argument("--to", metavar="INDEX", help="folder of the index, or postgresql://user@host/database")
    index.add_argument("--batch-size", type=int, default=64, metavar="N", help="files encoded together (%(default)s)")
    index.add_argument("--workers", type=int, metavar="N", help="threads that decode (one a core)")
    index.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"), help="where (%(default)s)")
    index.add_argument("--from-vectors", metavar="FILE", help="CLIP vectors that you have, .npy or .parquet")
    index.add_argument("--ids", metavar="CSV", help="a line for each of these vectors, with the column path")
    index.add_argument("--model", dest="model_option", metavar="MODEL", help="the model, with --from-vectors")
    upkeep = index.add_mutually_exclusive_group()
    upkeep.add_argument("--check", metavar="INDEX", help="read a whole index and tell what is wrong with it")
    upkeep.add_argument("--compact", metavar="INDEX", help="give back the room of what was removed")

    search = verb(verbs, "search", _search, "find pictures by speech or text, and clips or pictures by a picture")
    search.add_argument("index", metavar="INDEX", help="folder of the index, or its postgresql:// address")
    search.add_argument("queries", nargs="*", metavar="QUERY", help="a sound, a picture, or a folder of them")
    search.add_argument("--text", action="append", default=[], metavar="TEXT", help="in writing; repeatable")
    search.add_argument(
        "--record",
        nargs="?",
        type=float,
        const=0.0,
        metavar="SECONDS",
        help="by the microphone, until Enter or silence, or for so many seconds",
    )
    search.add_argument("-k", type=int, default=10, metavar="N", help="most hits for each query (%(default)s)")
    search.add_argument("--where", metavar="CONDITION", help="an SQL expression, such as \"folder LIKE 'holiday%%'\"")
    search.add_argument(
        "--filter",
        action="append",
        default=[],
        metavar="NAME:VALUE",
        help="only matching rows: folder:holiday*, speaker:s1, taken:2024-06..2024-08, size:1000..; repeatable",
    )
    search.add_argument(
        "--for",
        dest="find",
        choices=("images", "clips"),
        help="what to find; left out: for pictures clips where the index has any, else pictures",
    )
    search.add_argument("--sheet", metavar="FILE", help="write the results as an HTML sheet too")
    search.add_argument(
        "--open", action="store_true", help="show the sheet in the browser; without --sheet a temporary one"
    )
    search.add_argument("--no-thumbnails", action="store_true", help="no pictures in a terminal that can show them")
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
    if options.from_vectors is None:
        if options.model is None or options.source is None:
            raise ConfigError("which model and which files? 'saysee index MODEL FOLDER --to INDEX'")
        from saysee.encoding.encoder import Encoder
        from saysee.search.index.sources import find_source
        from saysee.search.index.updating import update_index

        source = find_source(options.source)  # what is wrong with it is told before a model is loaded
        encoder = Encoder.load(options.model, torch_device(options.device))
        report = update_index(encoder, source, options.to, batch_size=options.batch_size, workers=options.workers)
    else:
        if options.ids is None or options.model is None or options.source is not None:
            raise ConfigError("--from-vectors VECTORS goes with --ids IDS.csv --model MODEL --to INDEX and no folder")
        from saysee.encoding.encoder import Encoder
        from saysee.search.index.imported_vectors import index_vectors

        encoder = Encoder.load(options.model, torch_device(options.device))
        report = index_vectors(encoder, options.from_vectors, options.ids, options.to)
    for note in report.notes:
        print(f"saysee: {note}", file=sys.stderr)
    print_refused([reason for _, reason in report.refused])
    print_result(options, report.to_dict(), report.to_line())
    return EXIT_DONE


def _index_check(options: argparse.Namespace) -> int:
    from saysee.search.index.index import Index

    index = Index.open(options.check)
    problems, counts = index.check(), index.counts()
    if options.json:
        print(json.dumps({"index": index.place, **counts, "problems": problems}))
    if problems:
        for problem in problems[:-1]:
            refuse(problem)
        return refuse(problems[-1])
    if not options.json:
        print(f"{index.place}: {counts['image']:,} pictures and {counts['clip']:,} clips, all well")
    return EXIT_DONE


def _index_compact(options: argparse.Namespace) -> int:
    from saysee.search.index.index import Index

    index = Index.open(options.compact)
    before, after = index.compact()
    text = f"{index.place}: {after / 1e6:.1f} MB, {before / 1e6:.1f} MB before"
    print_result(options, {"index": index.place, "bytes_before": before, "bytes": after}, text)
    return EXIT_DONE


def _search(options: argparse.Namespace) -> int:
    from saysee.search.index.index import Index

    if options.k < 1:
        raise ConfigError(f"-k is {options.k}; it must be at least 1")
    index = Index.open(options.index, model=options.model, device=torch_device(options.device))
    from saysee.search.terminal.queries import run_queries

    recording = None if options.record is None else _recorded(index, options.record)
    kinds: dict[str | None, Any] = {"images": "image", "clips": "clip", None: None}
    found = run_queries(
        index,
        options.queries,
        options.text,
        recording,
        k=options.k,
        where=options.where,
        filters=options.filter,
        kind=kinds[options.find],
    )
    result = {"index": index.place, **found.to_dict()}
    sheet = None
    if options.sheet is not None or options.open:
        from saysee.search.terminal.sheet import write_sheet

        sheet = write_sheet(found, options.sheet)
        result["sheet"] = str(sheet)
    if options.json:
        print(json.dumps(result))
    else:
        _print_found(found, thumbnails=not options.no_thumbnails)
        if sheet is not None:
            print(f"sheet: {sheet}")
    print_refused(found.skipped)
    if sheet is not None and options.open:
        _open(sheet)
    return EXIT_DONE


def _recorded(index: Index, seconds: float) -> NDArray[np.float32]:
    """What is spoken; what stands in the way is told before anyone speaks."""
    from saysee.search.terminal.microphone import Microphone

    if seconds < 0 or not math.isfinite(seconds):
        raise ConfigError(f"--record is {seconds:g} seconds; give a number above 0, or none")
    microphone = Microphone()
    _ = index.encoder  # loads the model
    how = f"for {seconds:g} s" if seconds else "and be silent"
    print(f"saysee: speak now {how}, or press Enter when done", file=sys.stderr)
    return microphone.record(seconds or None)


def _print_found(found: SearchResults, thumbnails: bool) -> None:
    from saysee.search.terminal.thumbnails import protocol_of, show_hits

    protocol = protocol_of(sys.stdout) if thumbnails else None
    for result in found.results:
        print_rich(result.to_table())
        if protocol is not None:
            show_hits(result.hits, protocol, shutil.get_terminal_size().columns)


def _open(sheet: Path) -> None:
    import webbrowser

    if not webbrowser.open(sheet.as_uri()):
        print(f"saysee: no browser can be opened here; the sheet is {sheet}", file=sys.stderr)
