"""Brings an index up to date with its files: the model encodes only what is new or changed.

It compares the files with the rows, and has the differences written (batches.py), here or in other processes.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Literal

from saysee.encoding.encoder import Encoder
from saysee.errors import SaySeeError
from saysee.log import progress_bar
from saysee.media.formats import Kind
from saysee.media.metadata import EXIF_KEYS
from saysee.media.source import printable
from saysee.search.index.about import EXAMPLES, About, IndexReport, counted
from saysee.search.index.batches import BatchWriter, Done, Part, Spread
from saysee.search.index.index import open_store
from saysee.search.index.readers.item_list import LEAVING, ItemList, Listed
from saysee.search.index.sources import (
    NO_SUFFIX,
    Source,
    beside,
    find_source,
    find_upload,
    is_upload,
    root_of,
    vanished_folder,
)
from saysee.search.index.store import KINDS, Item, Tables, batched, is_database

_EXAMINED = "examined"
"""The note that all files were examined for what they say of themselves; earlier releases did not."""
_PART_BATCHES = 4  # that another process gets at a time: it reads ahead within these. A choice
_AT_ONCE = 1_000  # rows compared, or removed, together


def update_index(
    encoder: Encoder,
    place: str | os.PathLike[str] | Source,
    to: str | os.PathLike[str],
    *,
    batch_size: int = 64,
    workers: int | None = None,
    allow_removals: bool = False,
    spread: Spread | None = None,
) -> IndexReport:
    """Creates an index of the files of a folder or manifest, or brings one up to date.

    Killed at any moment, it loses the current batch at most; the same call resumes. Files that cannot be used are
    reported and skipped. Rows are kept where their files are out of reach: below a folder that cannot be read, and
    without ``allow_removals`` where a whole folder or more than half of all files have disappeared.

    Args:
        place: a folder or a manifest, or what :func:`saysee.search.index.sources.find_source` found there.
        to: folder of the index, or its address as of :meth:`saysee.search.index.index.Index.open`.
        batch_size: files encoded, and committed, together.
        workers: threads that decode; None for those of the encoder.
        spread: does the work in other processes, such as :func:`saysee.search.index.cluster.update_on_cluster`.

    Raises SaySeeError if there is no file that can be used; the index is of another model or of other files; another
    process writes it; the disk is full.
    """
    if batch_size < 1 or (workers is not None and workers < 1):
        raise SaySeeError(f"batch size {batch_size} and workers {workers} must be at least 1")
    source = place if isinstance(place, Source) else find_source(place)
    store = open_store(to)
    if spread is not None and not store.many_writers:
        raise SaySeeError(
            f"{store.place}: only one process can write it; name an index in PostgreSQL or LanceDB by --to"
        )
    report = IndexReport(store.place, notes=[encoder.warning] if encoder.warning else [])
    report.ignored, report.excluded = source.ignored.copy(), source.excluded.copy()
    report.unreadable = [(printable(source.root / path), why) for path, why in source.unreadable.items()]
    source.items.begin()
    if not encoder.has_speech:
        _ignore_clips(source, encoder, report)
    with store.writing() as writer:
        about = begin(writer, encoder, source.root, source.name)
        run = _Run(writer, encoder, about, source, report)
        run.go(batch_size, workers or encoder.workers, spread)
        remove_rows(writer, source.items, report, run.rows, allow_removals, vanished_folder(source))
        writer.note(EXAMPLES, source.items.examples())
        finish(writer, about, report)
    check_not_empty(report, source.place)
    return report


def _ignore_clips(source: Source, encoder: Encoder, report: IndexReport) -> None:
    clips = source.items.ignore_clips()
    if not len(source.items):
        raise SaySeeError(f"{source.place}: no image there, and this model cannot encode clips; give a SaySee model")
    if clips:
        report.ignored.update({suffix or NO_SUFFIX: count for suffix, count in clips.items()})
        report.notes.append(f"clips ignored: {clips.total():,}; the model {encoder.name} has no speech encoder")


def begin(writer: Tables, encoder: Encoder, root: Path, source: str, precision: str = "float32") -> About:
    """Begins an index of the ``source`` below ``root``, or resumes one; returns what holds at its :func:`finish`.

    Raises SaySeeError if the index is of another model, or of other files that still exist.
    """
    before = writer.about
    if before is not None:
        before.check(encoder, writer.place)
        _check_same_source(writer, before, root, source)
    fingerprints: dict[Kind, str] = {kind: encoder.fingerprint(kind) for kind in KINDS}
    if before is not None and not encoder.has_speech:  # a CLIP leaves clips as another model encoded them
        fingerprints["clip"] = before.fingerprints["clip"]
    local = os.path.isdir(encoder.name)
    about = About(
        model=os.path.abspath(encoder.name) if local else encoder.name,
        model_beside=beside(Path(encoder.name), writer.folder) if local else None,
        fingerprints=fingerprints,
        dimension=encoder.dimension,
        precision=before.precision if before else precision,
        root=os.fspath(root),
        root_beside=beside(root, writer.folder),
        source=source,
    )
    writer.set_about(replace(about, fingerprints=before.fingerprints) if before else about)
    return about


def finish(writer: Tables, about: About, report: IndexReport) -> None:
    """Notes that this model made all vectors, updates the fast copies, and counts the rows."""
    writer.set_about(about)
    report.search = writer.make_ready()
    counts = writer.counts()
    report.images, report.clips = counts["image"], counts["clip"]


def check_not_empty(report: IndexReport, place: str) -> None:
    """Raises a SaySeeError if the index has no row after a run over the items at a place."""
    if report.images or report.clips:
        return
    if not report.refused:
        others = counted(report.ignored)
        raise SaySeeError(f"{place}: no image and no clip there ({others}); name the folder that holds them")
    path, reason = report.refused[0]
    raise SaySeeError(f"{place}: none of {len(report.refused):,} items can be used; the first is {path} ({reason})")


def remove_rows(
    writer: Tables,
    items: ItemList,
    report: IndexReport,
    rows: int,
    allow_removals: bool,
    vanished: Callable[[str], str | None] = lambda _: None,
) -> None:
    """Removes the rows of files that cannot be used any more, or are gone from the source.

    Without ``allow_removals`` it keeps and reports those whose folder has ``vanished`` whole, and all that are gone if
    they are more than half of the ``rows``.
    """
    kept = Counter[str]()
    too_many = 2 * items.count("state = 'gone'") > rows
    for one in () if allow_removals else items.select("state = 'gone'"):
        if (folder := "." if too_many else vanished(one.item.path)) is not None:
            kept[folder] += 1
            items.mark("missing", one.number)
    if kept:
        report.missing.update(kept)
        what = f"of {rows:,} rows" if too_many else f"rows of whole folders ({counted(kept)})"
        report.notes.append(
            f"{kept.total():,} {what} are kept although they are gone from the source; bring them back, or remove the "
            "rows with --allow-removals"
        )
    leaving = (replace(one.item, id=one.row) for one in items.select(LEAVING) if one.row is not None)
    for batch in batched(leaving, _AT_ONCE):
        writer.remove(batch)
        report.removed += len(batch)


def _check_same_source(writer: Tables, before: About, root: Path, source: str) -> None:
    """Refuses other files while those of the index still exist: all of them would be removed from it."""
    first = next(iter(writer.items()), None)
    old = root_of(before, writer.folder, first.path if first else None)
    place = before.source if is_database(before.source) else os.path.normpath(old / before.source)
    there = is_database(before.source) or os.path.exists(place)
    if first is not None and there and (os.path.realpath(old), before.source) != (os.path.realpath(root), source):
        raise SaySeeError(f"{writer.place}: is an index of {place}; name another place by --to")


class _Run(BatchWriter):
    """One run over the files that are new or may have changed."""

    def __init__(self, writer: Tables, encoder: Encoder, about: About, source: Source, report: IndexReport) -> None:
        super().__init__(writer, encoder, about, source.items, report, source.vectors)
        self.source, self.items, self.rows = source, source.items, 0
        self._compare()

    def _compare(self) -> None:
        """Looks up each row of the index in the list, and notes which are unchanged or gone.

        An item has changed if its file has another size or time, or no vector of this model. All are read again, but
        not encoded, where an earlier release did not examine the files.
        """
        examined = self.writer.noted(_EXAMINED) is not None
        others: Counter[Kind] = Counter()
        for rows in batched(self.writer.items(), _AT_ONCE):
            for row in filter(is_upload, rows):
                if (path := find_upload(row, self.source.root, self.writer.folder)) is not None:
                    # Where the index lies in its own source, the walk has found it too, without its metadata.
                    self.items.add(Item(row.kind, path, metadata=row.metadata), upload=True)
            renewed, kept = dict[int, Item](), list[int]()
            for row, found in zip(rows, self.items.find(rows), strict=True):
                content = row.hash
                if row.encoded_by != self.about.fingerprints[row.kind]:
                    others[row.kind] += 1
                    content = None
                if found is None:
                    self._note_unlisted(row, content)
                    continue
                number, metadata, state = found
                if state == "ignored":
                    continue
                if content is None or not examined or self.status(row.path) != (row.size, row.mtime_ns):
                    self.items.compared(number, row.id, content)
                    continue
                kept.append(number)
                if row.metadata or metadata:
                    exif = {name: row.metadata[name] for name in EXIF_KEYS if name in row.metadata}
                    if (now := exif | json.loads(metadata or "{}")) != row.metadata:
                        renewed[number] = replace(row, metadata=now)
            self.items.mark("kept", *kept)
            gone = {item.key for item in self.writer.refresh(list(renewed.values()))}
            for number, item in renewed.items():
                if item.key in gone:  # another process has removed the row
                    self.items.compared(number, None, None)
            self.rows += len(rows)
        for kind, count in others.items():
            self.report.notes.append(f"{count:,} {kind}s of the index are of another model, and are encoded again")
        if not self.rows:  # nothing is there that an earlier release wrote
            self.writer.note(_EXAMINED, 1)
        self._check_unlisted()

    def _note_unlisted(self, row: Item, content: str | None) -> None:
        if self.source.is_folder and (place := self.source.unreadable_above(row.path)) is not None:
            self.report.missing[place] += 1
        else:
            there = self.source.is_folder and os.path.lexists(os.path.join(self.root, row.path))
            self.items.add_row(row, content, "unlisted" if there else "gone")

    def _check_unlisted(self) -> None:
        """Files that are there but were not listed are excluded now, or another process has just added them."""
        if self.items.count("state = 'unlisted'"):
            with suppress(SaySeeError):
                again = find_source(self.source.place, self.source.exclude).items
                for one in self.items.select("state = 'unlisted'"):
                    self.items.mark("bad" if again.find([one.item])[0] is None else "kept", one.number)

    def go(self, batch_size: int, workers: int, spread: Spread | None) -> None:
        """Brings the rows of the source's files up to date."""
        kept, ignored = len(self.items), self.report.ignored.total()
        if spread is None:
            counts = self.write(self._changed(batch_size), workers)
        else:
            parts = self._changed(_PART_BATCHES * batch_size)
            counts = map(self._add, spread(Part(self.about, listed, batch_size) for listed in parts))
        with progress_bar("indexing", self.items.count("state IS NULL")) as bar:
            for count in counts:
                bar.update(count)
        if self.writer.noted(_EXAMINED) is None:
            self.writer.note(_EXAMINED, 1)
        kept -= self.report.ignored.total() - ignored
        self.report.kept = kept - self.report.encoded - self.report.moved - len(self.report.refused)

    def _changed(self, size: int) -> Iterator[list[Listed]]:
        """The items that are new or have changed, in batches of a kind."""
        order: Literal["path", "number"] = "path" if self.source.is_folder else "number"
        kinds = (self.items.select("state IS NULL AND kind = ?", kind, by=order) for kind in KINDS)
        return (batch for changed in kinds for batch in batched(changed, size))

    def _add(self, done: Done) -> int:
        """Adds up what another process did, and finds which of its new rows are of files that have moved."""
        self.report.add(done.report)
        for number, state in done.states.items():
            self.items.mark(state, number)
        for item in done.new:
            if (row := self.items.take_leaving(item.kind, item.hash)) is not None:
                self.writer.remove([replace(item, id=row)])
                self.report.moved += 1
        return done.count
