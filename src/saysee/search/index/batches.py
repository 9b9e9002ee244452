"""Writes files to an index in batches: threads read and decode ahead while the model encodes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from saysee.encoding.encoder import Encoder
from saysee.encoding.reading import read_ahead
from saysee.errors import MediaError, SaySeeError
from saysee.files import STILL_SECONDS, fingerprint
from saysee.media.formats import Kind, audio_container, kind_by_suffix
from saysee.media.metadata import is_video, read_exif
from saysee.media.source import printable, reason
from saysee.search.index.about import About, IndexReport
from saysee.search.index.index import open_store
from saysee.search.index.readers.item_list import ItemList, Listed, State
from saysee.search.index.sources import NO_SUFFIX, is_upload
from saysee.search.index.store import Item, Key, Tables, Vectors, batched

_VIDEO = MediaError("undecodable", "is a video")

_Found = tuple[Listed, Vectors | None, Any]  # the vector of its content if that is known; else what the model takes


class BatchWriter:
    """Brings rows up to date with their files. Each batch is one transaction.

    ``about`` holds once all rows are written, ``marks`` is what is known of the rows, and ``vectors`` are unit vectors
    [D] of items that the model has encoded already.
    """

    def __init__(
        self,
        writer: Tables,
        encoder: Encoder,
        about: About,
        marks: ItemList | Done,
        report: IndexReport,
        vectors: Mapping[Key, Vectors] | None = None,
    ) -> None:
        self.writer, self.encoder, self.about, self.report = writer, encoder, about, report
        self.root, self._is_folder, self._vectors = Path(about.root), about.source == ".", vectors or {}
        self._marks = marks

    def write(self, batches: Iterable[list[Listed]], workers: int) -> Iterator[int]:
        """Writes batches, each of one kind; yields the number of files of each."""
        for found, prepared in read_ahead(self._with_vectors(batches, workers), self._prepare, workers):
            self._write([(one, vector, content) for (one, vector), content in zip(found, prepared, strict=True)])
            yield len(found)

    def _with_vectors(
        self, batches: Iterable[list[Listed]], workers: int
    ) -> Iterator[list[tuple[Listed, Vectors | None]]]:
        """The batches, each item with the vector of its content, if that is known."""
        for batch, errors in read_ahead(batches, self._examine, workers):
            for one, error in zip(batch, errors, strict=True):
                if error is not None:
                    self._refuse(one, error)
            good = [one for one, error in zip(batch, errors, strict=True) if error is None]
            made_by, given = self.about.fingerprints[batch[0].item.kind], self._vectors
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
            if not path.is_file() or (status := self.status(item.path)) is None:
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
                video = self._is_folder and not is_upload(item) and is_video(file, audio_container(file))
            return _VIDEO if video else None

        return self._or_error(item, read)  # type: ignore[no-any-return]

    def _prepare(self, found: tuple[Listed, Vectors | None]) -> Any:
        """What the model takes of a file whose vector is not known; an error where it cannot be used."""
        item, vector = found[0].item, found[1]
        return self._or_error(item, partial(self.encoder.prepare, item.kind)) if vector is None else None

    def _or_error(self, item: Item, read: Callable[[Path], Any]) -> Any:
        path = self.root / item.path
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
        renewed, others = list[_Found](), list[_Found]()
        for each in found:
            one, vector, _ = each
            row = one.row if one.hash == one.item.hash else None
            if one.row is None and vector is not None:
                row = self._marks.take_leaving(one.item.kind, one.item.hash)
            if vector is None or row is None:
                others.append(each)
            else:
                one.item.id = row
                renewed.append(each)
        lost = {item.key for item in self.writer.refresh([one.item for one, *_ in renewed])}
        self.report.moved += sum(one.row is None and one.item.key not in lost for one, *_ in renewed)
        self._write_vectors(others + [each for each in renewed if each[0].item.key in lost])

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
            self._marks.mark("gone" if error.code == "missing" else "bad", one.number)

    def _shown(self, item: Item) -> str:
        return printable(self.root / item.path)

    def status(self, path: str) -> tuple[int, int] | None:
        """Size and time of a file as of an :class:`Item`; None where it cannot be read."""
        try:
            status = os.stat(os.path.join(self.root, path))
        except (OSError, ValueError):
            return None
        return status.st_size, status.st_mtime_ns


@dataclass(slots=True)
class Part:
    """Files, each with what is known of its row: what another process needs to update these rows."""

    about: About
    listed: list[Listed]
    batch_size: int


@dataclass(slots=True)
class Done:
    """What another process did with a :class:`Part`; there it is in place of the list of items."""

    report: IndexReport
    count: int  # of its files
    new: list[Item] = field(default_factory=list)  # the files that had no row
    states: dict[int, State] = field(default_factory=dict)  # by number, where they have changed

    def take_leaving(self, kind: Kind, content: str | None) -> int | None:
        """None: rows of other files are known to the process that made the parts."""

    def mark(self, state: State, *numbers: int) -> None:
        """Gives a state to what has these numbers."""
        self.states |= dict.fromkeys(numbers, state)


Spread = Callable[[Iterator[Part]], Iterator[Done]]
"""Updates the parts of an index in other processes; yields what was done, in any order."""


def update_part(encoder: Encoder, to: str, part: Part) -> Done:
    """Updates a part of an index that another process has begun; SaySeeError if it cannot be written."""
    with open_store(to).writing() as writer:
        done = Done(IndexReport(writer.place), len(part.listed))
        batches = BatchWriter(writer, encoder, part.about, done, done.report)
        for _ in batches.write(batched(part.listed, part.batch_size), encoder.workers):
            pass
    done.new = [one.item for one in part.listed if one.row is None]
    return done
