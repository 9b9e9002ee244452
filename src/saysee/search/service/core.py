"""What the service does, without HTTP: forms in, answers out; decoding in threads, the model in its own thread."""

from __future__ import annotations

import asyncio
import io
import os
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from fastapi import UploadFile

from saysee.encoding.attention import attention_source
from saysee.errors import ConfigError, SaySeeError
from saysee.files import fingerprint
from saysee.media.audio import SAMPLE_RATE, load_audio
from saysee.media.formats import AUDIO_SUFFIXES, IMAGE_SUFFIXES, file_kind
from saysee.search.index.filters import Filter, parse_filters
from saysee.search.index.index import Index
from saysee.search.index.sources import UPLOADS_FOLDER
from saysee.search.index.store import Kind
from saysee.search.service.answering import Answerer, Query, QueryKind, from_text, to_text
from saysee.search.service.attending import attend
from saysee.search.service.batching import ModelThread, Places
from saysee.search.service.errors import RequestError, client_errors, one_line
from saysee.search.service.items import Items
from saysee.search.service.metrics import Metrics
from saysee.search.service.schemas import AboutAnswer, AttentionForm, ItemForm, SearchForm, hit_answer, item_answer
from saysee.search.service.settings import ServiceSettings
from saysee.version import __version__

P = ParamSpec("P")
T = TypeVar("T")

QUERY_FIELDS: dict[str, QueryKind] = {"audio": "clip", "image": "image", "text": "text", "vector": "vector"}
_DECODERS = min(4, os.cpu_count() or 1)
"""Threads that decode: an image at the limit of pixels takes half a gigabyte while it is decoded."""


class Service:
    """An index, its model and what clients may do.

    Creating one loads the model and runs it once, so that the first answer is not slow.

    Args:
        index: the index that is served.
        settings: of the service.

    Raises:
        SaySeeError: the index or its model cannot be used.
    """

    def __init__(self, index: Index, settings: ServiceSettings) -> None:
        self.index, self.settings, self.metrics = index, settings, Metrics(index.counts)
        self.answerer = Answerer(index)
        self.answerer.warm_up()
        self.items = Items(index, _uploads(index, settings))
        self._threads = ThreadPoolExecutor(_DECODERS, "saysee-decoder")
        self.model = ModelThread(settings.batch, settings.wait_ms / 1_000, lambda: self.places.taken, self.metrics)
        self.places = Places(settings.places, settings.buffer_bytes, self.model.retry_after, self.metrics)

    def close(self) -> None:
        """Finishes the jobs of the model and ends all threads."""
        self.model.close()
        self._threads.shutdown()

    async def in_thread(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs a function that decodes or reads files off the event loop; cancelled while it waits, it never runs."""
        return await asyncio.wrap_future(self._threads.submit(function, *args, **kwargs))

    def about(self) -> AboutAnswer:
        """What is served."""
        counts, folder = self.index.counts(), self.index.store.folder
        return AboutAnswer(
            name=self.index.place.rpartition("/")[2] if folder is None else folder.absolute().name,
            images=counts["image"],
            clips=counts["clip"],
            writable=self.settings.write,
            attention=attention_source(self.answerer.encoder.model),
            limits=self.settings.limits,
            formats={"image": sorted(IMAGE_SUFFIXES), "clip": sorted(AUDIO_SUFFIXES)},
            version=__version__,
        )

    async def search(self, form: SearchForm) -> dict[str, Any]:
        """The fields of a :class:`saysee.search.service.schemas.SearchAnswer`, without the time.

        Raises:
            RequestError: a field cannot be used.
        """
        given = [name for name in QUERY_FIELDS if getattr(form, name) is not None]
        if len(given) != 1:
            raise RequestError(422, "one-query", f"Send exactly one of {', '.join(QUERY_FIELDS)}; got {len(given)}.")
        (name,) = given
        filters = _filters(form.filter)
        content, seconds = await self._prepare(name, getattr(form, name))
        query = Query(QUERY_FIELDS[name], content, form.k, form.kind, filters)
        answer = await self._run("search", query, self.answerer.answer)
        return {
            "query": {"kind": name, "seconds": seconds, "vector": to_text(answer.vector)},
            "kind": answer.kind,
            "hits": [hit_answer(hit, item) for hit, item in answer.hits],
        }

    async def attend(self, form: AttentionForm) -> dict[str, Any]:
        """The fields of an :class:`saysee.search.service.schemas.AttentionAnswer`.

        Raises:
            RequestError: the clip cannot be used, or there is no such image.
        """
        image = await self.in_thread(self.items.image, form.id)
        audio = await form.audio.read()
        with client_errors():
            speech = await self.in_thread(load_audio, audio, max_seconds=self.settings.limits.seconds)
            encoder = self.answerer.encoder
            alone = object()  # a kind of its own, so that nothing shares the batch
            found = await self._run(alone, None, lambda _: [attend(encoder, speech, image)])
        return found.to_dict()

    async def add(self, form: ItemForm) -> tuple[dict[str, Any], bool]:
        """Adds an image or clip to the index.

        Returns:
            the fields of its :class:`saysee.search.service.schemas.ItemAnswer`, and whether it is new.

        Raises:
            RequestError: the file is neither, cannot be used, or cannot be written.
        """
        content = await form.file.read()
        found = file_kind(io.BytesIO(content))
        if found is None:
            raise RequestError(
                422, "undecodable", "The file is neither an image nor audio that can be read; convert it."
            )
        kind, _, suffix = found
        name = await self.in_thread(fingerprint, content)
        item = await self.in_thread(self.items.find, kind, name, form.metadata)
        if item is not None:
            return item_answer(item), False
        prepared = await self.in_thread(self._decode, kind, content)
        vector = await self._run(f"encode {kind}", prepared, lambda batch: self.answerer.encode(kind, batch))
        item = await self.in_thread(self.items.add, kind, content, name + suffix, vector, form.metadata)
        return item_answer(item), True

    async def _run(self, kind: Hashable, content: Any, run: Callable[[list[Any]], list[T]]) -> T:
        """Runs a job in the model's thread; cancelled while it waits, it leaves the queue."""
        result: T = await asyncio.wrap_future(self.model.submit(kind, content, run))
        return result

    async def _prepare(self, name: str, value: UploadFile | str) -> tuple[Any, float | None]:
        """The field of a query as the model takes it, and the duration of a clip in seconds."""
        if name == "vector":
            return from_text(str(value), self.answerer.encoder.dimension), None
        if isinstance(value, str):
            return self._text(value), None
        kind: Kind = "clip" if name == "audio" else "image"
        prepared = await self.in_thread(self._decode, kind, await value.read())
        return prepared, len(prepared) / SAMPLE_RATE if kind == "clip" else None

    def _decode(self, kind: Kind, content: bytes) -> Any:
        """Samples [T] or pixels [3, H, W] as the model takes them."""
        limits = self.settings.limits
        with client_errors():
            most = {"max_seconds": limits.seconds} if kind == "clip" else {"max_pixels": limits.pixels}
            return self.answerer.encoder.prepare(kind, content, **most)

    def _text(self, text: str) -> str:
        if not text.strip():
            raise RequestError(422, "empty-text", "The text is empty; write what you want to see.")
        if not self.answerer.has_text:
            raise RequestError(
                422, "no-text-encoder", "The model of this index has no text encoder; send audio or an image."
            )
        return text


def _filters(texts: list[str]) -> tuple[Filter, ...]:
    try:
        return parse_filters(texts)
    except SaySeeError as error:
        raise RequestError(422, "invalid-filter", one_line(error)) from None


def _uploads(index: Index, settings: ServiceSettings) -> Path | None:
    """Folder of added files; None where nothing can be added."""
    if settings.uploads is not None:
        return settings.uploads
    if index.store.folder is not None:
        return index.store.folder / UPLOADS_FOLDER
    if settings.write:
        raise ConfigError(f"{index.place}: an index in a database has no folder for added files; set --uploads")
    return None
