"""Brings an index up to date with its files: the model encodes only what is new or changed.

Threads read and decode ahead while the model encodes. Each batch is one transaction.
"""

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from saysee.encoding.encoder import Encoder
from saysee.encoding.reading import read_ahead
from saysee.errors import MediaError, SaySeeError
from saysee.files import STILL_SECONDS, fingerprint
from saysee.log import progress_bar
from saysee.media.formats import Kind, audio_container, kind_by_suffix
from saysee.media.metadata import EXIF_KEYS, is_video, read_exif
from saysee.media.source import printable, reason
from saysee.search.index.about import EXAMPLES, About, IndexReport, counted
from saysee.search.index.index import open_store
from saysee.search.index.readers.item_list import LEAVING, ItemList, Listed, batched
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
from saysee.search.index.store import KINDS, Item, Tables, Vectors, is_database

_EXAMINED = "examined"
"""The note that all files were examined for what they say of themselves; earlier releases did not."""
_VIDEO = MediaError("undecodable", "is a video")
_AT_ONCE = 1_000  # rows compared, or removed, together

_Found = tuple[Listed, Vectors | None, Any]  # the vector of its content if that is known; else what the model takes


def update_index(
    encoder: Encoder,
    place: str | os.PathLike[str] | Source,
    to: str | os.PathLike[str],
    *,
    batch_size: int = 64,
    workers: int | None = None,
    allow_removals: bool = False,
) -> IndexReport:
    """Creates an index of the files of a folder or manifest, or brings one up to date.

    Killed at any moment, it loses the current batch at most; the same call resumes. Files that cannot be used are
    reported and skipped. Rows are kept where their files are out of reach: below a folder that cannot be read, and
    without ``allow_removals`` where a whole folder or more than half of all files have disappeared.

    Args:
        encoder: the model.
        place: a folder or a manifest, or what :func:`saysee.search.index.sources.find_source` found there.
        to: folder of the index, or its address as of :meth:`saysee.search.index.index.Index.open`.
        batch_size: files encoded, and committed, together.
        workers: threads that decode; None for those of the encoder.
        allow_removals: remove the rows of all files that have disappeared, however many.

    Raises:
        SaySeeError: there is no file that can be used; the index is of another model or of other files; another process
            writes it; the disk is full.
    """
    if batch_size < 1 or (workers is not None and workers < 1):
        raise SaySeeError(f"batch size {batch_size} and workers {workers} must be at least 1")
    source = place if isinstance(place, Source) else find_source(place)
    store = open_store(to)
    report = IndexReport(store.place, notes=[encoder.warning] if encoder.warning else [])
    report.ignored, report.excluded = source.ignored.copy(), source.excluded.copy()
    report.unreadable = [(printable(source.root / path), why) for path, why in source.unreadable.items()]
    source.items.begin()
    if not encoder.has_speech:
        _ignore_clips(source, encoder, report)
    with store.writing() as writer:
        about = begin(writer, encoder, source.root, source.name)
        run = _Run(writer, encoder, about, source, report)
        run.go(batch_size, workers or encoder.workers)
        remove_rows(writer, source.items, report, run.rows, allow_removals, vanished_folder(source))
        writer.note(EXAMPLES, source.items.examples())
        finish(writer, about, report)
    if not report.images and not report.clips:
        path, reason = report.refused[0]
        raise SaySeeError(
            f"{source.place}: none of {len(report.refused)} files can be used; the first is {path} ({reason})"
        )
    return report


def _ignore_clips(source: Source, encoder: Encoder, report: IndexReport) -> None:
    clips = source.items.ignore_clips()
    if not len(source.items):
        raise SaySeeError(f"{source.place}: no image there, and this model cannot encode clips; give a SaySee model")
    if clips:
        report.ignored.update({suffix or NO_SUFFIX: count for suffix, count in clips.items()})
        report.notes.append(f"clips ignored: {clips.total():,}; the model {encoder.name} has no speech encoder")


def begin(writer: Tables, encoder: Encoder, root: Path, source: str, precision: str = "float32") -> About:
    """Begins an index of the ``source`` below ``root``, in this precision, or resumes one of the same files and model.

    Returns:
        what holds once :func:`finish` is called.

    Raises:
        SaySeeError: the index is of another model, or of other files that still exist.
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


def remove_rows(
    writer: Tables,
    items: ItemList,
    report: IndexReport,
    rows: int,
    allow_removals: bool,
    vanished: Callable[[str], str | None] = lambda _: None,
) -> None:
    """Removes the rows of files that cannot be used any more, and those that are gone from the source.

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


class _Run:
    """One run over the files that are new or may have changed."""

    def __init__(self, writer: Tables, encoder: Encoder, about: About, source: Source, report: IndexReport) -> None:
        self.writer, self.encoder, self.about, self.source, self.report = writer, encoder, about, source, report
        self.items, self.root, self.rows = source.items, os.fspath(source.root), 0
        self._compare()

    def _compare(self) -> None:
        """Looks up each row of the index in the list, and notes which are unchanged or gone.

        An item has changed if its file has another size or time, or no vector of this model. All have, where an earlier
        release did not examine the files: these are read again, but not encoded.
        """
        examined = self.writer.noted(_EXAMINED) is not None
        others: Counter[Kind] = Counter()
        for rows in batched(self.writer.items(), _AT_ONCE):
            for row in filter(is_upload, rows):
                self._keep_upload(row)
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
                if content is None or not examined or self._status(row.path) != (row.size, row.mtime_ns):
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

    def _keep_upload(self, row: Item) -> None:
        """Lists the file of a row that was added one by one, where it is now."""
        if (path := find_upload(row, self.source.root, self.writer.folder)) is not None:
            # Where the index lies in its own source, the walk has found it too, without its metadata.
            self.items.add(Item(row.kind, path, metadata=row.metadata), upload=True)

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

    def go(self, batch_size: int, workers: int) -> None:
        """Brings the rows of the source's files up to date."""
        kept, ignored = len(self.items), self.report.ignored.total()
        with progress_bar("indexing", self.items.count("state IS NULL")) as bar:
            for found, prepared in read_ahead(self._with_vectors(batch_size, workers), self._prepare, workers):
                self._write([(one, vector, content) for (one, vector), content in zip(found, prepared, strict=True)])
                bar.advance(len(found))
        if self.writer.noted(_EXAMINED) is None:
            self.writer.note(_EXAMINED, 1)
        kept -= self.report.ignored.total() - ignored
        self.report.kept = kept - self.report.encoded - self.report.moved - len(self.report.refused)

    def _with_vectors(self, size: int, workers: int) -> Iterator[list[tuple[Listed, Vectors | None]]]:
        """The changed items in batches of a kind, each with the vector of its content, if that is known."""
        order: Literal["path", "number"] = "path" if self.source.is_folder else "number"
        kinds = (self.items.select("state IS NULL AND kind = ?", kind, by=order) for kind in KINDS)
        batches = (batch for changed in kinds for batch in batched(changed, size))
        for batch, errors in read_ahead(batches, self._examine, workers):
            for one, error in zip(batch, errors, strict=True):
                if error is not None:
                    self._refuse(one, error)
            good = [one for one, error in zip(batch, errors, strict=True) if error is None]
            made_by, given = self.about.fingerprints[batch[0].item.kind], self.source.vectors
            contents = {one.item.hash: one.item.key for one in good if one.item.hash is not None}
            known = self.writer.vectors_with(batch[0].item.kind, made_by, contents)
            known |= {content: given[key] for content, key in contents.items() if key in given}
            for one in good:
                one.item.encoded_by = made_by
            yield [(one, known.get(one.item.hash or "")) for one in good]

    def _examine(self, one: Listed) -> SaySeeError | None:
        """Reads the hash of a file, and what it says of itself; an error where it cannot be used."""
        item = one.item

        def read(path: Path) -> SaySeeError | None:
            if not path.is_file() or (status := self._status(item.path)) is None:
                return None  # the model has the error message
            item.size, item.mtime_ns = status
            if time.time_ns() - status[1] < STILL_SECONDS * 1e9:  # then its content is looked at again
                item.mtime_ns = None
            with path.open("rb") as file:
                item.hash = fingerprint(file)
                if item.kind == "image":
                    item.metadata = read_exif(file) | item.metadata
                    return None
                # Where a user lists clips, a video among them is meant.
                video = self.source.is_folder and not is_upload(item) and is_video(file, audio_container(file))
            return _VIDEO if video else None

        found: SaySeeError | None = self._or_error(item, read)
        return found

    def _prepare(self, found: tuple[Listed, Vectors | None]) -> Any:
        """What the model takes of a file whose vector is not known; an error where it cannot be used."""
        item, vector = found[0].item, found[1]
        return self._or_error(item, partial(self.encoder.prepare, item.kind)) if vector is None else None

    def _or_error(self, item: Item, read: Callable[[Path], Any]) -> Any:
        path = self.source.root / item.path
        try:
            item.path.encode()
            return read(path)
        except UnicodeEncodeError:
            return SaySeeError(f"{printable(path)}: its name is not valid Unicode; rename it")
        except SaySeeError as error:
            return error
        except OSError as error:
            message = f"{printable(path)}: cannot be read ({error.strerror or error}); copy it again"
            return MediaError("unreadable", message)
        except Exception as error:  # one file stops no run
            return MediaError("undecodable", f"{printable(path)}: cannot be decoded ({reason(error)}); save it again")

    def _write(self, found: list[_Found]) -> None:
        """Writes a batch: first the rows that keep their vectors, as only time or place changed, then the others."""
        renewed, others = list[tuple[Listed, Vectors]](), list[_Found]()
        for one, vector, content in found:
            row = None if vector is None or one.row is None or one.hash != one.item.hash else one.row
            if vector is not None and one.row is None:
                row = self.items.take_leaving(one.item.kind, one.item.hash)
            if vector is None or row is None:
                others.append((one, vector, content))
            else:
                one.item.id = row
                renewed.append((one, vector))
        lost = {item.key for item in self.writer.refresh([one.item for one, _ in renewed])}
        self.report.moved += sum(one.row is None and one.item.key not in lost for one, _ in renewed)
        others += [(one, vector, None) for one, vector in renewed if one.item.key in lost]
        self._write_vectors(others)

    def _write_vectors(self, found: list[_Found]) -> None:
        """Writes rows with the vector of another file of the same content or of the model, in one transaction."""
        items, vectors, new = list[Item](), [], []
        for one, known, content in found:
            if known is not None:
                items.append(one.item)
                vectors.append(known)
            elif isinstance(content, SaySeeError):
                self._refuse(one, content)
            else:
                new.append((one, content))
        if new:
            encoded = self.encoder.encode_prepared(new[0][0].item.kind, [content for _, content in new])
            for (one, _), vector in zip(new, encoded, strict=True):
                if np.isfinite(vector).all():
                    items.append(one.item)
                    vectors.append(vector)
                    self.report.encoded += 1
                else:
                    message = f"{self._shown(one.item)}: the model has no finite vector for it"
                    self._refuse(one, MediaError("not-finite", message))
        if items:
            with self.writer.transaction():
                self.writer.put(items, np.stack(vectors))

    def _refuse(self, one: Listed, error: SaySeeError) -> None:
        path = one.item.path
        if error is _VIDEO or (error.code == "undecodable" and kind_by_suffix(path) is None):
            self.report.ignored[os.path.splitext(path)[1].lower() or NO_SUFFIX] += 1
        else:
            self.report.refused.append((self._shown(one.item), str(error)))
        if one.row is None:
            return
        if error.code in ("unreadable", "broken-link"):
            self.report.missing[os.path.dirname(path) or "."] += 1
        else:  # its vector is of a content that no longer exists
            self.items.mark("gone" if error.code == "missing" else "bad", one.number)

    def _shown(self, item: Item) -> str:
        return printable(self.source.root / item.path)

    def _status(self, path: str) -> tuple[int, int] | None:
        try:
            status = os.stat(os.path.join(self.root, path))
        except (OSError, ValueError):
            return None
        return status.st_size, status.st_mtime_ns
