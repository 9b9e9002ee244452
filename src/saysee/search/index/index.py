"""Index: finds the rows of an index that are nearest to speech, images or texts."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from numpy.typing import ArrayLike

from saysee.errors import MediaError, SaySeeError, extra_needed
from saysee.media.formats import Kind
from saysee.search.index.about import EXAMPLES, INDEX_FOLDER
from saysee.search.index.filters import Filter, parse_filters
from saysee.search.index.ranking import Scored, Speech, measure, nearest, reranked
from saysee.search.index.sources import model_of, root_of
from saysee.search.index.sql.sqlite import ITEMS_FILE, SqliteStore
from saysee.search.index.store import KINDS, LANCE, Item, Store, Vectors, is_database

if TYPE_CHECKING:
    from saysee.encoding.encoder import Encoder
    from saysee.encoding.recognizer import SpeechRecognizer, Transcript
    from saysee.model.retriever import ImageInput, SpeechImageModel, SpeechInput

logger = logging.getLogger(__name__)

_ROUNDING = 1e-6  # how far the length of a unit vector may be from 1 by rounding
_FP32_DIGITS = 9  # decimal exponents of a length that fp32 can square, either way
_QUERY_KINDS: dict[str, Any] = {"speech": "clip", "images": "image", "texts": "text"}


@dataclass(frozen=True, slots=True)
class Hit:
    """A row that was found.

    Attributes:
        id: of the row; it stays the same while the file is in the index.
        kind: "image" or "clip".
        path: of the file, absolute.
        score: cosine similarity with the query, −1 to 1; of speech searched for in both ways the fused score.
        metadata: further columns of the manifest or table that the index was created from.
        copies: rows of the index with this content, this one included.
        measure: what the score is: "cosine", "reciprocal-rank" or "re-ranked".
    """

    id: int
    kind: Kind
    path: str
    score: float
    metadata: dict[str, Any]
    copies: int = 1
    measure: Scored = "cosine"

    @property
    def shown_score(self) -> str:
        """The score for people."""
        return f"{self.score:.4f}" if self.measure == "reciprocal-rank" else f"{self.score:.3f}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


class Index:
    """An index of images and clips, for searching, also while another process writes it.

    Open one with :meth:`open`; ``saysee index`` and :func:`saysee.search.index.updating.update_index` write it.

    Attributes:
        store: what holds its rows and vectors.
        place, folder: of the store.
        about: model, dimension and so on, as they were when it was opened.
        speech: how spoken queries are searched for.
    """

    def __init__(
        self,
        store: Store,
        model: SpeechImageModel | str | None = None,
        device: str = "cpu",
        recognizer: SpeechRecognizer | str | None = None,
        speech: Speech | None = None,
    ) -> None:
        self.store, self.place, self.folder = store, store.place, store.folder
        self.about = store.about()
        self._model, self._device, self._recognizer = model, device, recognizer
        self.speech: Speech = speech or ("direct" if recognizer is None else "transcribed")
        if self.speech not in get_args(Speech):
            raise SaySeeError(f"speech is {speech!r}; it is one of {', '.join(get_args(Speech))}")
        if self.speech != "direct" and recognizer is None:
            raise SaySeeError(f"speech {speech!r} requires a recognizer; give one, such as --recognizer small")

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        model: SpeechImageModel | str | None = None,
        device: str = "cpu",
        recognizer: SpeechRecognizer | str | None = None,
        speech: Speech | None = None,
    ) -> Index:
        """Opens an index.

        Args:
            path: its folder, a folder that holds it as ``index``, such as a demo's, or its address:
                ``postgresql://user@host/database?schema=name``, ``lance:///folder`` or ``s3://bucket/prefix``.
            model: the index's model, or where it is now; by default where the index says. It is loaded at the first
                query that needs it.
            device: of a model that is loaded here, as torch names it.
            recognizer: transcribes spoken queries; also its size, folder or hub name.
            speech: how spoken queries are searched for: "direct", by the model's own speech encoder; "transcribed", by
                its text encoder, for what the recognizer heard (the default with a recognizer); or "both", the two
                rankings fused, see :mod:`saysee.search.index.ranking`.

        Raises:
            SaySeeError: there is no index, it is damaged or out of reach, or an older or newer release wrote it;
                another way than direct without a recognizer.
        """
        if not is_database(path) and not (Path(path) / ITEMS_FILE).is_file():
            inner = Path(path) / INDEX_FOLDER
            path = inner if (inner / ITEMS_FILE).is_file() else path
        return cls(open_store(path), model, device, recognizer, speech)

    def __len__(self) -> int:
        return sum(self.counts().values())

    def counts(self) -> dict[Kind, int]:
        """Rows of each kind."""
        with self.store.reading() as tables:
            return tables.counts()

    def rows(self, ids: Sequence[int]) -> dict[int, Item]:
        """As of the store."""
        with self.store.reading() as tables:
            return tables.rows(ids)

    def examples(self) -> list[Item]:
        """The rows that a visitor may try as queries: clips and images whose metadata ``example`` is their kind."""
        with self.store.reading() as tables:
            return list(tables.rows_of(map(tuple, tables.noted(EXAMPLES) or [])).values())

    def kind_to_find(self, *, by_image: bool) -> Kind:
        """What a query finds that does not say: images; an image finds clips where the index has clips alone."""
        with self.store.reading() as tables:
            return "clip" if by_image and tables.has("clip") and not tables.has("image") else "image"

    def path_of(self, item: Item) -> str:
        """Where a row's file is now, or its address on the web."""
        return _path(root_of(self.about, self.folder, item.path), item)

    def search(
        self,
        *,
        speech: Sequence[SpeechInput] | None = None,
        images: Sequence[ImageInput] | None = None,
        texts: Sequence[str] | None = None,
        vectors: ArrayLike | None = None,
        k: int = 10,
        offset: int = 0,
        where: str | None = None,
        filters: Sequence[str | Filter] = (),
        kind: Kind | None = None,
        bad: dict[int, MediaError] | None = None,
        transcripts: dict[int, Transcript] | None = None,
        rerank: int | None = None,
        unread: list[str] | None = None,
    ) -> list[list[Hit]]:
        """The rows nearest to each of several queries of one kind.

        Args:
            speech, images, texts: as for ``encode_speech``, ``encode_images`` and ``encode_text`` of a model.
            vectors: [Q, D] of the index's own model, of any length but 0.
            k: most hits for each query.
            offset: number of best hits to skip.
            where: an SQL expression of the store (of SQLite, PostgreSQL or Lance) that rows must fulfill, over
                the columns id, kind, path, folder, name, size, mtime_ns, hash and metadata (JSON). It runs in a
                read-only transaction with a time limit; do not pass text of others, for which ``filters`` is made.
            filters: such as "folder:holiday*", over these columns and the keys of the metadata; all must hold. See
                :func:`saysee.search.index.filters.parse_filters`.
            kind: what to find; by default as :meth:`kind_to_find` says.
            bad: collects the errors of queries by their positions; such a query has no hits. None raises the first.
            transcripts: collects what was recognized in clips by their positions.
            rerank: number of best rows of each query to read again and to order by the model's fusion encoder; for
                clips that find images, or images that find clips. A row whose file cannot be read keeps its place.
            unread: collects the reason for each such file; None logs it.

        Returns:
            for each query up to ``k`` hits of different (or unknown) content, the best first; of equal scores the
            earlier row.

        Raises:
            MediaError: a file of a query cannot be used, and ``bad`` is None.
            SaySeeError: not exactly one kind of query; a bad condition, filter or vector; another model than that of
                the index; ``rerank`` with other queries, or a model that cannot re-rank.
        """
        given: dict[str, Any] = {"speech": speech, "images": images, "texts": texts, "vectors": vectors}
        chosen = [name for name, value in given.items() if value is not None]
        if len(chosen) != 1:
            raise SaySeeError(f"search takes exactly one of {', '.join(given)}; {len(chosen)} were given")
        if k < 1 or offset < 0:
            raise SaySeeError(f"k is {k} and offset {offset}; they must be at least 1 and 0")
        if kind is not None and kind not in KINDS:
            raise SaySeeError(f"kind is {kind!r}; it is one of {', '.join(KINDS)}")
        parsed = parse_filters(filters)
        if kind is None:
            kind = self.kind_to_find(by_image=images is not None)
        if rerank is not None:
            given[chosen[0]] = self._checked_for_reranking(rerank, _QUERY_KINDS.get(chosen[0]), given[chosen[0]], kind)
        if vectors is not None:
            queries = self._checked(vectors)[None]
        else:
            self.store.about().check(self.encoder, self.place, kind)  # another process may have changed the model
            queries = self._encoded(_QUERY_KINDS[chosen[0]], given[chosen[0]], bad, transcripts)
        good = [position for position in range(queries.shape[1]) if not bad or position not in bad]
        most, skipped = (k, offset) if rerank is None else (max(offset + k, rerank), 0)
        found = nearest(self.store, queries[:, good], kind, most, where, parsed, skipped)
        root = root_of(self.about, self.folder, next((item.path for rows in found for item, _ in rows), None))
        hits: list[list[Hit]] = [[] for _ in range(queries.shape[1])]
        missed: list[str] = []
        for position, rows in zip(good, found, strict=True):
            placed: list[tuple[Item, float, Scored]] = [(row, score, measure(len(queries))) for row, score in rows]
            if rerank is not None:
                query = (_QUERY_KINDS[chosen[0]], given[chosen[0]][position])
                placed[:rerank] = reranked(self.encoder, *query, rows[:rerank], partial(_path, root), missed)
                placed = placed[offset : offset + k]
            hits[position] = [
                Hit(row.id, row.kind, _path(root, row), score, row.metadata, row.copies, how)
                for row, score, how in placed
            ]
        if unread is not None:
            unread += missed
        else:
            for reason in missed:
                logger.warning("%s: %s", self.place, reason)
        return hits

    def _checked_for_reranking(self, first: int, query: str | None, items: Sequence[Any], kind: Kind) -> list[Any]:
        """The queries as items that can be read twice; see :meth:`search` for the errors."""
        from saysee.encoding.reranking import check_can_rerank

        if first < 1:
            raise SaySeeError(f"rerank is {first}; it must be at least 1")
        if {query, kind} != {"clip", "image"} or (query == "clip" and self.speech != "direct"):
            raise SaySeeError(
                f"rerank is {first}, but {query or 'vector'} queries (speech {self.speech}) find {kind}s; it is for "
                "clips searched for directly that find images, and for images that find clips"
            )
        check_can_rerank(self.encoder)
        return _read(items, query)

    @cached_property
    def encoder(self) -> Encoder:
        """The index's model, loaded at the first use; SaySeeError if it is not found, or another than the index's."""
        from saysee.encoding.encoder import Encoder

        given = self._model if self._model is not None else model_of(self.about, self.place, self.folder)
        encoder = Encoder(given, device=self._device if isinstance(given, str) else "auto")
        self.about.check(encoder, self.place)
        if encoder.warning:
            logger.warning("%s: %s", self.place, encoder.warning)
        return encoder

    @cached_property
    def _transcriber(self) -> Encoder:
        from saysee.encoding.encoder import Encoder
        from saysee.encoding.recognizer import SpeechRecognizer

        recognizer = self._recognizer
        assert recognizer is not None
        if not isinstance(recognizer, SpeechRecognizer):
            recognizer = SpeechRecognizer(recognizer, device=self.encoder.model.device)
        transcriber = Encoder(self.encoder.model, recognizer=recognizer)
        transcriber.side("clip")  # an error comes before anybody speaks
        return transcriber

    @property
    def ways(self) -> tuple[Speech, ...]:
        """How spoken queries can be searched for; loads the model."""
        if self._recognizer is None:
            return ("direct",) if self.encoder.has_speech else ()
        return get_args(Speech) if self.encoder.has_speech else ("transcribed",)

    def speech_encoders(self, speech: Speech | None = None) -> list[Encoder]:
        """What encodes spoken queries in a way, by default the index's own.

        Raises SaySeeError as :attr:`encoder` does, and if there is no such recognizer or the model does not have it.
        """
        speech = speech or self.speech
        if speech not in self.ways:
            fix = "a recognizer" if self._recognizer is None else "--speech transcribed"
            raise SaySeeError(f"the model {self.encoder.name} has no speech encoder; give {fix}, or use a SaySee model")
        return [self.encoder] * (speech != "transcribed") + ([self._transcriber] if speech != "direct" else [])

    def _encoded(
        self,
        kind: Any,
        items: Sequence[Any],
        bad: dict[int, MediaError] | None,
        transcripts: dict[int, Transcript] | None,
    ) -> Vectors:
        """Queries of one kind to unit vectors [W, Q, D]: of a clip one for each way."""
        encoders = self.speech_encoders() if kind == "clip" else [self.encoder]
        items = _read(items, kind) if len(encoders) > 1 else items
        return np.stack([encoder.encode(kind, items, bad=bad, transcripts=transcripts) for encoder in encoders])

    def _checked(self, vectors: ArrayLike) -> Vectors:
        dimension = self.about.dimension
        try:
            queries = np.asarray(vectors, np.float64)
        except (TypeError, ValueError):
            raise SaySeeError(f"{self.place}: the queries are no matrix of numbers; give [Q, {dimension}]") from None
        if queries.ndim != 2 or queries.shape[1] != dimension:
            raise SaySeeError(
                f"{self.place}: its vectors have {dimension} dimensions, the queries' shape is {list(queries.shape)}; "
                f"give [Q, {dimension}]"
            )
        lengths = np.linalg.norm(queries, axis=1, keepdims=True)
        bad = np.flatnonzero(~np.isfinite(lengths) | (lengths == 0))
        if bad.size:
            raise SaySeeError(f"query vector {bad[0] + 1} is zero or not finite; remove it")
        outside = np.abs(np.log10(lengths)) > _FP32_DIGITS
        queries = np.asarray(queries / np.where(outside, lengths, 1), np.float32)
        lengths = np.linalg.norm(queries, axis=1, keepdims=True)
        lengths[np.abs(lengths - 1) < _ROUNDING] = 1  # unit vectors stay as they are
        return np.asarray(queries / lengths)

    def check(self) -> list[str]:
        """Reads the whole index and returns what is wrong with it, one line each; SaySeeError if it cannot be read."""
        with self.store.reading() as tables:
            return [f"{self.place}: {problem}" for problem in tables.problems()]

    def compact(self) -> tuple[int, int]:
        """Reclaims the disk space of removed rows, and builds the fast copies again that do not fit the rows.

        Returns the bytes of the index before and after.
        """
        self.store.about()  # raises where there is no index any more; writing would begin one
        with self.store.writing() as tables:
            before = tables.size_in_bytes()
            tables.vacuum()
            tables.make_ready()
            return before, tables.size_in_bytes()


def open_store(place: str | os.PathLike[str]) -> Store:
    """The store at a folder or an address, as of :meth:`Index.open`. Nothing is opened yet."""
    if isinstance(place, str) and place.startswith(LANCE):
        with extra_needed("an index in LanceDB", "lance"):
            from saysee.search.index.lance.store import LanceStore

        return LanceStore(place)
    if is_database(place):
        with extra_needed("an index in PostgreSQL", "postgres"):
            from saysee.search.index.sql.postgres import PostgresStore

        return PostgresStore(os.fspath(place))
    return SqliteStore(Path(place))


def _read(items: Sequence[Any], kind: Any) -> list[Any]:
    """Queries that can be read more than once, as an open file cannot."""
    from saysee.encoding.inputs import checked

    return [item.read() if hasattr(item, "read") else item for item in checked(items, kind)]


def _path(root: Path, item: Item) -> str:
    if "://" in item.path:  # imported vectors may be of images on the web
        return item.path
    return os.path.normpath(root / item.path)
