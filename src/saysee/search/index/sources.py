"""Which files an index is of: those of a folder or of a manifest, and uploads, which were added one by one.

The files of uploads have the hash of their content for a name. That distinguishes them from the files of the source, so
bringing the index up to date with that keeps them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from saysee.data.manifest import OPTIONAL, Manifest, Row
from saysee.errors import SaySeeError
from saysee.media.folders import Listing
from saysee.media.formats import AUDIO_SUFFIXES, IMAGE_SUFFIXES
from saysee.search.index.about import About
from saysee.search.index.store import Item, is_database

UPLOADS_FOLDER = "uploads"
"""In the folder of the index, where no other is named."""


@dataclass(frozen=True, slots=True)
class Source:
    """What is to be indexed.

    Attributes:
        root: folder that relative paths start from, absolute.
        name: "." for the folder itself, else the manifest's name in it.
        items: the images and clips, each once.
        place: the folder or manifest as the user named it, for messages.
    """

    root: Path
    name: str
    items: list[Item]
    place: str


def find_source(place: str | os.PathLike[str]) -> Source:
    """The images and clips of a folder, or of a manifest (.parquet, .jsonl).

    A clip of a manifest has all columns of its row as metadata. An image has those on which all its rows agree.

    Raises:
        SaySeeError: no such place, or no image and no clip in it.
    """
    if is_database(place):  # it may hold a password, so it is not repeated
        raise SaySeeError("a database's address cannot be indexed; name a folder or manifest, then --to ADDRESS")
    path = Path(place)
    if path.is_dir() or not path.exists():
        return Source(Path(os.path.abspath(path)), ".", _of_folder(path), os.fspath(place))
    return Source(Path(os.path.abspath(path.parent)), path.name, _of_manifest(Manifest.read(path)), os.fspath(place))


def root_of(about: About, folder: Path | None, first: str | None) -> Path:
    """Where the relative paths of an index start from now.

    Index and files may have moved together, so the place relative to the index is tried first. The first place at which
    a file of the index, ``first``, exists is taken.
    """
    for root in _places(about.root, about.root_beside, folder):
        if (root / first).exists() if first is not None else root.is_dir():
            return root
    return Path(about.root)


def model_of(about: About, index: str, folder: Path | None) -> str:
    """Folder or hub name of the index's model now.

    Raises:
        SaySeeError: the folder no longer exists.
    """
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


def _of_folder(folder: Path) -> list[Item]:
    listing = Listing(folder, "what to index")
    items = [Item("image", listing.relative(path)) for path in listing.files(IMAGE_SUFFIXES)]
    items += [Item("clip", listing.relative(path)) for path in listing.files(AUDIO_SUFFIXES)]
    if not items:
        raise SaySeeError(f"{folder}: no image and no clip there; name the folder that holds them")
    return items


def _of_manifest(manifest: Manifest) -> list[Item]:
    images: dict[str, Item] = {}
    clips = []
    for row in manifest:
        values = _metadata(row)
        image = images.setdefault(_normal(row.image), Item("image", _normal(row.image), metadata=values))
        image.metadata = {name: value for name, value in image.metadata.items() if values.get(name) == value}
        clips.append(Item("clip", _normal(row.clip), metadata=values))
    return [*images.values(), *clips]


def _metadata(row: Row) -> dict[str, Any]:
    columns = {name: getattr(row, name) for name in ("image_id", "split", *OPTIONAL)} | dict(row.extra)
    # PostgreSQL cannot store U+0000, and no caption means it.
    cleaned = {name: value.replace("\0", "") if isinstance(value, str) else value for name, value in columns.items()}
    return {name: value for name, value in cleaned.items() if value is not None}


def _normal(path: str) -> str:
    return os.path.normpath(path).replace(os.sep, "/")


def is_upload(item: Item) -> bool:
    """Whether a row was added one by one."""
    return item.hash is not None and PurePosixPath(item.path).stem == item.hash


def place_of_upload(item: Item, uploads: Path | None) -> Path | None:
    """Where the file of such a row lies in a folder of uploads; None if it is another row, or there is none.

    The path in the row starts from the root of the source's files, so it is wrong once the index alone was moved.
    """
    if uploads is None or not is_upload(item):
        return None
    path = uploads / PurePosixPath(item.path).name
    return path if path.is_file() else None


def with_uploads(items: list[Item], known: Iterable[Item], root: Path, index: Path | None) -> list[Item]:
    """The files of a source, and of the known rows of its index the uploads that are still there."""
    added = {}
    for item in filter(is_upload, known):
        path = item.path
        if not (root / path).is_file():
            moved = place_of_upload(item, None if index is None else index / UPLOADS_FOLDER)
            if moved is None:
                continue
            path = path_from(root, moved)
        added[item.kind, path] = replace(item, path=path, id=0)
    # Where the index lies in its own source, the walk has found them too, without their metadata.
    return [item for item in items if item.key not in added] + list(added.values())


def path_from(root: Path, file: Path) -> str:
    """A file as a row names it: with forward slashes, relative to the root, or absolute on another drive."""
    return (beside(file, root) or os.path.abspath(file)).replace(os.sep, "/")
