"""What a service counts of itself, for Prometheus."""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from saysee.search.service.refusals import CLIENT_LEFT

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """The figures of one service.

    Attributes:
        requests, seconds: answered requests by route, method and status, and how long they took.
        left: clients that closed their connection before they were answered.
        busy: requests turned away because all places were taken.
        places: requests with a query or a file under way.
        batch: requests that went through the model's thread together.
        model_seconds: how long the model's thread took for them.
        rows: of the index, by kind.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        of = self.registry
        ProcessCollector(registry=of)
        self.requests = Counter("saysee_requests", "Answered requests", ("route", "method", "status"), registry=of)
        self.seconds = Histogram(
            "saysee_request_seconds", "From request to answer", ("route",), buckets=_SECONDS, registry=of
        )
        self.left = Counter("saysee_clients_left", "Clients that left before they were answered", registry=of)
        self.busy = Counter("saysee_busy", "Requests turned away because all places were taken", registry=of)
        self.places = Gauge("saysee_places_taken", "Requests with a query or a file under way", registry=of)
        self.batch = Histogram(
            "saysee_batch_size", "Requests in one turn of the model", buckets=(1, 2, 4, 8, 16, 32, 64), registry=of
        )
        self.model_seconds = Histogram("saysee_model_seconds", "One turn of the model", buckets=_SECONDS, registry=of)
        self.rows = Gauge("saysee_index_rows", "Rows of the index", ("kind",), registry=of)

    def text(self) -> bytes:
        """All figures in Prometheus' format."""
        return generate_latest(self.registry)


class Counted:
    """Counts the requests of an application by their routes, so that the paths clients make up name no figure."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI says."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = time.perf_counter(), 500

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, noting)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            method = scope["method"] if scope["method"] in ("GET", "POST", "DELETE", "HEAD", "OPTIONS") else "other"
            self.metrics.requests.labels(route, method, str(status)).inc()
            self.metrics.seconds.labels(route).observe(time.perf_counter() - start)
            if status == CLIENT_LEFT:
                self.metrics.left.inc()
