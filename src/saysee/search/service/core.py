"""What a service does, apart from HTTP: fields of a form in, answers out; decoding in threads, the model in its own."""

from __future__ import annotations

import asyncio
import io
import os
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from saysee.encoding.attention import AttentionSource, attention_source
from saysee.errors import ConfigError
from saysee.files import fingerprint
from saysee.media.audio import SAMPLE_RATE, load_audio
from saysee.media.formats import file_kind
from saysee.search.index.index import Index
from saysee.search.index.store import KINDS, Kind
from saysee.search.index.uploads import UPLOADS_FOLDER
from saysee.search.service.answering import Answerer, Query, Sort, from_text, to_text
from saysee.search.service.answers import hit_answer, item_answer
from saysee.search.service.attending import Attending, attend
from saysee.search.service.batching import ModelThread, Places
from saysee.search.service.files import Thumbnails, file_of, picture_at, row_of
from saysee.search.service.items import Items, read_metadata
from saysee.search.service.metrics import Metrics
from saysee.search.service.refusals import Refusal, refusing
from saysee.search.service.settings import ServiceSettings
from saysee.version import __version__

P = ParamSpec("P")
T = TypeVar("T")

DEFAULT_K = 12
QUERY_FIELDS: dict[str, Sort] = {"audio": "clip", "image": "image", "text": "text", "vector": "vector"}
_DECODERS = min(4, os.cpu_count() or 1)
"""Threads that decode: a picture at the limit of pixels takes half a gigabyte while it is decoded."""


class Service:
    """An index, its model and what clients are allowed.

    Making one loads the model and asks it once, so that what it answers first is not slow.

    Args:
        index: to be served.
        settings: how.

    Raises:
        SaySeeError: the index or its model cannot be used.
    """

    def __init__(self, index: Index, settings: ServiceSettings) -> None:
        self.index, self.settings, self.metrics = index, settings, Metrics()
        self.answerer = Answerer(index)
        self.answerer.warm_up()
        self.uploads = _uploads(index, settings)
        self.items = Items(index, self.uploads)
        self.thumbnails = Thumbnails()
        self._threads = ThreadPoolExecutor(_DECODERS, "saysee-decoder")
        self.model = ModelThread(settings.batch, settings.wait_ms / 1_000, lambda: self.places.taken, self.metrics)
        self.places = Places(settings.places, settings.buffer_bytes, self.model.retry_after, self.metrics)

    def close(self) -> None:
        """Finishes what the model has in hand."""
        self.model.close()
        self._threads.shutdown()

    async def in_thread(self, function: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        """Runs what decodes or reads files off the event loop; cancelled before its turn, it is never run."""
        return await asyncio.wrap_future(self._threads.submit(function, *arguments, **named))

    # ------------------------------------------------------------------ what is asked

    def about(self) -> dict[str, Any]:
        """As :class:`saysee.search.service.answers.AboutAnswer`."""
        counts = self.index.counts()
        return {
            "name": _name(self.index),
            "images": counts["image"],
            "clips": counts["clip"],
            "writable": self.settings.write,
            "attention": self.attention,
            "limits": self.settings.limits.to_dict(),
            "version": __version__,
        }

    @property
    def attention(self) -> AttentionSource:
        """What attention is read from."""
        return attention_source(self.answerer.encoder.model)

    def figures(self) -> bytes:
        """The figures for Prometheus."""
        for kind, count in self.index.counts().items():
            self.metrics.rows.labels(kind).set(count)
        return self.metrics.text()

    async def search(self, fields: dict[str, Any]) -> dict[str, Any]:
        """As :class:`saysee.search.service.answers.SearchAnswer`, without the time.

        Raises:
            Refusal: a field that cannot be used.
        """
        given = [name for name in QUERY_FIELDS if name in fields]
        if len(given) != 1:
            raise Refusal(422, f"Send exactly one of {', '.join(QUERY_FIELDS)}; {len(given) or 'none'} came.")
        k, kind = self._k(fields.get("k")), self._kind(fields.get("kind"))
        name = given[0]
        content, seconds = await self._prepared(name, fields[name])
        answer = await self._ask("search", Query(QUERY_FIELDS[name], content, k, kind), self.answerer.answer)
        return {
            "query": {"kind": name, "seconds": seconds, "vector": to_text(answer.vector)},
            "kind": answer.kind,
            "hits": [hit_answer(hit, item) for hit, item in answer.hits],
        }

    async def attend(self, fields: dict[str, Any]) -> dict[str, Any]:
        """As :class:`saysee.search.service.answers.AttentionAnswer`.

        Raises:
            Refusal: a field that cannot be used, or no such picture.
        """
        row = self._whole("id", fields["id"], 2**63 - 1)
        path, _ = await self.in_thread(self.file, "image", row)
        speech = await self.in_thread(self._sound, fields["audio"])
        picture = await self.in_thread(picture_at, path)
        model = self.answerer.encoder.model
        alone = object()  # a kind of its own: nothing is run together with it
        with refusing():
            attending: Attending = await self._ask(alone, None, lambda _: [attend(model, speech, picture)])
        return attending.to_dict()

    def file(self, kind: Kind, row: int) -> tuple[str, str]:
        """Path and media type of the file of a picture or clip.

        Raises:
            Refusal: there is none.
        """
        return file_of(self.index, row_of(self.index, kind, row), self.uploads)

    def thumbnail(self, row: int) -> bytes:
        """A small picture.

        Raises:
            Refusal: there is no such picture.
        """
        return self.thumbnails.of(self.file("image", row)[0])

    # ------------------------------------------------------------------ what is changed

    async def add(self, fields: dict[str, Any]) -> tuple[dict[str, Any], bool]:
        """A picture or clip into the index.

        Returns:
            it as :class:`saysee.search.service.answers.ItemAnswer`, and whether it is new.

        Raises:
            Refusal: it is neither, cannot be used, or cannot be written.
        """
        content: bytes = fields["file"]
        metadata = read_metadata(fields["metadata"]) if "metadata" in fields else None
        found = file_kind(io.BytesIO(content))
        if found is None:
            raise Refusal(422, "The file is neither a picture nor a sound that can be read; convert it first.")
        kind, _, suffix = found
        name = await self.in_thread(fingerprint, content)
        item = await self.in_thread(self.items.find, kind, name, metadata)
        if item is not None:
            return item_answer(item), False
        prepared, _ = await self._prepared("image" if kind == "image" else "audio", content)
        vector = await self._ask(f"encode {kind}", prepared, lambda batch: self.answerer.encode(kind, batch))
        item = await self.in_thread(self.items.add, kind, content, name + suffix, vector, metadata)
        return item_answer(item), True

    # ------------------------------------------------------------------ steps

    async def _ask(self, kind: Hashable, content: Any, run: Callable[[list[Any]], list[T]]) -> T:
        """Through the model's thread; cancelled before its turn, it leaves the line."""
        result: T = await asyncio.wrap_future(self.model.submit(kind, content, run))
        return result

    async def _prepared(self, name: str, value: Any) -> tuple[Any, float | None]:
        """A field of a query as the model takes it, and the seconds of a sound."""
        if name == "audio":
            samples = await self.in_thread(self._decoded, "clip", value)
            return samples, len(samples) / SAMPLE_RATE
        if name == "image":
            return await self.in_thread(self._decoded, "image", value), None
        if name == "vector":
            return from_text(value, self.answerer.encoder.dimension), None
        return self._text(value), None

    def _decoded(self, kind: Kind, content: bytes) -> Any:
        """Samples [T] or pixels [3, H, W] as the model takes them."""
        limits = self.settings.limits
        with refusing():
            return self.answerer.encoder.prepare(kind, content, max_seconds=limits.seconds, max_pixels=limits.pixels)

    def _sound(self, content: bytes) -> NDArray[np.float32]:
        """Samples [T] as they are."""
        with refusing():
            return load_audio(content, max_seconds=self.settings.limits.seconds)

    def _text(self, text: str) -> str:
        if not text.strip():
            raise Refusal(422, "The text is empty; write what you want to see.")
        if len(text) > self.settings.limits.text:
            raise Refusal(413, f"The text has over {self.settings.limits.text:,} characters; say it in fewer.")
        if not self.answerer.has_text:
            raise Refusal(422, "This index's model understands no writing; ask by speech or by a picture.")
        return text

    def _k(self, text: str | None) -> int:
        return (
            min(DEFAULT_K, self.settings.limits.k) if text is None else self._whole("k", text, self.settings.limits.k)
        )

    @staticmethod
    def _kind(text: str | None) -> Kind | None:
        kinds: dict[str | None, Kind | None] = {None: None, **{kind: kind for kind in KINDS}}
        if text not in kinds:
            raise Refusal(422, f"The field 'kind' is one of {', '.join(KINDS)}.")
        return kinds[text]

    @staticmethod
    def _whole(name: str, text: str, most: int) -> int:
        if not (text.isascii() and text.isdigit() and len(text) < 20 and 1 <= int(text) <= most):
            raise Refusal(422, f"The field '{name}' is a whole number from 1 to {most}.")
        return int(text)


def _uploads(index: Index, settings: ServiceSettings) -> Path | None:
    """Folder of added files; None where nothing can be added."""
    if settings.uploads is not None:
        return settings.uploads
    if index.store.folder is not None:
        return index.store.folder / UPLOADS_FOLDER
    if settings.write:
        raise ConfigError(f"{index.place}: an index in a database has no folder for added files; name one by --uploads")
    return None


def _name(index: Index) -> str:
    """What people call an index."""
    return index.place.rpartition("/")[2] if index.store.folder is None else index.store.folder.absolute().name
