"""Brings an index up to date with its files: the model encodes only what is new or changed.

Threads read and decode ahead while the model encodes. Each batch is one transaction.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from saysee.encoding.encoder import Encoder
from saysee.encoding.reading import read_ahead
from saysee.errors import SaySeeError
from saysee.files import STILL_SECONDS, fingerprint
from saysee.log import ProgressBar, progress_bar
from saysee.media.formats import Kind
from saysee.media.source import printable
from saysee.search.index.index import open_store
from saysee.search.index.sources import Source, beside, find_source, root_of, with_uploads
from saysee.search.index.store import KINDS, About, Item, Tables, Vectors


@dataclass(slots=True)
class IndexReport:
    """What an indexing run did.

    Attributes:
        index: its folder or address.
        images, clips: rows of the index after the run.
        encoded: files that the model encoded.
        kept: files that had not changed.
        moved: files found at a new place, which keep their vectors.
        removed: rows whose file no longer exists or can no longer be used.
        refused: path and reason of each file that cannot be used.
        search: how the index is searched, by kind.
        notes: warnings, such as of what could not be checked.
    """

    index: str
    images: int = 0
    clips: int = 0
    encoded: int = 0
    kept: int = 0
    moved: int = 0
    removed: int = 0
    refused: list[tuple[str, str]] = field(default_factory=list)
    search: dict[Kind, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        refused = [{"path": path, "reason": reason} for path, reason in self.refused]
        return asdict(self) | {"refused": refused}

    def to_line(self) -> str:
        """One line for the terminal."""
        how = "; ".join(f"{kind}s: {text}" for kind, text in self.search.items())
        return (
            f"{self.index}: {self.images:,} images and {self.clips:,} clips ({self.encoded:,} encoded, "
            f"{self.kept:,} unchanged, {self.moved:,} moved, {self.removed:,} removed, {len(self.refused):,} refused); "
            f"{how}"
        )


def update_index(
    encoder: Encoder,
    place: str | os.PathLike[str] | Source,
    to: str | os.PathLike[str],
    *,
    batch_size: int = 64,
    workers: int | None = None,
) -> IndexReport:
    """Creates an index of the files of a folder or manifest, or brings one up to date.

    Killed at any moment, it loses the current batch at most; the same call resumes. Files that cannot be used are
    reported and skipped.

    Args:
        encoder: the model.
        place: a folder or a manifest, or what :func:`saysee.search.index.sources.find_source` found there.
        to: folder of the index, or ``postgresql://user@host/database?schema=name``.
        batch_size: files encoded, and committed, together.
        workers: threads that decode; by default as many as there are cores, up to 8.

    Raises:
        SaySeeError: there is no file that can be used; the index is of another model or of other files; another process
            writes it; the disk is full.
    """
    if batch_size < 1 or (workers is not None and workers < 1):
        raise SaySeeError(f"batch size {batch_size} and workers {workers} must be at least 1")
    source = place if isinstance(place, Source) else find_source(place)
    store = open_store(to)
    with store.writing() as writer:
        report = IndexReport(index=store.place)
        known = writer.known() if writer.about else {}
        source = replace(source, items=with_uploads(source.items, known.values(), source.root, writer.folder))
        about = _begin(writer, encoder, source, known, report)
        _Run(writer, encoder, source, known, report).go(batch_size, workers or min(8, os.cpu_count() or 1))
        finish(writer, about, report)
    if not report.images and not report.clips:
        path, reason = report.refused[0]
        raise SaySeeError(
            f"{source.place}: none of {len(report.refused)} files can be used; the first is {path} ({reason})"
        )
    return report


def finish(writer: Tables, about: About, report: IndexReport) -> None:
    """Notes which model made all vectors, updates the fast copies, and counts the rows."""
    if writer.about != about:
        writer.set_about(about)
    report.search = writer.make_ready()
    counts = writer.counts()
    report.images, report.clips = counts["image"], counts["clip"]


def begin_about(writer: Tables, encoder: Encoder, root: Path, source: str, precision: str) -> About:
    """What holds for an index of these files by this model."""
    local = os.path.isdir(encoder.name)
    return About(
        model=os.path.abspath(encoder.name) if local else encoder.name,
        model_beside=beside(Path(encoder.name), writer.folder) if local else None,
        fingerprints={kind: encoder.fingerprint(kind) for kind in KINDS},
        dimension=encoder.dimension,
        precision=precision,
        root=os.fspath(root),
        root_beside=beside(root, writer.folder),
        source=source,
    )


def _begin(
    writer: Tables, encoder: Encoder, source: Source, known: dict[tuple[Kind, str], Item], report: IndexReport
) -> About:
    """What holds for the index once this run is finished."""
    before = writer.about
    if before is not None:
        before.check(encoder, writer.place)
        check_same_source(writer, before, source.root, source.name, known)
    about = begin_about(writer, encoder, source.root, source.name, before.precision if before else "float32")
    others = Counter(item.kind for item in known.values() if item.encoded_by != about.fingerprints[item.kind])
    for kind, count in others.items():
        report.notes.append(f"{count:,} {kind}s of the index are of another model, and are encoded again")
    now = replace(about, fingerprints=before.fingerprints) if before and others else about
    if now != before:
        writer.set_about(now)
    return about


def check_same_source(
    writer: Tables, before: About, root: Path, name: str, known: dict[tuple[Kind, str], Item]
) -> None:
    """Refuses files of another place while those of the index still exist: they would all be removed from it."""
    first = next((item.path for item in known.values()), None)
    old = root_of(before, writer.folder, first)
    there = (old / before.source).exists()
    if known and there and (os.path.realpath(old), before.source) != (os.path.realpath(root), name):
        raise SaySeeError(
            f"{writer.place}: is an index of {os.path.normpath(old / before.source)}; name another place by --to"
        )


@dataclass(slots=True)
class _Ready:
    """A file that a thread has read: of known content, or prepared for the model, or refused."""

    item: Item
    prepared: Any = None
    reason: str | None = None


class _Run:
    """One run over the files that are new or may have changed."""

    def __init__(
        self,
        writer: Tables,
        encoder: Encoder,
        source: Source,
        known: dict[tuple[Kind, str], Item],
        report: IndexReport,
    ) -> None:
        self.writer, self.encoder, self.source = writer, encoder, source
        self.known, self.report = known, report
        self.wanted = {(item.kind, item.path) for item in source.items}
        self.contents = {(item.kind, item.hash) for item in known.values() if self._is_mine(item)}
        self.leaving = {key: item for key, item in known.items() if key not in self.wanted}
        self.homeless = {
            (item.kind, item.hash): key
            for key, item in self.leaving.items()
            if item.hash is not None and self._is_mine(item)
        }

    def go(self, batch_size: int, workers: int) -> None:
        todo = self._compare()
        with progress_bar("indexing", len(todo)) as bar:
            for _, batch in read_ahead(_batches(todo, batch_size), self._look, workers):
                self._commit(batch, bar)
        leaving = [item for key, item in self.leaving.items() if self._is_gone(key)]
        self.writer.remove(leaving)
        self.report.removed += len(leaving)

    def _is_gone(self, key: tuple[Kind, str]) -> bool:
        """Whether a row that is not wanted has no file.

        Another process may have indexed a file that came into the folder after it was listed.
        """
        by_listing = self.source.name != "." or key in self.wanted
        return by_listing or not (self.source.root / key[1]).exists()

    def _is_mine(self, row: Item) -> bool:
        """Whether this run's model made the vector of a row."""
        return row.encoded_by == self.encoder.fingerprint(row.kind)

    def _compare(self) -> list[Item]:
        """The items whose size or time has changed; the rows of the others get their current metadata."""
        todo: list[Item] = []
        renewed: list[Item] = []
        for item in self.source.items:
            before = self.known.get((item.kind, item.path))
            status = self._status(item)
            if (
                before is None
                or status is None
                or (before.size, before.mtime_ns) != status
                or not self._is_mine(before)
            ):
                todo.append(item)
                continue
            self.report.kept += 1
            if before.metadata != item.metadata:
                renewed.append(replace(before, metadata=item.metadata))
        todo += self._refresh(renewed)
        return todo

    def _refresh(self, items: list[Item]) -> list[Item]:
        """Updates rows, and returns those that another process has removed, which have to be encoded again."""
        gone = self.writer.refresh(items) if items else []
        self.report.kept -= len(gone)
        for item in gone:
            self.known.pop((item.kind, item.path), None)
        return gone

    def _status(self, item: Item) -> tuple[int, int] | None:
        try:
            status = os.stat(self.source.root / item.path)
        except (OSError, ValueError):
            return None
        return status.st_size, status.st_mtime_ns

    def _look(self, item: Item) -> _Ready:
        path = self.source.root / item.path
        try:
            item.path.encode()
            status = self._status(item)
            if status is not None and path.is_file():
                item.size, item.mtime_ns = status
                if time.time_ns() - status[1] < STILL_SECONDS * 1e9:  # then its content is looked at again
                    item.mtime_ns = None
                item.hash = _content(path)
                if (item.kind, item.hash) in self.contents:
                    return _Ready(item)
            return _Ready(item, self.encoder.prepare(item.kind, path))
        except UnicodeEncodeError:
            return _Ready(item, reason=f"{printable(path)}: its name is not valid Unicode; rename it")
        except SaySeeError as error:
            return _Ready(item, reason=str(error))
        except OSError as error:
            return _Ready(item, reason=f"{printable(path)}: cannot be read ({error.strerror or error}); copy it again")

    def _commit(self, batch: list[_Ready], bar: ProgressBar) -> None:
        """Writes a batch: first the files that only have a new time or place, then those that need a vector."""
        renewed, new = [], []
        for ready in batch:
            if ready.reason is not None:
                self._refuse(ready)
            elif (before := self._same(ready)) is not None:
                ready.item.id = before.id
                renewed.append(ready.item)
            else:
                new.append(ready)
        new += [_Ready(item) for item in self._refresh(renewed)]
        self._write_new(new)
        bar.advance(len(batch))

    def _refuse(self, ready: _Ready) -> None:
        assert ready.reason is not None
        self.report.refused.append((printable(self.source.root / ready.item.path), ready.reason))
        key = (ready.item.kind, ready.item.path)
        if key in self.known:  # its vector is of a content that no longer exists
            self.leaving[key] = self.known[key]

    def _same(self, ready: _Ready) -> Item | None:
        """The row that already has this content: the file's own, or one whose file was moved."""
        item = ready.item
        before = self.known.get((item.kind, item.path))
        if before is not None:
            if before.hash != item.hash or item.hash is None or not self._is_mine(before):
                return None
            self.report.kept += 1
            return before
        key = self.homeless.pop((item.kind, item.hash), None) if item.hash is not None else None
        if key is None:
            return None
        self.report.moved += 1
        return self.leaving.pop(key)

    def _write_new(self, new: list[_Ready]) -> None:
        """Writes rows with vectors of the model, or of another file of the same content, in one transaction."""
        items: list[Item] = []
        vectors: list[Vectors] = []
        unknown = []
        for ready in new:
            item = ready.item
            item.encoded_by = self.encoder.fingerprint(item.kind)
            found = None
            if ready.prepared is None and item.hash is not None:
                found = self.writer.vector_of(item.kind, item.hash, item.encoded_by)
            if found is not None:
                items.append(item)
                vectors.append(found)
            elif ready.prepared is not None or self._prepare_late(ready):
                unknown.append(ready)
        self.report.kept += len(items)
        self.report.encoded += len(unknown)
        if unknown:
            vectors += list(self.encoder.encode_prepared(unknown[0].item.kind, [ready.prepared for ready in unknown]))
            items += [ready.item for ready in unknown]
        if items:
            with self.writer.transaction():
                self.writer.put(items, np.stack(vectors))

    def _prepare_late(self, ready: _Ready) -> bool:
        """Prepares a file whose content another row had until it was overwritten or removed in this run."""
        try:
            ready.prepared = self.encoder.prepare(ready.item.kind, self.source.root / ready.item.path)
        except SaySeeError as error:
            ready.reason = str(error)
            self._refuse(ready)
            return False
        return True


def _batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    batch: list[Item] = []
    for item in items:
        if batch and (len(batch) == size or item.kind != batch[0].kind):
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch


def _content(path: Path) -> str:
    with path.open("rb") as file:
        return fingerprint(file)
