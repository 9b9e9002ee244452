"""Which files an index is of: those of a folder or of a manifest, and uploads, which were added one by one.

The files of uploads have the hash of their content for a name. That distinguishes them from the files of the source, so
bringing the index up to date with that keeps them.
"""

import hashlib
import json
import logging
import mimetypes
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from saysee.data.manifest import OPTIONAL, read_rows
from saysee.errors import MediaError, SaySeeError
from saysee.media.folders import Walk
from saysee.media.formats import AUDIO_SUFFIXES, IMAGE_SUFFIXES, Kind, file_kind, kind_by_suffix
from saysee.media.source import opened, printable
from saysee.search.index.about import About, IndexReport, counted
from saysee.search.index.readers.item_list import ItemList
from saysee.search.index.store import Item, Key, Vectors, is_database, storable

logger = logging.getLogger(__name__)

UPLOADS_FOLDER = "uploads"  # in the folder of the index, where no other is named
NO_SUFFIX = "without suffix"  # the name under which such files are counted
_RAW = """.3fr .aae .arw .cr2 .cr3 .crw .dcr .dng .erf .fff .iiq .k25 .kdc .mef .mos .mrw .nef .nrw .orf .pef .raf .raw
    .rw2 .rwl .sr2 .srf .srw .thm .x3f .xmp"""
"""Raw images, which look like TIFF, and what cameras and programs write beside images."""
_TYPES = mimetypes.MimeTypes().types_map[True].items()
_OTHERS = frozenset(_RAW.split()) | {
    suffix
    for suffix, name in _TYPES
    if not name.startswith(("image/", "audio/")) and name != "application/octet-stream"
}
"""Suffixes of documents, programs, archives and so on, which are not opened: those that Python knows."""
_WATCH_SECONDS, _WATCH_SHARE = 2.0, 10
"""Least time between two listings of a watched folder, and the times as long that it waits as a listing took."""


@dataclass(frozen=True, slots=True)
class Source:
    """What is to be indexed."""

    root: Path  # folder that relative paths start from, absolute
    name: str  # "." for the folder itself, else the manifest's name in it
    items: ItemList  # the images and clips, each once
    place: str  # the folder or manifest as the user named it, for messages
    exclude: Sequence[str] = ()  # patterns of files and folders that are not indexed, beside the usual ones
    ignored: Counter[str] = field(default_factory=Counter)  # how many files of each suffix are neither image nor clip
    # excluded, unreadable: as of a :class:`saysee.media.folders.Walk`
    excluded: Counter[str] = field(default_factory=Counter)
    unreadable: dict[str, str] = field(default_factory=dict)
    # unit vectors [D] of items that the index's model has encoded already
    vectors: Mapping[Key, Vectors] = field(default_factory=dict)

    @property
    def is_folder(self) -> bool:
        """Whether the files of a folder are indexed, not those of a manifest."""
        return self.name == "."

    def unreadable_above(self, path: str) -> str | None:
        """The place in ``unreadable`` at or above a path; None if there is none."""
        places = [path, *map(str, PurePosixPath(path).parents)] if self.unreadable else []
        return next((place for place in places if place in self.unreadable), None)


def find_source(place: str | os.PathLike[str], exclude: Sequence[str] = ()) -> Source:
    """The images and clips of a folder, or of a manifest (.parquet, .jsonl).

    In a folder the suffix of a file decides whether it is an image or a clip, or one of ``_OTHERS``; if it does not,
    the first bytes do. A clip of a manifest has all columns of its row as metadata. An image has those on which all its
    rows agree. Raises SaySeeError if there is no such place, or no image and no clip in it; or for patterns to exclude
    of a manifest.
    """
    if is_database(place):  # it may hold a password, so it is not repeated
        raise SaySeeError("a database's address cannot be indexed; name a folder or manifest, then --to ADDRESS")
    path = Path(place)
    if path.is_dir() or not path.exists():
        return _of_folder(path, os.fspath(place), exclude)
    if exclude:
        raise SaySeeError(f"{place}: --exclude is for folders; remove the rows from the manifest")
    return Source(Path(os.path.abspath(path.parent)), path.name, _of_manifest(path), os.fspath(place))


def watch_index(
    update: Callable[[], IndexReport],
    place: str | os.PathLike[str],
    exclude: Sequence[str] = (),
    wait: Callable[[float], object] = time.sleep,
) -> Iterator[IndexReport]:
    """Keeps an index up to date: yields a report at first, and after each change of the files.

    The files are listed again and again, as network drives report no changes; the index is updated once two listings in
    a row are the same. Raises SaySeeError if the first update fails. A later error, such as of a drive that is gone, is
    logged once, and the update is tried again.
    """
    done: object = None
    before: object = None
    logged = ""
    while True:
        start = time.monotonic()
        try:
            now = _state_of(place, exclude)
            if now != done and (done is None or now == before):
                yield update()
                done = now
            if now == done:
                logged = ""
        except SaySeeError as error:
            if done is None:
                raise
            now = None
            if str(error) != logged:
                logged = str(error)
                logger.warning("%s; trying again", error)
        before = now
        wait(max(_WATCH_SECONDS, _WATCH_SHARE * (time.monotonic() - start)))


def _state_of(place: str | os.PathLike[str], exclude: Sequence[str]) -> object:
    """What changes with the files of a source: a hash of their names, sizes and times."""
    source, state = find_source(place, exclude), 0
    for path in (one.item.path for one in source.items.select("listed")) if source.is_folder else [source.name]:
        try:
            status = os.stat(source.root / path)
            found = (path, status.st_size, status.st_mtime_ns)
        except OSError:
            found = (path, 0, 0)
        state ^= int.from_bytes(hashlib.blake2b(repr(found).encode()).digest(), "big")  # in any order
    return state, list(source.unreadable)


def root_of(about: About, folder: Path | None, first: str | None) -> Path:
    """Where the relative paths of an index start from now: the place at which its file ``first`` exists.

    Index and files may have moved together, so the place relative to the index is tried first.
    """
    places = list(_places(about.root, about.root_beside, folder))
    if first is not None:
        for root in places:
            if (root / first).exists():
                return root
        places.reverse()  # that file has gone; the index alone may have moved into any folder
    return next((root for root in places if root.is_dir()), Path(about.root))


def model_of(about: About, index: str, folder: Path | None) -> str:
    """Folder or hub name of the index's model now; SaySeeError if the folder no longer exists."""
    if about.model_beside is None and not os.path.isabs(about.model):
        return about.model
    for place in _places(about.model, about.model_beside, folder):
        if place.is_dir():
            return os.fspath(place)
    raise SaySeeError(f"{index}: its model is no longer at {about.model}; name its place by --model")


def beside(place: Path, folder: Path | None) -> str | None:
    """A place relative to the folder of the index; None on another drive, and for an index in a database."""
    try:
        return None if folder is None else os.path.relpath(place, folder)
    except ValueError:
        return None


def _places(absolute: str, relative: str | None, folder: Path | None) -> Iterator[Path]:
    if relative is not None and folder is not None:
        yield Path(os.path.abspath(folder / relative))
    yield Path(absolute)


def _of_folder(folder: Path, place: str, exclude: Sequence[str]) -> Source:
    walk, items = Walk(folder, "what to index", exclude), ItemList()
    ignored: Counter[str] = Counter()

    kinds: dict[str, Kind | None] = {suffix: kind_by_suffix(f"a{suffix}") for suffix in IMAGE_SUFFIXES | AUDIO_SUFFIXES}

    def files() -> Iterator[Key]:
        for path in walk:
            if (kind := kinds.get(path[path.rfind(".") :].lower())) is None:
                suffix = os.path.splitext(path)[1].lower()
                if suffix in _OTHERS or (kind := _kind_by_content(path)) is None:
                    ignored[suffix or NO_SUFFIX] += 1
                    continue
            yield kind, walk.relative(path)

    items.add_files(files())
    if not len(items):
        others = f" ({counted(ignored)})" if ignored else ""
        raise SaySeeError(f"{printable(folder)}: no image and no clip there{others}; name the folder that holds them")
    root = Path(os.path.abspath(folder))
    return Source(root, ".", items, place, exclude, ignored, walk.excluded, walk.unreadable)


def _kind_by_content(path: str) -> Kind | None:
    try:
        with opened(path, "image") as (file, _):
            found = file_kind(file)
    except (MediaError, OSError):
        return None
    return None if found is None else found.kind


def _of_manifest(path: Path) -> ItemList:
    items = ItemList()
    for row in read_rows(path):
        columns = {name: getattr(row, name) for name in ("image_id", "split", *OPTIONAL)} | dict(row.extra)
        values: dict[str, Any] = storable({name: value for name, value in columns.items() if value is not None})
        image = Item("image", _normal(row.image), metadata=values)
        if not items.add(image) and (found := items.find([image])[0]) is not None:
            before = json.loads(found[1] or "{}")
            common = {name: value for name, value in before.items() if values.get(name) == value}
            if common != before:
                items.set_metadata(found[0], common)
        items.add(Item("clip", _normal(row.clip), metadata=values))
    return items


def _normal(path: str) -> str:
    return os.path.normpath(path).replace(os.sep, "/")


def vanished_folder(source: Source) -> Callable[[str], str | None]:
    """Finds the folder that has vanished whole, and a file of this path with it: a drive may just not be mounted."""

    @lru_cache(maxsize=10_000)
    def has_vanished(folder: str) -> bool:
        if source.items.has_below(folder):
            return False
        try:
            return not os.listdir(source.root / folder)
        except OSError:
            return True

    def of(path: str) -> str | None:
        above = map(str, reversed(PurePosixPath(path).parents)) if source.is_folder else ()
        return next(filter(has_vanished, above), None)

    return of


def is_upload(item: Item) -> bool:
    """Whether a row was added one by one."""
    return item.hash is not None and item.hash in item.path and PurePosixPath(item.path).stem == item.hash


def place_of_upload(item: Item, uploads: Path | None) -> Path | None:
    """Where the file of such a row lies in a folder of uploads, also where the index alone was moved, or None."""
    if uploads is None or not is_upload(item):
        return None
    path = uploads / PurePosixPath(item.path).name
    return path if path.is_file() else None


def find_upload(row: Item, root: Path, index: Path | None) -> str | None:
    """Where the file of a row that was added one by one is now, as a row names it; None if it is gone, or another."""
    if not is_upload(row):
        return None
    if (root / row.path).is_file():
        return row.path
    moved = place_of_upload(row, None if index is None else index / UPLOADS_FOLDER)
    return None if moved is None else path_from(root, moved)


def path_from(root: Path, file: Path) -> str:
    """A file as a row names it: with forward slashes, relative to the root, or absolute on another drive."""
    return (beside(file, root) or os.path.abspath(file)).replace(os.sep, "/")
