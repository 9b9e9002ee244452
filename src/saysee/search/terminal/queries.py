"""Queries of the command line: audio and image files, folders of them, texts, and a recording."""

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.table import Table
from rich.text import Text

from saysee.errors import MediaError, SaySeeError
from saysee.media.folders import Listing
from saysee.media.formats import AUDIO_SUFFIXES, IMAGE_SUFFIXES, Kind, file_kind
from saysee.media.source import opened
from saysee.search.index.index import Hit, Index
from saysee.search.index.ranking import FUSED, Speech
from saysee.search.index.store import batched, is_database
from saysee.search.terminal.microphone import NAME

if TYPE_CHECKING:
    from saysee.encoding.recognizer import Transcript

QueryKind = Literal["image", "clip", "text"]

_CHUNK = 256  # queries that are decoded, encoded and searched for together
_ESCAPED = ("Cc", "Cs", "Zl", "Zp")  # Unicode categories that end a line, control a terminal or cannot be written
_OF_QUERY = ("speech", "transcript", "used_text", "unknown_words")  # of a result, where there are any
_SIDES: dict[QueryKind, str] = {"image": "images", "clip": "speech", "text": "texts"}  # arguments of Index.search


@dataclass(frozen=True, slots=True)
class QueryResult:
    """One query and its hits, best first."""

    name: str  # path of a file, or the text, or "microphone"
    kind: QueryKind
    hits: list[Hit]
    recording: NDArray[np.float32] | None = None  # [T] samples at 16 kHz of a recorded query
    speech: Speech | None = None  # how a clip was searched for
    transcript: str | None = None  # what a recognizer heard in a clip
    used_text: str | None = None  # the start of a text that is longer than the model takes, as far as it was used
    unknown_words: list[str] = field(default_factory=list)  # of a text or transcript, that the model does not know

    @property
    def notes(self) -> list[str]:
        """How the query was understood, in lines for people."""
        notes = [] if self.speech is None else [f"speech: {self.speech}"]
        if self.speech == "both":
            notes[0] += f"; the score is the {FUSED}, not a cosine"
        if any(hit.measure == "re-ranked" for hit in self.hits):
            notes.append("re-ranked by the fusion encoder: scores are not cosine similarities")
        notes += [f"heard: {self.transcript}"] if self.transcript is not None else []
        return notes + ([f"not known to the model: {', '.join(self.unknown_words)}"] if self.unknown_words else [])

    def to_table(self) -> Table:
        """A table of the hits, titled with the query's name."""
        table = Table("score", "path", title=Text(_one_line(self.name)), title_justify="left")
        table.caption, table.caption_justify = Text("\n".join(map(_one_line, self.notes))), "left"
        for hit in self.hits:
            name = _one_line(hit.path) + (f" ({hit.copies} copies)" if hit.copies > 1 else "")
            table.add_row(hit.shown_score, Text(name))  # not markup: a name may have [brackets]
        return table


@dataclass(slots=True)
class SearchResults:
    """The results of all queries of a command."""

    # of a recording, then of files in the order given, then of texts
    results: list[QueryResult] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)  # reason for each file that cannot be used

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        results = [
            {"query": result.name, "hits": [hit.to_dict() for hit in result.hits]}
            | {name: value for name in _OF_QUERY if (value := getattr(result, name))}
            for result in self.results
        ]
        return {"results": results, "refused": self.skipped}


class _Query(NamedTuple):
    name: str
    kind: QueryKind
    content: Any


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
    rerank: int | None = None,
) -> SearchResults:
    """Searches for files, folders of files, texts and a recording [T] at 16 kHz, with options of :meth:`Index.search`.

    A bad file in a folder is skipped; a bad file that was named itself is an error. Raises SaySeeError if there is no
    query, or a named file is damaged or neither audio nor image; else as ``Index.search``.
    """
    if not places and not texts and recording is None:
        raise SaySeeError("no query; name an audio file, an image or a folder of them, or give --text or --record")
    found = SearchResults()
    files = _expand(places)
    queries = _read(files, texts, recording, found.skipped)
    for chunk in batched(queries, _CHUNK):
        outcomes: dict[int, QueryResult | MediaError] = {}
        for query_kind, side in _SIDES.items():
            positions = [position for position, query in enumerate(chunk) if query.kind == query_kind]
            bad: dict[int, MediaError] = {}
            heard: dict[int, Transcript] = {}
            asked: dict[str, Any] = {side: [chunk[position].content for position in positions]}
            asked |= {"bad": bad, "transcripts": heard, "rerank": rerank, "unread": found.skipped}
            hits = index.search(**asked, k=k, where=where, filters=filters, kind=kind) if positions else ()
            for number, position in enumerate(positions):
                transcript = heard[number].text if number in heard else None
                result = _result(index, chunk[position], hits[number], transcript)
                outcomes[position] = bad.get(number, result)
        for position, query in enumerate(chunk):
            if isinstance(outcome := outcomes[position], QueryResult):
                found.results.append(outcome)
            elif files.get(query.name, True):  # named itself
                raise outcome
            else:
                found.skipped.append(str(outcome))
    if not found.results:
        raise SaySeeError(f"none of {len(found.skipped)} files can be used as a query; the first: {found.skipped[0]}")
    return found


def _result(index: Index, query: _Query, hits: list[Hit], transcript: str | None) -> QueryResult:
    text = query.content if query.kind == "text" else transcript
    return QueryResult(
        query.name,
        query.kind,
        hits,
        recording=query.content if isinstance(query.content, np.ndarray) else None,
        speech=index.speech if query.kind == "clip" else None,
        transcript=transcript,
        used_text=None if text is None else index.encoder.used_text(text),
        unknown_words=[] if text is None else index.encoder.unknown_words(text),
    )


def _expand(places: Sequence[str]) -> dict[str, bool]:
    """The files in order, each once, and whether each was named itself."""
    files: dict[str, bool] = {}
    for place in places:
        if Path(place).is_dir():
            inside = Listing(place, "QUERY").files(AUDIO_SUFFIXES | IMAGE_SUFFIXES)
            if not inside:
                raise SaySeeError(f"{place}: no audio file and no image in it; name another folder")
            files |= {path: files.get(path, False) for path in inside}
        elif is_database(place):  # it may hold a password, so it is not repeated
            raise SaySeeError("the address of a database cannot be a query; name it once, before the queries")
        else:
            files[place] = True
    return files


def _read(
    files: Mapping[str, bool], texts: Sequence[str], recording: NDArray[np.float32] | None, skipped: list[str]
) -> Iterator[_Query]:
    """The queries in the order of the results."""
    if recording is not None:
        yield _Query(NAME, "clip", recording)
    for path, is_named in files.items():
        try:
            yield _load(path)
        except MediaError as error:
            if is_named:
                raise
            skipped.append(str(error))
    for text in texts:
        yield _Query(text, "text", text)


def _load(path: str) -> _Query:
    """A file as a query; its content says of which kind."""
    try:
        with opened(path, "audio") as (file, name):
            found = file_kind(file)
    except MediaError as error:
        if error.code != "missing":
            raise
        raise MediaError("missing", f"{error}; write --text before a text") from None
    if found is None:
        raise MediaError("undecodable", f"{name}: neither audio nor an image that can be read; convert it")
    return _Query(path, found.kind, path)


def _one_line(text: str) -> str:
    """A name as one line of a table, with escapes for line breaks and other control characters."""
    return "".join(
        character.encode("unicode_escape").decode() if unicodedata.category(character) in _ESCAPED else character
        for character in text
    )
