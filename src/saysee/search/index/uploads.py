"""Pictures and clips that were added to an index one by one, not with a folder or manifest.

Their files have the hash of their content for a name. That tells them from the files of the source, so bringing the
index up to date with that leaves them where they are.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path, PurePosixPath

from saysee.search.index.store import Item

UPLOADS_FOLDER = "uploads"
"""In the folder of the index, where no other is named."""


def is_upload(item: Item) -> bool:
    """Whether a row was added one by one."""
    return item.hash is not None and PurePosixPath(item.path).stem == item.hash


def place_of_upload(item: Item, uploads: Path | None) -> Path | None:
    """Where the file of such a row lies in a folder of uploads; None if it is another row, or there is none.

    The path in the row starts from the root of the source's files, so it leads nowhere once the index alone was moved.
    """
    if uploads is None or not is_upload(item):
        return None
    path = uploads / PurePosixPath(item.path).name
    return path if path.is_file() else None


def with_uploads(items: list[Item], known: Iterable[Item], root: Path, index: Path | None) -> list[Item]:
    """The files of a source, and what was added to its index one by one and is still there.

    Args:
        items: of the source.
        known: rows of the index.
        root: where relative paths start from.
        index: its folder; None for one in a database, whose files stay where the rows say.
    """
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
    return [item for item in items if (item.kind, item.path) not in added] + list(added.values())


def path_from(root: Path, file: Path) -> str:
    """A file as a row names it: with forward slashes from the root on, or absolute on another drive."""
    try:
        return os.path.relpath(os.path.abspath(file), root).replace(os.sep, "/")
    except ValueError:
        return os.path.abspath(file).replace(os.sep, "/")
