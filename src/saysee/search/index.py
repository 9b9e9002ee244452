"""Index: speech, pictures and texts to the rows of an index that are nearest."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from saysee.errors import SaySeeError
from saysee.search import fast_copy
from saysee.search.conditions import ids_where
from saysee.search.sources import model_of, root_of
from saysee.search.store import KINDS, Kind, Store, Vectors, blocks, count, items_of, stamp, vectors_of

if TYPE_CHECKING:
    from saysee.model.retriever import ImageInput, SpeechImageModel, SpeechInput
    from saysee.search.encoding import Encoder

_SPARE = 2
"""Times as many are taken from the fast copy as are asked for; the vectors of the truth order them."""
_UNIT_TOLERANCE = 0.01
"""How far a kept vector's length may be from 1: fp16 is within 0.001."""


@dataclass(frozen=True, slots=True)
class Hit:
    """A row that was found.

    Attributes:
        id: of the row, as long as its file stays in the index.
        kind: "image" or "clip".
        path: of the file, absolute.
        score: cosine similarity with the query, −1 to 1.
        metadata: further columns, of the manifest or table that the index was made from.
    """

    id: int
    kind: Kind
    path: str
    score: float
    metadata: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


class Index:
    """An index of pictures and clips, for searching. It may be searched while another process writes it.

    Make one with :meth:`open`; ``saysee index`` and :func:`saysee.search.indexing.update_index` write it.

    Attributes:
        folder: where it lies.
        about: model, dimension and the like.
    """

    def __init__(self, folder: Path, model: SpeechImageModel | str | None = None, device: str = "cpu") -> None:
        self.folder = folder
        self._store = Store(folder)
        self.about = self._store.about()
        self._model, self._device = model, device
        self._encoder: Encoder | None = None
        self._searchers: dict[Kind, fast_copy.Searcher] = {}

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], *, model: SpeechImageModel | str | None = None, device: str = "cpu"
    ) -> Index:
        """Opens an index.

        Args:
            path: its folder.
            model: in place of the one that the index names: the same model, loaded or where it lies now. It is loaded
                at the first query that needs it.
            device: where a model that is loaded here runs, as torch names it.

        Raises:
            SaySeeError: there is no index, it is damaged, or a newer release wrote it.
        """
        return cls(Path(path), model, device)

    def __len__(self) -> int:
        return sum(self.counts().values())

    def counts(self) -> dict[Kind, int]:
        """Rows of each kind."""
        with self._store.reading() as connection:
            return {kind: count(connection, kind) for kind in KINDS}

    # ------------------------------------------------------------------ searching

    def search(
        self,
        *,
        speech: Sequence[SpeechInput] | None = None,
        images: Sequence[ImageInput] | None = None,
        texts: Sequence[str] | None = None,
        vectors: ArrayLike | None = None,
        k: int = 10,
        where: str | None = None,
        kind: Kind | None = None,
    ) -> list[list[Hit]]:
        """The nearest rows of several queries of one sort.

        Args:
            speech: clips, as for ``SpeechImageModel.encode_speech``.
            images: pictures, as for ``SpeechImageModel.encode_images``.
            texts: in writing.
            vectors: [Q, D] of the index's own model, of any length but 0.
            k: most rows for each query.
            where: an SQL expression that rows must fulfil, over the columns id, kind, path, folder, name, size,
                mtime_ns, hash and metadata (JSON).
            kind: what to find. Left out: for pictures clips where the index has any, else pictures.

        Returns:
            for each query up to ``k`` hits, the best first; of equal scores the earlier row.

        Raises:
            MediaError: a file of a query cannot be used.
            SaySeeError: not exactly one sort of query; a bad condition or vector; another model than the index's.
        """
        given = {"speech": speech, "images": images, "texts": texts, "vectors": vectors}
        chosen = [name for name, value in given.items() if value is not None]
        if len(chosen) != 1:
            raise SaySeeError(f"search takes exactly one of {', '.join(given)}; {len(chosen)} were given")
        if k < 1:
            raise SaySeeError(f"k is {k}; it must be at least 1")
        if kind is not None and kind not in KINDS:
            raise SaySeeError(f"kind is {kind!r}; it is one of {', '.join(KINDS)}")
        if kind is None:
            kind = "clip" if images is not None and self.counts()["clip"] else "image"
        queries = self._checked(vectors) if vectors is not None else self._encode(speech, images, texts)
        return self._nearest(queries, k, where, kind)

    @property
    def encoder(self) -> Encoder:
        """The index's model, loaded when first asked for.

        Raises:
            SaySeeError: it is gone, or another.
        """
        if self._encoder is None:
            from saysee.search.encoding import Encoder

            given = self._model if self._model is not None else model_of(self.about, self.folder)
            encoder = Encoder.load(given, self._device) if isinstance(given, str) else Encoder(given, "given")
            encoder.check(self.about, self.folder)
            self._encoder = encoder
        return self._encoder

    def _encode(
        self,
        speech: Sequence[SpeechInput] | None,
        images: Sequence[ImageInput] | None,
        texts: Sequence[str] | None,
    ) -> Vectors:
        model = self.encoder.model
        encoded: Vectors
        if speech is not None:
            encoded = model.encode_speech(speech)
        elif images is not None:
            encoded = model.encode_images(images)
        else:
            encoded = model.encode_text(texts or [])
        return encoded

    def _checked(self, vectors: ArrayLike) -> Vectors:
        queries = np.asarray(vectors, np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.about.dimension:
            raise SaySeeError(
                f"{self.folder}: its vectors have {self.about.dimension} dimensions, the queries' shape is "
                f"{list(queries.shape)}; give [Q, {self.about.dimension}]"
            )
        lengths = np.linalg.norm(queries, axis=1, keepdims=True)
        if not np.isfinite(lengths).all() or not lengths.all():
            raise SaySeeError("a query's vector is zero or not finite; leave it out")
        return np.asarray(queries / lengths)

    def _nearest(self, queries: Vectors, k: int, where: str | None, kind: Kind) -> list[list[Hit]]:
        allowed = None
        if where is not None:
            with self._store.reading() as connection:
                allowed = ids_where(connection, kind, where)
        searcher = None if allowed is not None and len(allowed) <= fast_copy.MEMORY_ROWS else self._searcher(kind)
        with self._store.reading() as connection:
            if searcher is None:
                assert allowed is not None
                ids, vectors = self._present(connection, allowed)
                found = fast_copy.best_rows(queries, ids, vectors, k)
            else:
                found = searcher.search(queries, _SPARE * k, allowed)
            return self._hits(connection, queries, found, k)

    def _hits(
        self, connection: sqlite3.Connection, queries: Vectors, found: list[NDArray[np.int64]], k: int
    ) -> list[list[Hit]]:
        """Scores from the truth; rows that have left since the fast copy was made are passed over."""
        ids, vectors = self._present(connection, np.unique(np.concatenate(found)) if found else np.empty(0, np.int64))
        items = items_of(connection, ids.tolist())
        first = next(iter(items.values())).path if items else None
        root = root_of(self.about, self.folder, first)
        results = []
        for query, rows in zip(queries, found, strict=True):
            places = np.searchsorted(ids, rows[np.isin(rows, ids)])
            scores = vectors[places] @ query
            best = np.lexsort((ids[places], -scores))[:k]
            hits = []
            for place, score in zip(places[best], scores[best], strict=True):
                item = items[int(ids[place])]
                # Given vectors may be of pictures on the web.
                path = item.path if "://" in item.path else os.path.normpath(root / item.path)
                hits.append(Hit(item.id, item.kind, path, float(score), item.metadata))
            results.append(hits)
        return results

    def _present(self, connection: sqlite3.Connection, ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], Vectors]:
        """Those of the ids that are still there, and their vectors."""
        items = items_of(connection, ids.tolist())
        there = np.array([item for item in ids.tolist() if item in items], np.int64)
        return there, vectors_of(connection, self.about, there.tolist())

    def _searcher(self, kind: Kind) -> fast_copy.Searcher:
        """What searches a kind as it is now; a missing or stale fast copy is made, where that can be."""
        with self._store.reading() as connection:
            known = self._searchers.get(kind)
            if known is not None and known.stamp == stamp(connection, kind):
                return known
            found = fast_copy.load(self.folder, self.about, connection, kind)
        if found is None:
            found = self._made(kind)
        self._searchers[kind] = found
        return found

    def _made(self, kind: Kind) -> fast_copy.Searcher:
        try:
            with self._store.writing() as writer:
                fast_copy.write_all(writer, self.about)
        except SaySeeError:  # another process writes just now, or this one may not: the truth itself is searched
            pass
        with self._store.reading() as connection:
            return fast_copy.load(self.folder, self.about, connection, kind) or fast_copy.in_memory(
                self.about, connection, kind
            )

    # ------------------------------------------------------------------ upkeep

    def check(self) -> list[str]:
        """Reads the whole index and tells what is wrong with it, a line each; empty when all is well.

        Raises:
            SaySeeError: it is too damaged to be read.
        """
        problems = []
        with self._store.reading() as connection:
            for (line,) in connection.execute("PRAGMA integrity_check"):
                if line != "ok":
                    problems.append(f"{self.folder}: {line}; make the index anew, or bring back a copy")
            for kind in KINDS:
                read = 0
                for ids, vectors in blocks(connection, self.about, kind):
                    read += len(ids)
                    lengths = np.linalg.norm(vectors, axis=1)
                    bad = ids[~(np.abs(lengths - 1) < _UNIT_TOLERANCE)]
                    problems += [f"{self.folder}: the vector of row {row} is damaged; index anew" for row in bad]
                if read != count(connection, kind):
                    problems.append(
                        f"{self.folder}: {count(connection, kind) - read} {kind}s have no vector; index anew"
                    )
                if (damage := fast_copy.damage(self.folder, connection, kind)) is not None:
                    problems.append(f"{self.folder}: {damage}; run 'saysee index --compact {self.folder}'")
        return problems

    def compact(self) -> tuple[int, int]:
        """Gives back the room of removed rows, and makes the fast copy anew where it does not fit.

        Returns:
            bytes of the index before and after.

        Raises:
            SaySeeError: another process writes it, or there is no room.
        """
        before = self._bytes()
        with self._store.writing() as writer:
            with writer.transaction():  # a damaged copy must not be taken for a good one
                for kind in KINDS:
                    if fast_copy.damage(self.folder, writer.connection, kind) is not None:
                        writer.touch([kind])
            writer.connection.execute("VACUUM")
            writer.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            fast_copy.write_all(writer, self.about)
        return before, self._bytes()

    def _bytes(self) -> int:
        return sum(path.stat().st_size for path in self.folder.iterdir() if path.is_file())
