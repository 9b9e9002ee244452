"""Metrics of the service, for Prometheus."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class Metrics:
    """The metrics of one service.

    Args:
        counts: counts the rows of the index by kind, at every scrape.
    """

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
        rows = Gauge("saysee_index_rows", "Rows of the index", ("kind",), registry=registry)
        for kind in counts():
            rows.labels(kind).set_function(partial(lambda kind: counts()[kind], kind))


class CountingMiddleware:
    """Counts requests by route: a path that a client makes up becomes no label."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one connection (ASGI)."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = time.perf_counter(), 500

        async def send_counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, send_counted)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            method = scope["method"] if scope["method"] in ("GET", "POST", "DELETE", "HEAD", "OPTIONS") else "other"
            self.metrics.requests.labels(route, method, str(status)).inc()
            self.metrics.seconds.labels(route).observe(time.perf_counter() - start)
