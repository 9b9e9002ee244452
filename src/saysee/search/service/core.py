"""What the service does, without HTTP: forms in, answers out; decoding in threads, the model in its own thread."""

import asyncio
import base64
import io
import os
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, ParamSpec, TypeVar

import numpy as np
from PIL import Image

from saysee.encoding.attention import attend, attention_source
from saysee.encoding.reranking import can_rerank
from saysee.errors import ConfigError
from saysee.files import fingerprint
from saysee.media.audio import SAMPLE_RATE, load_audio
from saysee.media.formats import (
    AUDIO_SUFFIXES,
    IMAGE_SUFFIXES,
    READABLE_AUDIO,
    READABLE_IMAGES,
    FileKind,
    Kind,
    file_kind,
)
from saysee.media.images import load_image
from saysee.search.index.about import INDEX_FOLDER
from saysee.search.index.filters import Filter, parse_filters
from saysee.search.index.index import Index
from saysee.search.index.ranking import Scored, logit, measure, nearest, reordered
from saysee.search.index.sources import UPLOADS_FOLDER
from saysee.search.index.store import Item, Vectors
from saysee.search.service import schemas
from saysee.search.service.batching import ModelThread, Places, grouped
from saysee.search.service.errors import RequestError, request_errors
from saysee.search.service.items import Items, client_name
from saysee.search.service.records import AccessLog, Metrics
from saysee.search.service.settings import ServiceSettings
from saysee.version import __version__

P = ParamSpec("P")
T = TypeVar("T")

QueryKind = Literal["clip", "image", "text", "vector"]
QUERY_FIELDS = ("file", "audio", "image", "text", "vector")
_KINDS: dict[str, QueryKind] = {"audio": "clip", "image": "image", "text": "text", "vector": "vector"}
_DECODERS = min(4, os.cpu_count() or 1)  # an image at the limit of pixels takes half a gigabyte while it is decoded
_NOT_SPOKEN = {"speech": None, "seconds": None, "transcript": None}
_RERANKED_TOGETHER = 4  # hits: a query that comes in between waits for so many runs of the model
_WEIGHT_DIGITS = 4  # decimals of attention weights in JSON: a uniform share of 256 patches is 0.0039


class Query(NamedTuple):
    """A query for ``k`` hits. Each part gives a vector: what ``Encoder.prepare`` returned, or a unit vector [D]."""

    parts: Sequence[tuple[QueryKind, Any]]
    k: int
    find: Kind | None = None
    filters: tuple[Filter, ...] = ()


class Answer(NamedTuple):
    """The unit vectors [W, D] of a query's parts, the kind of its hits, and the hits with their scores, best first."""

    vectors: Vectors
    kind: Kind
    hits: list[tuple[Item, float]]


class Service:
    """An index, its model and what clients may do; made, it has run the model once, as a first run is slow."""

    def __init__(self, index: Index, settings: ServiceSettings) -> None:
        self.index, self.settings, self.encoder = index, settings, index.encoder
        self.metrics, self.items = Metrics(index.counts), Items(index, _uploads(index, settings), settings.images_from)
        self.access_log = None if settings.access_log is None else AccessLog(settings.access_log)
        if index.ways:
            index.speech_encoders()  # an error comes before the first client
        self._warm_up()
        self._threads = ThreadPoolExecutor(_DECODERS, "saysee-decoder")
        # Alone: a recognizer uses all cores, and several at a time would keep the decoders from other queries.
        self._recognizing = ThreadPoolExecutor(1, "saysee-recognizer")
        self.model = ModelThread(settings.batch, settings.wait_ms / 1_000, lambda: self.places.taken, self.metrics)
        self.places = Places(settings.places, settings.buffer_bytes, self.model.retry_after, self.metrics)

    def close(self) -> None:
        """Finishes the jobs of the model and ends all threads."""
        self.model.close()
        self._recognizing.shutdown()
        self._threads.shutdown()
        self.items.thumbnails.close()
        if self.access_log is not None:
            self.access_log.close()

    async def in_thread(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs a function that decodes or reads files off the event loop; cancelled while it waits, it never runs."""
        return await asyncio.wrap_future(self._threads.submit(function, *args, **kwargs))

    async def of_image(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """:meth:`in_thread`, for an image of the index: another server that is slow keeps no decoder waiting."""
        if self.settings.images_from is None:
            return await self.in_thread(function, *args, **kwargs)
        return await asyncio.to_thread(function, *args, **kwargs)

    def about(self) -> schemas.AboutAnswer:
        """What is served."""
        counts = self.index.counts()
        return schemas.AboutAnswer(
            name=_name(self.index),
            images=counts["image"],
            clips=counts["clip"],
            writable=self.settings.write,
            attention=attention_source(self.encoder.model) if self.encoder.has_speech else None,
            speech=sorted(self.index.ways, key=lambda way: way != self.index.speech),
            rerank=can_rerank(self.encoder),
            limits=self.settings.limits,
            formats={"image": sorted(IMAGE_SUFFIXES), "clip": sorted(AUDIO_SUFFIXES)},
            trained_on=self.encoder.trained_on,
            examples=[schemas.ItemAnswer(**schemas.item_answer(item)) for item in self.index.examples()],
            version=__version__,
        )

    async def search(self, form: schemas.SearchForm) -> dict[str, Any]:
        """The fields of a :class:`SearchAnswer`, without the time; RequestError if a field cannot be used."""
        given = [name for name in QUERY_FIELDS if getattr(form, name) is not None]
        if len(given) != 1:
            raise RequestError(422, "one-query", f"Send exactly one of {', '.join(QUERY_FIELDS)}; got {len(given)}.")
        field, value = given[0], getattr(form, given[0])
        with request_errors(422, "invalid-filter"):
            filters = parse_filters(form.filter)
        if not isinstance(value, str):
            value = await value.read()
            if field == "file":
                field = "image" if _file_kind(value).kind == "image" else "audio"
        if field == "audio":
            spoken, parts = await self._hear(value, form)
        else:
            spoken, parts = _NOT_SPOKEN, await self._prepare(_KINDS[field], value)
        text = value if field == "text" else spoken["transcript"]
        query = Query(parts, max(form.offset + form.k, form.rerank or 0), form.kind, filters)
        if form.rerank is not None and not can_rerank(self.encoder):
            message = "The model cannot re-rank; train one with matching.weight 1 and training.save_fusion true."
            raise RequestError(422, "no-matching", message)
        answer = await self._run("search", query, self.answer)
        hits: list[tuple[Item, float, Scored]] = [(*hit, measure(len(parts))) for hit in answer.hits]
        if form.rerank is not None:
            hits[: form.rerank] = await self._rerank(parts, answer, form.rerank)
        return {
            "query": {
                "kind": field,
                **spoken,
                "used_text": None if text is None else self.encoder.used_text(text),
                "vector": to_text(answer.vectors),
                "unknown_words": [] if text is None else self.encoder.unknown_words(text),
            },
            "kind": answer.kind,
            "hits": [
                {**schemas.item_answer(item), "score": score, "measure": how, "copies": item.copies}
                for item, score, how in hits[form.offset : form.offset + form.k]
            ],
        }

    async def _rerank(
        self, parts: Sequence[tuple[QueryKind, Any]], answer: Answer, first: int
    ) -> list[tuple[Item, float, Scored]]:
        """The first hits in the order of the fusion encoder; RequestError for a query that it does not read.

        A few at a time, so that the model's thread answers others in between, and the work ends when the client leaves.
        """
        kind: Any = parts[0][0]
        if len(parts) > 1 or {kind, answer.kind} != {"clip", "image"}:
            message = "rerank is for audio (speech=direct) that finds images, or images that find clips; remove it."
            raise RequestError(422, "cannot-rerank", message)
        rows, logits = answer.hits[:first], dict[int, float]()

        prepare = partial(self.encoder.prepare, answer.kind)

        async def read(item: Item) -> Any:
            try:
                return await self.of_image(self.items.loaded, item.kind, item.id, prepare)
            except RequestError:  # it keeps its place
                return None

        def score(batch: list[Any]) -> list[dict[int, float]]:
            return [{n: logit(self.encoder, asked, answer.kind, item) for n, item in one.items()} for one in batch]

        with self.metrics.part.labels("rerank").time():
            with request_errors():
                asked = await self._run(object(), None, lambda _: [self.encoder.side(kind).tokens([parts[0][1]])])
            for start in range(0, len(rows), _RERANKED_TOGETHER):
                items = await asyncio.gather(*(read(item) for item, _ in rows[start : start + _RERANKED_TOGETHER]))
                found = {place: item for place, item in enumerate(items, start) if item is not None}
                with request_errors(422, "not-finite"):
                    of_these: dict[int, float] = await self._run(object(), found, score)
                logits |= of_these
        return reordered(rows, logits)

    async def attend(self, form: schemas.AttentionForm) -> dict[str, Any]:
        """The fields of an :class:`AttentionAnswer`; RequestError for a bad clip, or if there is no such image."""
        if not self.encoder.has_speech:
            raise RequestError(422, "no-speech-encoder", "The model has no speech encoder, whose attention is shown.")
        image, audio = await self.of_image(self.items.loaded, "image", form.id, load_image), await form.audio.read()
        with request_errors():
            speech = await self.in_thread(load_audio, audio, max_seconds=self.settings.limits.seconds)
            alone = object()  # a kind of its own, so that nothing shares the batch
            found = await self._run(alone, None, lambda _: [attend(self.encoder, speech, image, form.source)])
        frames = np.round(found.frames.astype(np.float64), _WEIGHT_DIGITS).tolist()
        return {name: getattr(found, name) for name in schemas.AttentionAnswer.model_fields} | {"frames": frames}

    async def add(self, form: schemas.ItemForm) -> tuple[dict[str, Any], bool]:
        """Adds an image or clip; the fields of its :class:`ItemAnswer`, and whether it is new. RequestError if not."""
        content = await form.file.read()
        kind, _, suffix = _file_kind(content)
        name = await self.in_thread(fingerprint, content)
        item = await self.in_thread(self.items.find, kind, name, form.metadata)
        if item is not None:
            return schemas.item_answer(item), False
        prepared = await self.in_thread(self._decode, kind, content)
        vector = await self._run(f"encode {kind}", prepared, lambda batch: list(self._encode(kind, batch)))
        metadata = client_name(form.file.filename) | (form.metadata or {})
        item = await self.in_thread(self.items.add, kind, content, name + suffix, vector, metadata)
        return schemas.item_answer(item), True

    def answer(self, queries: Sequence[Query]) -> list[Answer]:
        """Answers a batch: encodes parts of one kind together, and searches with the same filters together."""
        parts = [part for query in queries for part in query.parts]
        encoded = np.empty((len(parts), self.encoder.dimension), np.float32)
        with self.metrics.part.labels("encode").time():
            for kind, numbers in grouped(kind for kind, _ in parts):
                contents = [parts[number][1] for number in numbers]
                encoded[numbers] = contents if kind == "vector" else self._encode(kind, contents)
        vectors = np.split(encoded, np.cumsum([len(query.parts) for query in queries])[:-1])
        answers: dict[int, Answer] = {}
        with self.metrics.part.labels("search").time():
            kinds = (each.find or self.index.kind_to_find(by_image=each.parts[0][0] == "image") for each in queries)
            alike = ((len(query.parts), find, query.filters) for query, find in zip(queries, kinds, strict=True))
            for (_, find, filters), positions in grouped(alike):
                k = max(queries[position].k for position in positions)
                of_queries = np.stack([vectors[position] for position in positions], axis=1)
                for position, hits in zip(positions, self._nearest(of_queries, find, k, filters), strict=True):
                    answers[position] = Answer(vectors[position], find, hits[: queries[position].k])
        return [answers[position] for position in range(len(queries))]

    def _encode(self, kind: Literal["clip", "image", "text"], prepared: Sequence[Any]) -> Vectors:
        vectors: Vectors = self.encoder.encode_prepared(kind, prepared)
        if not np.isfinite(vectors).all():
            raise RequestError(422, "not-finite", "The model has no finite vector for this; record or save it again.")
        return vectors

    def _nearest(
        self, vectors: Vectors, find: Kind, k: int, filters: tuple[Filter, ...]
    ) -> list[list[tuple[Item, float]]]:
        place, store = self.index.place, self.index.store
        about = store.about()
        with request_errors(409, "other-model", place):  # another process may have written it with another model
            about.check(self.encoder, place, find)
        return nearest(store, vectors, find, k, filters=filters)

    async def _run(self, kind: Hashable, content: Any, run: Callable[[list[Any]], list[T]]) -> T:
        """Runs a job in the model's thread; cancelled while it waits, it leaves the queue."""
        return await asyncio.wrap_future(self.model.submit(kind, content, run))

    async def _hear(self, audio: bytes, form: schemas.SearchForm) -> tuple[dict[str, Any], list[tuple[QueryKind, Any]]]:
        """What an answer has of a spoken query, and a part of it for each way in which it is searched for."""
        speech = form.speech or self.index.speech
        if speech not in self.index.ways:
            if speech == "transcribed" or self.encoder.has_speech:
                raise RequestError(422, "no-recognizer", "The service has no recognizer; start it with --recognizer.")
            fix = "send speech=transcribed" if "transcribed" in self.index.ways else "start it with --recognizer"
            raise RequestError(422, "no-speech-encoder", f"The service has no speech encoder; {fix}.")
        waveform = await self.in_thread(
            self._timed, "decode", load_audio, audio, max_seconds=self.settings.limits.seconds
        )
        parts: list[tuple[QueryKind, Any]] = []
        if speech != "transcribed":
            parts.append(("clip", self.encoder.side("clip").of_waveform(waveform)))
        transcript = form.transcript if speech != "direct" else None
        if speech != "direct" and transcript is None:
            side = self.index.speech_encoders("transcribed")[0].side("clip")
            heard = self._recognizing.submit(self._timed, "recognize", side.of_waveform, waveform)
            transcript = (await asyncio.wrap_future(heard)).text
        if transcript is not None:
            parts += await self._prepare("text", transcript)
        return {"speech": speech, "seconds": len(waveform) / SAMPLE_RATE, "transcript": transcript}, parts

    async def _prepare(self, kind: QueryKind, value: bytes | str) -> list[tuple[QueryKind, Any]]:
        """The parts of a query from the value of a field."""
        if isinstance(value, bytes):
            return [(kind, await self.in_thread(self._timed, "decode", self._decode, kind, value))]
        if kind == "vector":
            return [(kind, vector) for vector in from_text(value, self.encoder.dimension)]
        if not value.strip():
            raise RequestError(422, "empty-text", "The text is empty; write what you want to see.")
        if not self.encoder.has_text:
            raise RequestError(422, "no-text-encoder", "The model has no text encoder; send audio or an image.")
        return [(kind, self.encoder.prepare("text", value))]

    def _decode(self, kind: Any, content: bytes) -> Any:
        limits = self.settings.limits
        limit = {"max_seconds": limits.seconds} if kind == "clip" else {"max_pixels": limits.pixels}
        with request_errors():
            return self.encoder.prepare(kind, content, **limit)

    def _timed(self, part: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs a part of a query on a client's file, for the metrics."""
        with self.metrics.part.labels(part).time(), request_errors():
            return function(*args, **kwargs)

    def _warm_up(self) -> None:
        noise = np.random.default_rng(0).standard_normal(SAMPLE_RATE).astype(np.float32)
        items: dict[Any, Any] = {"image": Image.new("RGB", (64, 64), "gray")}
        if self.encoder.has_text:
            items["text"] = "an image"
        if self.encoder.has_speech:
            items["clip"] = noise
        if "transcribed" in self.index.ways:
            self.index.speech_encoders("transcribed")[0].side("clip").recognizer.hear(noise)
        parts = [(kind, self.encoder.prepare(kind, item)) for kind, item in items.items()]
        self.answer([Query([part], 1, "image") for part in parts])
        self.metrics.part.clear()  # no client waited for it


def _file_kind(content: bytes) -> FileKind:
    """What a file is by its content; RequestError if it is neither audio nor an image."""
    found = file_kind(io.BytesIO(content))
    if found is None:
        formats = f"audio ({READABLE_AUDIO}) nor an image ({READABLE_IMAGES})"
        message = f"file of {len(content):,} bytes: is neither {formats}; convert it"
        raise RequestError(422, "empty" if not content else "undecodable", message)
    return found


def to_text(vectors: Vectors) -> str:
    """Vectors [W, D], each as base64 of little-endian float16, separated by commas."""
    return ",".join(base64.b64encode(vector.astype("<f2").tobytes()).decode() for vector in vectors)


def from_text(text: str, dimension: int) -> list[Vectors]:
    """The unit vectors [D] of a text by :func:`to_text`; RequestError if they are not one or two of this dimension."""
    try:
        contents = [base64.b64decode(part, validate=True) for part in text.split(",")]
    except ValueError:
        raise RequestError(422, "invalid-vector", "The vector is not base64; send it as in an answer.") from None
    if len(contents) > 2 or any(len(content) != 2 * dimension for content in contents):
        sizes = " and ".join(str(len(content)) for content in contents[:3])
        message = f"The vectors have {sizes} bytes, not {2 * dimension} each; send the one or two of an answer."
        raise RequestError(422, "invalid-vector", message)
    vectors = [np.frombuffer(content, "<f2").astype(np.float32) for content in contents]
    lengths = [float(np.linalg.norm(vector)) for vector in vectors]
    if not all(np.isfinite(length) and length for length in lengths):
        raise RequestError(422, "invalid-vector", "The vector is zero or not finite; send it as in an answer.")
    return [np.asarray(vector / length) for vector, length in zip(vectors, lengths, strict=True)]


def _name(index: Index) -> str:
    """The last part of the index's address, or of its folder, or for a demo's that of the demo."""
    if index.folder is None:
        return index.place.rpartition("/")[2]
    folder = index.folder.absolute()
    return folder.parent.name if folder.name == INDEX_FOLDER else folder.name


def _uploads(index: Index, settings: ServiceSettings) -> Path | None:
    """Folder of added files; None where nothing can be added."""
    if settings.uploads is not None:
        return settings.uploads
    if index.store.folder is not None:
        return index.store.folder / UPLOADS_FOLDER
    if settings.write:
        raise ConfigError(f"{index.place}: an index in a database has no folder for added files; set --uploads")
    return None
