"""Queries as a user names them: sound and picture files, folders of these, and texts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from saysee.data.corpora.finding import AUDIO_SUFFIXES, IMAGE_SUFFIXES, Listing
from saysee.errors import MediaError, SaySeeError
from saysee.media.audio import load_audio
from saysee.media.images import load_image
from saysee.search.index import Hit, Index
from saysee.search.sources import kind_of
from saysee.search.store import Kind

_CHUNK = 256
"""Queries that are decoded, encoded and searched together."""


@dataclass(slots=True)
class Answers:
    """What was found.

    Attributes:
        found: each query's name with its hits, in the order asked.
        refused: reason for each file that cannot be used.
    """

    found: list[tuple[str, list[Hit]]] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        results = [{"query": query, "hits": [hit.to_dict() for hit in hits]} for query, hits in self.found]
        return {"results": results, "refused": self.refused}

    def to_tables(self) -> list[Table]:
        """A table for each query."""
        tables = []
        for query, hits in self.found:
            table = Table("score", "path", title=Text(query), title_justify="left")
            for hit in hits:
                table.add_row(f"{hit.score:.3f}", Text(hit.path))  # a name may hold [brackets]
            tables.append(table)
        return tables


def answer(
    index: Index,
    places: Sequence[str],
    texts: Sequence[str] = (),
    *,
    k: int = 10,
    where: str | None = None,
    kind: Kind | None = None,
) -> Answers:
    """Searches for files, folders of files, and texts.

    In a folder, a bad file is reported and leaves the others alone; a bad file that was named itself is refused.

    Args:
        index: where to search.
        places: sounds, pictures, folders.
        texts: in writing.
        k: most hits for each query.
        where: as for :meth:`Index.search`.
        kind: likewise.

    Raises:
        SaySeeError: no query; a file that is neither sound nor picture, or cannot be used; else as ``Index.search``.
    """
    files, named = _expand(places)
    if not files and not texts:
        raise SaySeeError("nothing to search for; name a sound, a picture or a folder of them, or give --text")
    answers = Answers()
    found: dict[str, list[Hit]] = {}
    for sort in ("clip", "image"):
        mine = [path for path in files if kind_of(path) == sort]
        for start in range(0, len(mine), _CHUNK):
            loaded = _load(mine[start : start + _CHUNK], named, answers)
            if loaded:
                sought: dict[str, Any] = {"speech" if sort == "clip" else "images": list(loaded.values())}
                hits = index.search(**sought, k=k, where=where, kind=kind)
                found |= dict(zip(loaded, hits, strict=True))
    answers.found = [(path, found[path]) for path in files if path in found]
    if texts:
        hits = index.search(texts=texts, k=k, where=where, kind=kind)
        answers.found += list(zip(texts, hits, strict=True))
    if not answers.found:
        raise SaySeeError(f"none of {len(files)} files can be searched for; the first: {answers.refused[0]}")
    return answers


def _expand(places: Sequence[str]) -> tuple[list[str], set[str]]:
    """The files in order, each once, and those that were named themselves."""
    files: dict[str, None] = {}
    named = set()
    for place in places:
        if Path(place).is_dir():
            inside = Listing(place, "what to search for").files(AUDIO_SUFFIXES | IMAGE_SUFFIXES)
            if not inside:
                raise SaySeeError(f"{place}: no sound and no picture there; name another folder")
            files |= dict.fromkeys(sorted(inside))
            continue
        if kind_of(place) is None:
            raise SaySeeError(f"{place}: neither a sound nor a picture by its suffix; write --text before a text")
        files[place] = None
        named.add(os.fspath(place))
    return list(files), named


def _load(paths: Sequence[str], named: set[str], answers: Answers) -> dict[str, Any]:
    loaded: dict[str, Any] = {}
    for path in paths:
        try:
            loaded[path] = load_image(path) if kind_of(path) == "image" else load_audio(path)
        except MediaError as error:
            if path in named:
                raise
            answers.refused.append(str(error))
    return loaded
