"""Queries as a user gives them: sound and picture files, folders of these, texts, and a recording."""

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
from saysee.media.formats import AUDIO_SUFFIXES, IMAGE_SUFFIXES, kind_by_suffix
from saysee.media.images import load_image
from saysee.search.index.index import Hit, Index
from saysee.search.index.store import KINDS, Kind, is_database
from saysee.search.terminal.microphone import NAME

_CHUNK = 256
"""Queries that are decoded, encoded and searched together."""
_BREAKING = ("Cc", "Cs", "Zl", "Zp")
"""Unicode's categories of what ends a line, steers a terminal or cannot be written to one."""


@dataclass(frozen=True, slots=True)
class Found:
    """One query and what it found.

    Attributes:
        name: path of a file, or the text, or "microphone".
        kind: of the query.
        hits: the best first.
        recording: [T] samples at 16 kHz, of a query that lies in no file.
    """

    name: str
    kind: Literal["clip", "image", "text"]
    hits: list[Hit]
    recording: NDArray[np.float32] | None = None

    def to_table(self) -> Table:
        """A table of the hits, under the query's name."""
        table = Table("score", "path", title=Text(_one_line(self.name)), title_justify="left")
        for hit in self.hits:
            table.add_row(f"{hit.score:.3f}", Text(_one_line(hit.path)))  # a name may hold [brackets]
        return table


@dataclass(slots=True)
class Answers:
    """What was found.

    Attributes:
        found: each query with its hits: a recording, then files in the order asked, then texts.
        refused: reason for each file that cannot be used.
    """

    found: list[Found] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        results = [{"query": one.name, "hits": [hit.to_dict() for hit in one.hits]} for one in self.found]
        return {"results": results, "refused": self.refused}


def answer(
    index: Index,
    places: Sequence[str],
    texts: Sequence[str] = (),
    recording: NDArray[np.float32] | None = None,
    *,
    k: int = 10,
    where: str | None = None,
    filters: Sequence[str] = (),
    kind: Kind | None = None,
) -> Answers:
    """Searches for files, folders of files, texts and a recording.

    In a folder, a bad file is reported and leaves the others alone; a bad file that was named itself is refused.

    Args:
        index: where to search.
        places: sounds, pictures, folders.
        texts: in writing.
        recording: [T] samples at 16 kHz from the microphone.
        k: most hits for each query.
        where: as for :meth:`Index.search`.
        filters: likewise.
        kind: likewise.

    Raises:
        SaySeeError: no query; a file that is neither sound nor picture, or cannot be used; else as ``Index.search``.
    """
    files, named = _expand(places)
    if not files and not texts and recording is None:
        raise SaySeeError(
            "nothing to search for; name a sound, a picture or a folder of them, or give --text or --record"
        )
    answers = Answers()
    if recording is not None:
        (hits,) = index.search(speech=[recording], k=k, where=where, filters=filters, kind=kind)
        answers.found.append(Found(NAME, "clip", hits, recording))
    found: dict[str, Found] = {}
    for sort in KINDS:
        mine = [path for path in files if kind_by_suffix(path) == sort]
        for start in range(0, len(mine), _CHUNK):
            loaded = _load(mine[start : start + _CHUNK], named, answers)
            if loaded:
                sought: dict[str, Any] = {"speech" if sort == "clip" else "images": list(loaded.values())}
                results = index.search(**sought, k=k, where=where, filters=filters, kind=kind)
                found |= {path: Found(path, sort, hits) for path, hits in zip(loaded, results, strict=True)}
    answers.found += [found[path] for path in files if path in found]
    if texts:
        results = index.search(texts=texts, k=k, where=where, filters=filters, kind=kind)
        answers.found += [Found(text, "text", hits) for text, hits in zip(texts, results, strict=True)]
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
        if is_database(place):  # it may hold a password, so it is not repeated
            raise SaySeeError("a database's address is no query; name it once, before the queries")
        if kind_by_suffix(place) is None:
            raise SaySeeError(f"{place}: neither a sound nor a picture by its suffix; write --text before a text")
        files[place] = None
        named.add(os.fspath(place))
    return list(files), named


def _load(paths: Sequence[str], named: set[str], answers: Answers) -> dict[str, Any]:
    loaded: dict[str, Any] = {}
    for path in paths:
        try:
            loaded[path] = load_image(path) if kind_by_suffix(path) == "image" else load_audio(path)
        except MediaError as error:
            if path in named:
                raise
            answers.refused.append(str(error))
    return loaded


def _one_line(text: str) -> str:
    """A name as one line of a table, with escapes for line breaks and other control characters."""
    return "".join(
        sign.encode("unicode_escape").decode() if unicodedata.category(sign) in _BREAKING else sign for sign in text
    )
