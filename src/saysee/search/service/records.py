"""What is recorded of requests: metrics for Prometheus, an id for each, and the access log."""

import json
import logging
import math
import re
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from functools import partial
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from saysee.errors import ConfigError, SaySeeError

logger = logging.getLogger(__name__)

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
_LOG_BYTES = 64 * 2**20  # some 300,000 requests
_LOGGED_PATH = 500  # characters of a path that are logged


class Metrics:
    """The metrics of one service; ``counts`` gives the rows of the index by kind, at every scrape."""

    def __init__(self, counts: Callable[[], Mapping[Any, int]] = dict) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter(
            "saysee_requests",
            "Requests by status; 499: the client left, 503: busy",
            ("route", "method", "status"),
            registry=registry,
        )
        self.seconds = Histogram("saysee_request_seconds", "From request to answer", ("route",), registry=registry)
        self.places = Gauge("saysee_places_taken", "Requests with a form in progress", registry=registry)
        self.batch = Histogram(
            "saysee_batch_size", "Jobs in one batch of the model", buckets=(1, 2, 4, 8, 16, 32, 64), registry=registry
        )
        self.model_seconds = Histogram("saysee_model_seconds", "One batch of the model", registry=registry)
        self.part = Histogram(
            "saysee_query_part_seconds",
            "Parts of a query: decode, recognize; and of the batch that it is in: encode, search",
            ("part",),
            registry=registry,
        )
        rows = Gauge("saysee_index_rows", "Rows of the index", ("kind",), registry=registry)
        for kind in counts():
            rows.labels(kind).set_function(partial(_rows, counts, kind))


def _rows(counts: Callable[[], Mapping[Any, int]], kind: Any) -> float:
    try:
        return counts()[kind]
    except SaySeeError:  # the index is out of reach; the other metrics are not
        return math.nan


class AccessLog(RotatingFileHandler):
    """A file with a JSON object a line for each request. Once it is full, the next one begins; one more is kept."""

    def __init__(self, path: Path) -> None:
        try:
            super().__init__(path, maxBytes=_LOG_BYTES, backupCount=1, encoding="utf-8")
        except OSError as error:
            reason = error.strerror or error
            raise ConfigError(f"--access-log {path}: cannot be written ({reason}); name another file") from None
        self._failed = False

    def add(self, **values: Any) -> None:
        """Writes one line."""
        text = json.dumps({"time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"), **values})
        self.handle(logging.makeLogRecord({"msg": text}))

    def handleError(self, record: logging.LogRecord) -> None:
        """Reports a full disk once, not at every request."""
        if not self._failed:
            logger.error("%s: the access log cannot be written (%s)", self.baseFilename, sys.exc_info()[1])
        del record
        self._failed = True


class RecordingMiddleware:
    """The outermost layer: gives each request an id, counts it, logs it, and answers HEAD as GET without a body.

    The id is the client's own ``X-Request-ID`` if that is short and plain; the answer has it in the same header, and
    errors in ``request_id``. Requests are counted by route: a path that a client makes up becomes no label.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, log: AccessLog | None) -> None:
        self.app, self.metrics, self.log = app, metrics, log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one connection (ASGI)."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        method = scope["method"]
        # A copy, as the server must still know that it was HEAD.
        scope = {**scope, "method": "GET" if method == "HEAD" else method}
        scope["state"] = {**scope.get("state", {}), "request_id": request_id}
        start, status, sent = time.perf_counter(), 500, 0

        async def send_recorded(message: Message) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = request_id
            elif method == "HEAD":
                message = {**message, "body": b""}
            sent += len(message.get("body", b""))
            await send(message)

        try:
            await self.app(scope, receive, send_recorded)
        finally:
            seconds = time.perf_counter() - start
            route = getattr(scope.get("route"), "path", "none")
            known = method if method in ("GET", "POST", "DELETE", "HEAD", "OPTIONS") else "other"
            self.metrics.requests.labels(route, known, str(status)).inc()
            self.metrics.seconds.labels(route).observe(seconds)
            if self.log is not None:
                client = (scope.get("client") or ("",))[0]
                path, taken = scope["path"][:_LOGGED_PATH], round(seconds, 6)
                self.log.add(
                    request_id=request_id, client=client, method=method, path=path, status=status, bytes=sent,
                    seconds=taken,
                )  # fmt: skip
