"""Queries of the command line: audio and image files, folders of them, texts, and a recording."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from rich.table import Table
from rich.text import Text

from saysee.errors import MediaError, SaySeeError
from saysee.media.audio import load_audio
from saysee.media.folders import Listing
from saysee.media.formats import AUDIO_SUFFIXES, IMAGE_SUFFIXES, file_kind
from saysee.media.images import load_image
from saysee.media.source import opened
from saysee.search.index.index import Hit, Index
from saysee.search.index.store import KINDS, Kind, is_database
from saysee.search.terminal.microphone import NAME

_CHUNK = 256
"""Files that are decoded, encoded and searched for together."""
_ESCAPED = ("Cc", "Cs", "Zl", "Zp")
"""Unicode categories of characters that end a line, control a terminal or cannot be written to one."""


@dataclass(frozen=True, slots=True)
class QueryResult:
    """One query and its hits.

    Attributes:
        name: path of a file, or the text, or "microphone".
        kind: of the query.
        hits: the best first.
        recording: [T] samples at 16 kHz of a recorded query.
    """

    name: str
    kind: Literal["clip", "image", "text"]
    hits: list[Hit]
    recording: NDArray[np.float32] | None = None

    def to_table(self) -> Table:
        """A table of the hits, titled with the query's name."""
        table = Table("score", "path", title=Text(_one_line(self.name)), title_justify="left")
        for hit in self.hits:
            table.add_row(f"{hit.score:.3f}", Text(_one_line(hit.path)))  # not markup: a name may have [brackets]
        return table


@dataclass(slots=True)
class SearchResults:
    """The results of all queries of a command.

    Attributes:
        results: of a recording, then of files in the order given, then of texts.
        skipped: reason for each file that cannot be used.
    """

    results: list[QueryResult] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        results = [{"query": result.name, "hits": [hit.to_dict() for hit in result.hits]} for result in self.results]
        return {"results": results, "refused": self.skipped}


def run_queries(
    index: Index,
    places: Sequence[str],
    texts: Sequence[str] = (),
    recording: NDArray[np.float32] | None = None,
    *,
    k: int = 10,
    where: str | None = None,
    filters: Sequence[str] = (),
    kind: Kind | None = None,
) -> SearchResults:
    """Searches for files, folders of files, texts and a recording.

    A bad file in a folder is skipped; a bad file that was named itself is an error.

    Args:
        index: where to search.
        places: audio files, image files, folders.
        texts: written queries.
        recording: [T] samples at 16 kHz from the microphone.
        k: most hits for each query.
        where: as for :meth:`Index.search`.
        filters: likewise.
        kind: likewise.

    Raises:
        SaySeeError: no query; a named file that is neither audio nor image, or damaged; else as ``Index.search``.
    """
    files, named = _expand(places)
    if not files and not texts and recording is None:
        raise SaySeeError("no query; name an audio file, an image or a folder of them, or give --text or --record")

    def search(**queries: Any) -> list[list[Hit]]:
        return index.search(**queries, k=k, where=where, filters=filters, kind=kind)

    found = SearchResults()
    if recording is not None:
        (hits,) = search(speech=[recording])
        found.results.append(QueryResult(NAME, "clip", hits, recording))
    for start in range(0, len(files), _CHUNK):
        loaded: dict[str, tuple[Kind, Any]] = {}
        for path in files[start : start + _CHUNK]:
            try:
                loaded[path] = _load(path)
            except MediaError as error:
                if path in named:
                    raise
                found.skipped.append(str(error))
        results: dict[str, QueryResult] = {}
        for side, query_kind in zip(("images", "speech"), KINDS, strict=True):
            paths = [path for path, (file_kind, _) in loaded.items() if file_kind == query_kind]
            if paths:
                hits_of_all = search(**{side: [loaded[path][1] for path in paths]})
                results |= {
                    path: QueryResult(path, query_kind, hits) for path, hits in zip(paths, hits_of_all, strict=True)
                }
        found.results += [results[path] for path in loaded]
    if texts:
        found.results += [
            QueryResult(text, "text", hits) for text, hits in zip(texts, search(texts=texts), strict=True)
        ]
    if not found.results:
        raise SaySeeError(f"none of {len(files)} files can be used as a query; the first: {found.skipped[0]}")
    return found


def _expand(places: Sequence[str]) -> tuple[list[str], set[str]]:
    """The files in order, each once, and those that were named themselves."""
    files: dict[str, None] = {}
    named = set()
    for place in places:
        if Path(place).is_dir():
            inside = Listing(place, "QUERY").files(AUDIO_SUFFIXES | IMAGE_SUFFIXES)
            if not inside:
                raise SaySeeError(f"{place}: no audio file and no image in it; name another folder")
            files |= dict.fromkeys(sorted(inside))
            continue
        if is_database(place):  # it may hold a password, so it is not repeated
            raise SaySeeError("the address of a database cannot be a query; name it once, before the queries")
        files[place] = None
        named.add(os.fspath(place))
    return list(files), named


def _load(path: str) -> tuple[Kind, Any]:
    """The kind of a file, by its content, and its samples or image."""
    try:
        with opened(path, "audio") as (file, name):
            found = file_kind(file)
    except MediaError as error:
        if error.code != "missing":
            raise
        raise MediaError("missing", f"{error}; write --text before a text") from None
    if found is None:
        raise MediaError("undecodable", f"{name}: neither audio nor an image that can be read; convert it")
    return found.kind, load_image(path) if found.kind == "image" else load_audio(path)


def _one_line(text: str) -> str:
    """A name as one line of a table, with escapes for line breaks and other control characters."""
    return "".join(
        character.encode("unicode_escape").decode() if unicodedata.category(character) in _ESCAPED else character
        for character in text
    )
