"""Brings an index up to date with its files: the model encodes only what is new or changed.

Threads read and decode ahead while the model encodes. Each batch is one transaction.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from saysee.encoding.encoder import Encoder
from saysee.encoding.reading import read_ahead
from saysee.errors import SaySeeError
from saysee.files import STILL_SECONDS, fingerprint
from saysee.log import progress_bar
from saysee.media.formats import Kind
from saysee.media.source import printable
from saysee.search.index.about import About
from saysee.search.index.index import open_store
from saysee.search.index.sources import Source, beside, find_source, root_of, with_uploads
from saysee.search.index.store import KINDS, Item, Key, Tables


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
        workers: threads that decode; None for those of the encoder.

    Raises:
        SaySeeError: there is no file that can be used; the index is of another model or of other files; another process
            writes it; the disk is full.
    """
    if batch_size < 1 or (workers is not None and workers < 1):
        raise SaySeeError(f"batch size {batch_size} and workers {workers} must be at least 1")
    source = place if isinstance(place, Source) else find_source(place)
    store = open_store(to)
    report = IndexReport(store.place, notes=[encoder.warning] if encoder.warning else [])
    with store.writing() as writer:
        about, known = begin(writer, encoder, source.root, source.name)
        others = Counter(row.kind for row in known.values() if row.encoded_by != about.fingerprints[row.kind])
        for kind, count in others.items():
            report.notes.append(f"{count:,} {kind}s of the index are of another model, and are encoded again")
        items = with_uploads(source.items, known.values(), source.root, writer.folder)
        _Run(writer, encoder, about, replace(source, items=items), known, report).go(
            batch_size, workers or encoder.workers
        )
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
    local = os.path.isdir(encoder.name)
    about = About(
        model=os.path.abspath(encoder.name) if local else encoder.name,
        model_beside=beside(Path(encoder.name), writer.folder) if local else None,
        fingerprints={kind: encoder.fingerprint(kind) for kind in KINDS},
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


def _check_same_source(writer: Tables, before: About, root: Path, source: str, known: dict[Key, Item]) -> None:
    """Refuses other files while those of the index still exist: all of them would be removed from it."""
    first = next((row.path for row in known.values()), None)
    old = root_of(before, writer.folder, first)
    there = (old / before.source).exists()
    if known and there and (os.path.realpath(old), before.source) != (os.path.realpath(root), source):
        raise SaySeeError(
            f"{writer.place}: is an index of {os.path.normpath(old / before.source)}; name another place by --to"
        )


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
        self.current = {key: row for key, row in known.items() if row.encoded_by == about.fingerprints[row.kind]}
        self.contents = {row.content for row in self.current.values()}
        listed = {item.key for item in source.items}
        # A file that came into the folder after it was listed may have a row already, of another process.
        self.leaving = {
            key: row
            for key, row in known.items()
            if key not in listed and (source.name != "." or not os.path.exists(source.root / row.path))
        }
        self.homeless = {row.content: row for key, row in self.leaving.items() if key in self.current}

    def go(self, batch_size: int, workers: int) -> None:
        changed = self._find_changed()
        with progress_bar("indexing", len(changed)) as bar:
            for items, prepared in read_ahead(_batches(changed, batch_size), self._read, workers):
                self._write(items, prepared)
                bar.advance(len(items))
        self.writer.remove(list(self.leaving.values()))
        report = self.report
        report.removed = len(self.leaving)
        report.kept = len(self.source.items) - report.encoded - report.moved - len(report.refused)

    def _find_changed(self) -> list[Item]:
        """The items of another size or time, or without a vector of this model. The others get their metadata."""
        changed, renewed = [], []
        for item in self.source.items:
            row = self.current.get(item.key)
            if row is None or self._status(item) != (row.size, row.mtime_ns):
                changed.append(item)
            elif row.metadata != item.metadata:
                renewed.append(replace(row, metadata=item.metadata))
        return changed + self.writer.refresh(renewed)

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
                if item.content in self.contents:
                    return None
            return self.encoder.prepare(item.kind, path)
        except UnicodeEncodeError:
            return SaySeeError(f"{printable(path)}: its name is not valid Unicode; rename it")
        except SaySeeError as error:
            return error
        except OSError as error:
            return SaySeeError(f"{printable(path)}: cannot be read ({error.strerror or error}); copy it again")

    def _write(self, items: Sequence[Item], prepared: Sequence[Any]) -> None:
        """Writes a batch: first the rows that keep their vectors, as only time or place changed, then the others."""
        renewed, others = [], []
        for item, content in zip(items, prepared, strict=True):
            row = None
            if content is None:
                row = self.current.get(item.key) if item.key in self.known else self.homeless.pop(item.content, None)
            if row is not None and row.content == item.content:
                item.id = row.id
                self.leaving.pop(row.key, None)
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
            vector = self.writer.vector_of(item) if content is None else None
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
        self.report.encoded += len(new)
        items, vectors = [item for item, _ in copied + new], [vector for _, vector in copied]
        if new:
            vectors += list(self.encoder.encode_prepared(new[0][0].kind, [content for _, content in new]))
        if items:
            with self.writer.transaction():
                self.writer.put(items, np.stack(vectors))

    def _refuse(self, item: Item, error: SaySeeError) -> None:
        self.report.refused.append((printable(self.source.root / item.path), str(error)))
        if item.key in self.known:  # its vector is of a content that no longer exists
            self.leaving[item.key] = self.known[item.key]

    def _status(self, item: Item) -> tuple[int, int] | None:
        try:
            status = os.stat(self.source.root / item.path)
        except (OSError, ValueError):
            return None
        return status.st_size, status.st_mtime_ns


def _batches(items: list[Item], size: int) -> Iterator[list[Item]]:
    """Batches of one kind."""
    for kind in KINDS:
        same = [item for item in items if item.kind == kind]
        yield from (same[start : start + size] for start in range(0, len(same), size))
