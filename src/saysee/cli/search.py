"""``saysee index``, ``index-check``, ``index-compact`` and ``search``."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from saysee.cli.printing import Result, print_message, print_table
from saysee.errors import ConfigError, extra_needed

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from saysee.encoding.encoder import Encoder
    from saysee.encoding.recognizer import SpeechRecognizer
    from saysee.search.index.about import IndexReport
    from saysee.search.index.index import Index
    from saysee.search.index.sources import Source
    from saysee.search.terminal.queries import QueryResult


def index(
    model: str | None = None,
    source: str | None = None,
    *,
    to: str,
    from_vectors: Path | None = None,
    ids: Path | None = None,
    from_postgres: str | None = None,
    query: str | None = None,
    images_from: str | None = None,
    model_: str | None = None,
    exclude: Sequence[str] = (),
    allow_removals: bool = False,
    watch: bool = False,
    ray: str | bool = False,
    batch_size: int = 64,
    workers: int | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> Result | Iterator[Result]:
    """Make a search index of images and clips, or bring one up to date.

    Args:
        model: folder or hub name of a SaySee model
        source: the folder to index, with its sub-folders, or a manifest
        to: folder of the index, or its address: postgresql://user@host/database, lance:///folder or s3://bucket/prefix
        from_vectors: existing CLIP vectors to index: .npy or .parquet, or a folder of such files
        ids: one row per vector with a column path: .csv, .tsv, .jsonl, .parquet, .txt, or a folder of such files
        from_postgres: address of a database with CLIP vectors to index, which is only read
        query: SELECT that gives the vectors there, with a column path, url or id, and others as metadata
        images_from: address of the server whose images are compared with the vectors; its key is in SAYSEE_IMAGES_KEY
        model_: the model, with --from-vectors or --from-postgres
        exclude: pattern of files and folders to skip, such as raw or "2019/private*" (repeatable)
        allow_removals: remove the rows of vanished files even of whole folders, or of more than half of the index
        watch: stay, and update the index whenever the files change
        ray: encode on a Ray cluster: host:port, auto or ray://host:port; without an address, on this machine
        batch_size: files encoded together
        workers: number of decoding threads (default: one per CPU core)
        device: device to compute on
    """
    if model is not None and model_ is not None:
        raise ConfigError("the model is given twice; give it once, first or by --model")
    model = model or model_
    if from_vectors is not None or from_postgres is not None:
        if (from_vectors is None) != (ids is None) or (from_postgres is None) != (query is None) or (ids and query):
            raise ConfigError("--from-vectors VECTORS requires --ids CSV, or --from-postgres ADDRESS --query SELECT")
        if model is None or source is not None or watch or exclude or ray:
            raise ConfigError("to index existing vectors, give --model MODEL; no folder, --watch, --exclude or --ray")
        from saysee.encoding.encoder import Encoder
        from saysee.media.web import ImageServer
        from saysee.search.index.imported_vectors import index_vectors
        from saysee.search.index.readers.files import read_files

        images = None if images_from is None else ImageServer(images_from)
        encoder = Encoder(model, device)
        if from_vectors is not None and ids is not None:
            given = read_files(from_vectors, ids, encoder.dimension)
        else:
            with extra_needed("--from-postgres", "postgres"):
                from saysee.search.index.readers.database import read_database
            given = read_database(str(from_postgres), str(query), encoder)
        return _indexed(encoder, index_vectors(encoder, given, to, images=images, allow_removals=allow_removals))
    if ids or query or images_from:
        raise ConfigError("--ids requires --from-vectors, --query --from-postgres, --images-from one of them")
    if model is None or source is None:
        raise ConfigError("give a model and a folder: 'saysee index MODEL FOLDER --to INDEX'")
    from saysee.encoding.encoder import Encoder
    from saysee.search.index.sources import find_source, watch_index
    from saysee.search.index.updating import update_index

    found = find_source(source, exclude)  # reports what is wrong with it before a model is loaded
    encoder = Encoder(model, "cpu" if ray else device)

    def update(found: Source) -> IndexReport:
        options: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "allow_removals": allow_removals}
        if ray is not False:
            with extra_needed("--ray", "ray"):
                from saysee.search.index.cluster import update_on_cluster
            address = "" if ray is True else str(ray)
            options["spread"] = partial(update_on_cluster, address, device, workers, encoder, to)
        return update_index(encoder, found, to, **options)

    if not watch:
        return _indexed(encoder, update(found))
    reports = watch_index(lambda: update(find_source(source, exclude)), source, exclude)
    return (_indexed(encoder, report) for report in reports)


def _indexed(encoder: Encoder, report: IndexReport) -> Result:
    if encoder.trained_on is not None:
        about = f"{encoder.name} was trained on {encoder.trained_on}"
        report.notes.append(f"{about}; results for anything else are random")
    for note in report.notes:
        print_message(note)
    return Result(report.to_dict(), [report.to_line()], skipped=[reason for _, reason in report.refused])


def index_check(index: str) -> Result:
    """Read a whole index and list what is wrong with it.

    Args:
        index: folder of the index, or its address (postgresql://, lance://, s3://)
    """
    from saysee.search.index.index import Index

    opened = Index.open(index)
    problems, counts = opened.check(), opened.counts()
    line = f"{opened.place}: {counts['image']:,} images and {counts['clip']:,} clips, no problems"
    values = {"index": opened.place, "image": counts["image"], "clip": counts["clip"], "problems": problems}
    return Result(values, [] if problems else [line], failures=problems)


def index_compact(index: str) -> Result:
    """Reclaim the disk space of removed rows.

    Args:
        index: folder of the index, or its address (postgresql://, lance://, s3://)
    """
    from saysee.search.index.index import Index

    opened = Index.open(index)
    before, after = opened.compact()
    line = f"{opened.place}: {after / 1e6:.1f} MB, {before / 1e6:.1f} MB before"
    return Result({"index": opened.place, "bytes_before": before, "bytes": after}, [line])


def search(
    index: str,
    query: Sequence[str] = (),
    *,
    text: Sequence[str] = (),
    record: float | bool = False,
    k: int = 10,
    where: str | None = None,
    filter: Sequence[str] = (),
    for_: Literal["images", "clips"] | None = None,
    sheet: Path | None = None,
    open: bool = False,
    no_thumbnails: bool = False,
    recognizer: str | None = None,
    language: str | None = None,
    speech: Literal["direct", "transcribed", "both"] | None = None,
    rerank: int | None = None,
    model: str | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> Result:
    """Find images by speech, text or an image; with --for clips, find clips.

    Args:
        index: folder of the index, or its address (postgresql://, lance://, s3://)
        query: clips, images, or folders of them
        text: a text query (repeatable)
        record: record a query by the microphone, for this many seconds, or until silence or Enter
        k: maximum number of hits per query
        where: an SQL expression, such as "folder LIKE 'holiday%'"
        filter: NAME:VALUE, such as folder:holiday*, speaker:s1, taken:2024-06..2024-08 or size:1000.. (repeatable)
        for_: what to find (default: images; clips for an image query if the index has no image)
        sheet: also write the results as an HTML file
        open: open the HTML file in the browser; without --sheet it is a temporary file
        no_thumbnails: do not show images in the terminal
        recognizer: transcribe speech and search for the text: a size of Whisper such as small, or its folder
        language: of the speech, such as en, for the recognizer (default: detected)
        speech: search by the model's speech encoder (direct), by the transcript (transcribed), or both rankings fused
            (default: transcribed with --recognizer, else direct)
        rerank: number of best hits to read again and to order by the model's fusion encoder
        model: the model of the index, if it has moved
        device: device to compute on
    """
    if k < 1:
        raise ConfigError(f"-k is {k}; it must be at least 1")
    if sheet is not None and not sheet.absolute().parent.is_dir():
        raise ConfigError(f"--sheet {sheet}: there is no folder {sheet.absolute().parent}; create it")
    from saysee.search.index.index import Index
    from saysee.search.terminal.queries import run_queries
    from saysee.search.terminal.sheet import write_sheet

    if speech == "direct" and recognizer is not None:
        raise ConfigError("--speech direct does not use --recognizer; remove one of them, or give --speech both")
    heard_by = open_recognizer(recognizer, language, device)
    opened = Index.open(index, model=model, device=device, recognizer=heard_by, speech=speech)
    recording = None if record is False else _record(opened, record)
    found = run_queries(
        opened,
        query,
        text,
        recording,
        k=k,
        where=where,
        filters=filter,
        kind={"images": "image", "clips": "clip", None: None}[for_],
        rerank=rerank,
    )
    values = {"index": opened.place, **found.to_dict()}
    printed: list[Any] = [partial(_print_hits, result, not no_thumbnails) for result in found.results]
    if sheet is not None or open:
        written = write_sheet(found, sheet)
        values["sheet"] = str(written)
        printed.append(f"sheet: {written}")
        if open:
            import webbrowser

            if not webbrowser.open(written.as_uri()):
                print_message(f"no browser can be opened here; the HTML file is {written}")
    return Result(values, printed, skipped=found.skipped)


def open_recognizer(name: str | None, language: str | None, device: str) -> SpeechRecognizer | None:
    """The recognizer of ``--recognizer`` and ``--language``; None without them."""
    if name is None:
        if language is not None:
            raise ConfigError("--language is for --recognizer; give both")
        return None
    from saysee.encoding.recognizer import SpeechRecognizer
    from saysee.hardware import torch_device

    return SpeechRecognizer(name, language=language, device=torch_device(device))


def _record(index: Index, seconds: float | bool) -> NDArray[np.float32]:
    """A spoken query; errors are raised before the user speaks."""
    from saysee.media.audio import MAX_SECONDS
    from saysee.search.terminal.microphone import Microphone

    limit = None if seconds is True else float(seconds)
    if limit is not None and not 0 < limit <= MAX_SECONDS:
        raise ConfigError(f"--record is {limit:g} seconds; give a number above 0 and up to {MAX_SECONDS:g}, or none")
    microphone = Microphone()
    index.speech_encoders()  # loads them
    print_message(
        f"speak now {'and then be silent' if limit is None else f'for {limit:g} s'}, or press Enter when done"
    )
    return microphone.record(limit)


def _print_hits(result: QueryResult, thumbnails: bool) -> None:
    from saysee.search.terminal.thumbnails import protocol_of, show_hits

    print_table(result.to_table())
    if thumbnails and (protocol := protocol_of(sys.stdout)) is not None:
        show_hits(result.hits, protocol, shutil.get_terminal_size().columns)
