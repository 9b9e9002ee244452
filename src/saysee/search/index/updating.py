"""Brings an index up to date with its files: the model encodes only what is new or changed.

Threads read and decode ahead while the model encodes. Each batch is one transaction.
"""

import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

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
from saysee.search.index.sources import (
    NO_SUFFIX,
    Source,
    beside,
    examples_of,
    find_source,
    is_upload,
    root_of,
    vanished_folders,
    with_uploads,
    without_clips,
)
from saysee.search.index.store import KINDS, Item, Key, Tables, is_database

_EXAMINED = "examined"
"""The note that all files were examined for what they say of themselves; earlier releases did not."""
_VIDEO = MediaError("undecodable", "is a video")


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
        to: folder of the index, or ``postgresql://user@host/database?schema=name``.
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
    if not encoder.has_speech:
        source, count = without_clips(source)
        if count:
            report.notes.append(f"clips ignored: {count:,}; the model {encoder.name} has no speech encoder")
    with store.writing() as writer:
        about, known = begin(writer, encoder, source.root, source.name)
        others = Counter(row.kind for row in known.values() if row.encoded_by != about.fingerprints[row.kind])
        for kind, count in others.items():
            report.notes.append(f"{count:,} {kind}s of the index are of another model, and are encoded again")
        items = with_uploads(source.items, known.values(), source.root, writer.folder)
        run = _Run(writer, encoder, about, replace(source, items=items), known, report)
        run.go(batch_size, workers or encoder.workers)
        run.remove(allow_removals)
        writer.note(EXAMPLES, examples_of(items))
        finish(writer, about, report)
    if not report.images and not report.clips:
        path, reason = report.refused[0]
        raise SaySeeError(
            f"{source.place}: none of {len(report.refused)} files can be used; the first is {path} ({reason})"
        )
    return report


def begin(
    writer: Tables, encoder: Encoder, root: Path, source: str, precision: str = "float32"
) -> tuple[About, dict[Key, Item]]:
    """Begins an index of the ``source`` below ``root``, in this precision, or resumes one of the same files and model.

    Returns:
        what holds once :func:`finish` is called, and the rows of the index.

    Raises:
        SaySeeError: the index is of another model, or of other files that still exist.
    """
    before = writer.about
    known = writer.known() if before else {}
    if before is not None:
        before.check(encoder, writer.place)
        _check_same_source(writer, before, root, source, known)
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
    return about, known


def finish(writer: Tables, about: About, report: IndexReport) -> None:
    """Notes that this model made all vectors, updates the fast copies, and counts the rows."""
    writer.set_about(about)
    report.search = writer.make_ready()
    counts = writer.counts()
    report.images, report.clips = counts["image"], counts["clip"]


def to_remove(
    gone: dict[Key, Item], known: dict[Key, Item], report: IndexReport, folders: Mapping[Key, str]
) -> dict[Key, Item]:
    """Which of the rows that are gone from the source are removed where no removals are allowed; reports the others.

    Those in ``folders``, which have vanished whole, are kept, and all if they are more than half of the ``known``.
    """
    if 2 * len(gone) > len(known):
        report.missing["."] += len(gone)
        what, removed = f"of {len(known):,} rows", dict[Key, Item]()
    else:
        report.missing.update(folders.values())
        what = f"rows of whole folders ({counted(Counter(folders.values()))})"
        removed = {key: row for key, row in gone.items() if key not in folders}
    if kept := len(gone) - len(removed):
        report.notes.append(
            f"{kept:,} {what} are kept although they are gone from the source; bring them back, or remove the rows "
            "with --allow-removals"
        )
    return removed


def _check_same_source(writer: Tables, before: About, root: Path, source: str, known: dict[Key, Item]) -> None:
    """Refuses other files while those of the index still exist: all of them would be removed from it."""
    first = next((row.path for row in known.values()), None)
    old = root_of(before, writer.folder, first)
    place = before.source if is_database(before.source) else os.path.normpath(old / before.source)
    there = is_database(before.source) or os.path.exists(place)
    if known and there and (os.path.realpath(old), before.source) != (os.path.realpath(root), source):
        raise SaySeeError(f"{writer.place}: is an index of {place}; name another place by --to")


class _Run:
    """One run over the files that are new or may have changed."""

    def __init__(
        self,
        writer: Tables,
        encoder: Encoder,
        about: About,
        source: Source,
        known: dict[Key, Item],
        report: IndexReport,
    ) -> None:
        self.writer, self.encoder, self.about, self.source = writer, encoder, about, source
        self.known, self.report = known, report
        report.ignored, report.excluded = source.ignored.copy(), source.excluded.copy()
        report.unreadable = [(printable(source.root / path), why) for path, why in source.unreadable.items()]
        self.current = {key: row for key, row in known.items() if row.encoded_by == about.fingerprints[row.kind]}
        self.contents = {row.content for row in self.current.values()}
        self.bad: dict[Key, Item] = {}  # rows whose files can no longer be used
        self.gone: dict[Key, Item] = {}  # rows whose files have disappeared
        self._find_gone()
        self.homeless = {row.content: row for key, row in (self.gone | self.bad).items() if key in self.current}

    def _find_gone(self) -> None:
        listed = {item.key for item in self.source.items}
        unlisted = {}
        for key, row in self.known.items():
            if key in listed:
                continue
            if not self.source.is_folder:
                self.gone[key] = row
            elif (place := self.source.unreadable_above(row.path)) is not None:
                self.report.missing[place] += 1
            elif os.path.lexists(self.source.root / row.path):
                unlisted[key] = row
            else:
                self.gone[key] = row
        if unlisted:  # excluded now, or it came into the folder after that was listed and another process added it
            with suppress(SaySeeError):
                listed = {item.key for item in find_source(self.source.place, self.source.exclude).items}
                self.bad = {key: row for key, row in unlisted.items() if key not in listed}

    def go(self, batch_size: int, workers: int) -> None:
        """Brings the rows of the source's files up to date."""
        changed = self._find_changed()
        kept = len(self.source.items)
        with progress_bar("indexing", len(changed)) as bar:
            for items, prepared in read_ahead(_batches(changed, batch_size), self._read, workers):
                self._write(items, prepared)
                bar.advance(len(items))
        if self.writer.noted(_EXAMINED) is None:
            self.writer.note(_EXAMINED, 1)
        ignored = self.report.ignored.total() - self.source.ignored.total()
        self.report.kept = kept - self.report.encoded - self.report.moved - len(self.report.refused) - ignored

    def remove(self, allow_removals: bool) -> None:
        """Removes the rows of files that have disappeared or can no longer be used."""
        gone = self.gone
        if not allow_removals:
            folders = vanished_folders(self.source, gone) if self.source.is_folder else {}
            gone = to_remove(gone, self.known, self.report, folders)
        leaving = gone | self.bad
        self.writer.remove(list(leaving.values()))
        self.report.removed = len(leaving)

    def _find_changed(self) -> list[Item]:
        """The items of another size or time, or without a vector of this model. The others get their metadata.

        All items, where an earlier release did not examine the files: these are read again, but not encoded.
        """
        if not self.known:  # nothing is there that an earlier release wrote
            self.writer.note(_EXAMINED, 1)
        examined = self.writer.noted(_EXAMINED) is not None
        changed, renewed = [], []
        for item in self.source.items:
            row = self.current.get(item.key)
            if row is None or not examined or self._status(item) != (row.size, row.mtime_ns):
                changed.append(item)
                continue
            item.metadata = {name: row.metadata[name] for name in EXIF_KEYS if name in row.metadata} | item.metadata
            if item.metadata != row.metadata:
                renewed.append(replace(row, metadata=item.metadata))
        return changed + self.writer.refresh(renewed)  # with those whose row another process has removed

    def _examine(self, item: Item, file: BinaryIO) -> dict[str, Any] | None:
        if item.kind == "clip":
            # Where a user lists clips, a video among them is meant.
            return None if self.source.is_folder and is_video(file, audio_container(file)) else {}
        exif = read_exif(file)
        item.metadata = exif | item.metadata
        return exif

    def _read(self, item: Item) -> Any:
        """What the model takes of a file; None where its content is known; an error where it cannot be used."""
        path = self.source.root / item.path
        try:
            item.path.encode()
            if path.is_file() and (status := self._status(item)) is not None:
                item.size, item.mtime_ns = status
                if time.time_ns() - status[1] < STILL_SECONDS * 1e9:  # then its content is looked at again
                    item.mtime_ns = None
                with path.open("rb") as file:
                    item.hash = fingerprint(file)
                    if self._examine(item, file) is None and not is_upload(item):
                        return _VIDEO
                if item.content in self.contents or item.key in self.source.vectors:
                    return None
            return self.encoder.prepare(item.kind, path)
        except UnicodeEncodeError:
            return SaySeeError(f"{printable(path)}: its name is not valid Unicode; rename it")
        except SaySeeError as error:
            return error
        except OSError as error:
            message = f"{printable(path)}: cannot be read ({error.strerror or error}); copy it again"
            return MediaError("unreadable", message)
        except Exception as error:  # one file stops no run
            return MediaError("undecodable", f"{printable(path)}: cannot be decoded ({reason(error)}); save it again")

    def _write(self, items: Sequence[Item], prepared: Sequence[Any]) -> None:
        """Writes a batch: first the rows that keep their vectors, as only time or place changed, then the others."""
        renewed, others = [], []
        for item, content in zip(items, prepared, strict=True):
            row = None
            if content is None:
                row = self.current.get(item.key) if item.key in self.known else self.homeless.pop(item.content, None)
            if row is not None and row.content == item.content:
                item.id = row.id
                self.gone.pop(row.key, None)
                self.bad.pop(row.key, None)
                renewed.append(item)
            else:
                others.append((item, content))
        gone = self.writer.refresh(renewed)
        moved = {item.key for item in renewed} - self.known.keys() - {item.key for item in gone}
        self.report.moved += len(moved)
        self._write_vectors([*others, *((item, None) for item in gone)])

    def _write_vectors(self, contents: list[tuple[Item, Any]]) -> None:
        """Writes rows with the vector of another file of the same content or of the model, in one transaction."""
        copied, new = [], []
        for item, content in contents:
            item.encoded_by = self.about.fingerprints[item.kind]
            known = self.source.vectors.get(item.key)
            vector = self.writer.vector_of(item) if known is None and content is None else known
            if vector is not None:
                copied.append((item, vector))
                continue
            while content is None:  # the row that had this content was changed or removed meanwhile
                self.contents.discard(item.content)
                content = self._read(item)
            if isinstance(content, SaySeeError):
                self._refuse(item, content)
            else:
                new.append((item, content))
        items, vectors = [item for item, _ in copied], [vector for _, vector in copied]
        if new:
            encoded = self.encoder.encode_prepared(new[0][0].kind, [content for _, content in new])
            for (item, _), vector in zip(new, encoded, strict=True):
                if np.isfinite(vector).all():
                    items.append(item)
                    vectors.append(vector)
                    self.report.encoded += 1
                else:
                    message = f"{printable(self.source.root / item.path)}: the model has no finite vector for it"
                    self._refuse(item, MediaError("not-finite", message))
        if items:
            with self.writer.transaction():
                self.writer.put(items, np.stack(vectors))

    def _refuse(self, item: Item, error: SaySeeError) -> None:
        suffix = os.path.splitext(item.path)[1].lower()
        row = self.known.get(item.key)
        if error is _VIDEO or (error.code == "undecodable" and kind_by_suffix(item.path) is None):
            self.report.ignored[suffix or NO_SUFFIX] += 1
        else:
            self.report.refused.append((printable(self.source.root / item.path), str(error)))
        if row is None:
            return
        if error.code in ("unreadable", "broken-link"):
            self.report.missing[os.path.dirname(item.path) or "."] += 1
        elif error.code == "missing":
            self.gone[item.key] = row
        else:  # its vector is of a content that no longer exists
            self.bad[item.key] = row

    def _status(self, item: Item) -> tuple[int, int] | None:
        try:
            status = os.stat(self.source.root / item.path)
        except (OSError, ValueError):
            return None
        return status.st_size, status.st_mtime_ns


def _batches(items: list[Item], size: int) -> Iterator[list[Item]]:
    """Batches of one kind."""
    for kind in KINDS:
        of_kind = [item for item in items if item.kind == kind]
        yield from (of_kind[start : start + size] for start in range(0, len(of_kind), size))
