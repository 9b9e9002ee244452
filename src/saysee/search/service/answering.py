"""Queries to answers, in batches: what the model's thread does."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from saysee.errors import SaySeeError
from saysee.media.audio import SAMPLE_RATE
from saysee.search.index.filters import Filter
from saysee.search.index.index import Hit, Index
from saysee.search.index.store import Item, Kind
from saysee.search.service.errors import RequestError, one_line

QueryKind = Literal["clip", "image", "text", "vector"]
"""Of a query: speech, a picture, a text, or a vector of a query asked before."""


@dataclass(frozen=True, slots=True)
class Query:
    """One query.

    Attributes:
        sort: what it is.
        content: samples [T] or pixels [3, H, W] as the encoder prepared them, a text, or a vector [D].
        k: most hits.
        kind: what to find; None for what is usual.
        filters: that hits must fulfill.
    """

    sort: QueryKind
    content: Any
    k: int
    kind: Kind | None = None
    filters: tuple[Filter, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """What was found for a query.

    Attributes:
        vector: of the query [D], of length 1.
        kind: of the hits.
        hits: the best first, each with its row.
    """

    vector: NDArray[np.float32]
    kind: Kind
    hits: list[tuple[Hit, Item]]


class Answerer:
    """An index and its model, for one thread.

    Args:
        index: whose model is loaded by this.
    """

    def __init__(self, index: Index) -> None:
        self.index, self.encoder = index, index.encoder
        self.has_text = self.encoder.has_text

    def warm_up(self) -> None:
        """Asks once in each way, so that the first client need not wait for what is made at the first use."""
        rng = np.random.default_rng(0)
        speech = rng.standard_normal(SAMPLE_RATE).astype(np.float32)
        pixels = self.encoder.prepare("image", Image.new("RGB", (64, 64), "gray"))
        queries = [Query("clip", speech, 1, "image"), Query("image", pixels, 1, "clip")]
        if self.has_text:
            queries.append(Query("text", "a picture", 1, "image"))
        self.answer(queries)

    def answer(self, queries: Sequence[Query]) -> list[Answer]:
        """Encodes queries of all sorts, each sort together, and searches for them.

        Raises:
            RequestError: the model gives no vector for one, or the index cannot be read.
        """
        vectors = self._vectors(queries)
        searches = [(self._kind(query), query.filters) for query in queries]
        answers: list[Answer | None] = [None] * len(queries)
        try:
            for kind, filters in dict.fromkeys(searches):
                self._check(kind)
                places = [place for place, search in enumerate(searches) if search == (kind, filters)]
                most = max(queries[place].k for place in places)
                results = self.index.search(vectors=vectors[places], k=most, kind=kind, filters=filters)
                for place, hits in zip(places, results, strict=True):
                    best = hits[: queries[place].k]
                    rows = self.index.rows([hit.id for hit in best])
                    found = [(hit, rows[hit.id]) for hit in best if hit.id in rows]
                    answers[place] = Answer(vectors[place], kind, found)
        except SaySeeError as error:  # the index, not the query: that was looked at before
            message = f"The index cannot be searched: {one_line(error, self.index.place)}"
            raise RequestError(503, "index-unavailable", message, 10) from None
        return [answer for answer in answers if answer is not None]

    def encode(self, kind: Kind, prepared: Sequence[Any]) -> list[NDArray[np.float32]]:
        """Vectors [D] of pictures or clips that the encoder prepared.

        Raises:
            RequestError: the model gives no vector for one.
        """
        return list(_finite(self.encoder.encode_prepared(kind, prepared)))

    def _check(self, kind: Kind) -> None:
        """Another process may have gone over to another model, and clips may be of another speech side than this."""
        try:
            self.index.store.about().check(self.encoder, self.index.place, kind)
        except SaySeeError as error:
            message = f"The index has another model: {one_line(error, self.index.place)}"
            raise RequestError(409, "other-model", message) from None

    def _kind(self, query: Query) -> Kind:
        if query.kind is not None:
            return query.kind
        return "clip" if query.sort == "image" and self.index.counts()["clip"] else "image"

    def _vectors(self, queries: Sequence[Query]) -> NDArray[np.float32]:
        vectors = np.empty((len(queries), self.encoder.dimension), np.float32)
        for sort in {query.sort for query in queries}:
            places = [place for place, query in enumerate(queries) if query.sort == sort]
            contents = [queries[place].content for place in places]
            if sort == "vector":
                vectors[places] = contents
            else:
                vectors[places] = self.encoder.encode_prepared(sort, contents)
        return _finite(vectors)


def _finite(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    if not np.isfinite(vectors).all():
        raise RequestError(422, "not-finite", "The model gives no finite vector for this; record or save it again.")
    return vectors


def to_text(vector: NDArray[np.float32]) -> str:
    """A vector [D] as base64 of little-endian float16."""
    return base64.b64encode(vector.astype("<f2").tobytes()).decode()


def from_text(text: str, dimension: int) -> NDArray[np.float32]:
    """What :func:`to_text` gave, of length 1.

    Raises:
        RequestError: it is none of this dimension.
    """
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise RequestError(
            422, "invalid-vector", "The vector is not base64; send it as a former answer gave it."
        ) from None
    if len(content) != 2 * dimension:
        raise RequestError(
            422,
            "invalid-vector",
            f"The vector has {len(content)} bytes, not {2 * dimension}; send one of this index's own model.",
        )
    vector = np.frombuffer(content, "<f2").astype(np.float32)
    length = float(np.linalg.norm(vector))
    if not np.isfinite(length) or not length:
        raise RequestError(
            422, "invalid-vector", "The vector is zero or not finite; send it as a former answer gave it."
        )
    return np.asarray(vector / length)
