"""The server behind an application: its socket, and how long a client may keep a connection waiting.

uvicorn limits the time between two requests only. Here each request's head and body, and the reading of its answer,
have a time limit too. Where there are more connections than the limit, the one that has waited longest for its client
is closed, so that a new client is answered whatever the others do.
"""

import asyncio
import os
import signal
import socket
from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from saysee.errors import SaySeeError
from saysee.search.service.settings import ServiceSettings
from saysee.signals import on_signals

_FINISH_SECONDS = 30  # that requests in progress may take after the signal to stop
_BACKLOG = 128  # connections that the system accepts before the server does
_CONNECTIONS = 512
_LEAST_CONNECTIONS = 16
_HEAD_SECONDS = 10.0  # for the head of a request; browsers and scripts send it in one packet
_REST_SECONDS = 5.0  # for the rest of a body that was answered before it had arrived
_ANSWER_SECONDS = 60.0  # for the client to read some 50 kB of an answer, or its end
_MARGIN_SECONDS = 2.0  # by which a body's own limit, which is answered by 408, comes first


def _then_watch(method: Callable[..., None]) -> Any:
    """A method of a connection that then looks at the clock."""

    @wraps(method)
    def watched(self: Any, *given: Any) -> None:
        method(self, *given)
        self._watch()

    return watched


class Connection(H11Protocol):
    """One connection of ``most`` at once; it is closed when its client keeps it waiting for too long."""

    def __init__(self, *, most: int, body_seconds: float, **options: Any) -> None:
        super().__init__(**options)
        self.most = most
        self._seconds = {"head": _HEAD_SECONDS, "body": body_seconds, "rest": _REST_SECONDS, "answer": _ANSWER_SECONDS}
        self._waits_for: str | None = None
        self._since = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Begins to wait for the first request."""
        super().connection_made(transport)
        self._watch()
        if len(self.connections) > self.most:
            others: Any = self.connections
            waiting = [other for other in others if other._waits_for and not other.transport.is_closing()]
            min(waiting, key=lambda other: other._since).transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops the clock."""
        super().connection_lost(exc)
        if self._timer is not None:
            self._timer.cancel()

    # Each of these may change what the client must do next.
    data_received = _then_watch(H11Protocol.data_received)
    on_response_complete = _then_watch(H11Protocol.on_response_complete)
    timeout_keep_alive_handler = _then_watch(H11Protocol.timeout_keep_alive_handler)
    pause_writing = _then_watch(H11Protocol.pause_writing)
    resume_writing = _then_watch(H11Protocol.resume_writing)

    def _watch(self) -> None:
        """Starts the clock for what the client must do next, unless it runs already."""
        waits_for = self._next()
        if waits_for == self._waits_for:
            return
        self._waits_for, self._since = waits_for, self.loop.time()
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        if waits_for is not None:
            self._timer = self.loop.call_later(self._seconds[waits_for], self.transport.abort)

    def _next(self) -> str | None:
        """What the client must do: send a head, a body or its rest, or read the answer; None while it waits itself."""
        if self.flow.write_paused or self.transport.is_closing():
            return "answer"
        if self.conn.their_state is h11.SEND_BODY:
            return "rest" if self.cycle.response_complete else "body"
        return "head" if self.conn.their_state is h11.IDLE else None


def serve_app(app: FastAPI, settings: ServiceSettings, listener: socket.socket, ready: Callable[[str], None]) -> None:
    """As :func:`saysee.search.service.app.serve`, of an application and a bound socket."""
    host = f"[{settings.host.strip('[]')}]" if ":" in settings.host else settings.host

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            ready(f"http://{host}:{listener.getsockname()[1]}/")  # signals are handled from here on

    # uvicorn shuts down and then raises the signal again, when SIGTERM has been obeyed already.
    with on_signals(lambda *_: None, signal.SIGTERM):
        Server(server_config(app, settings)).run(sockets=[listener])


def server_config(app: FastAPI, settings: ServiceSettings) -> uvicorn.Config:
    """How uvicorn serves an application."""
    connection: Any = partial(
        Connection, most=_most_connections(), body_seconds=settings.body_seconds + _MARGIN_SECONDS
    )
    return uvicorn.Config(
        app,
        http=connection,
        log_level="error",
        access_log=False,
        ws="none",
        proxy_headers=False,
        server_header=False,
        backlog=_BACKLOG,
        timeout_graceful_shutdown=_FINISH_SECONDS,
    )


def bind(settings: ServiceSettings) -> socket.socket:
    """The socket of a service; SaySeeError if there is no such address, or the port cannot be bound."""
    try:
        found = socket.getaddrinfo(settings.host.strip("[]"), settings.port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, address = found[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise SaySeeError(f"--host {settings.host}: no such address ({error.strerror or error})") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        reason = error.strerror or error
        raise SaySeeError(f"--port {settings.port}: cannot be bound ({reason}); choose another port") from None
    return listener


def _most_connections() -> int:
    """Half of the files that this process may still open; without any, asyncio accepts nothing, and logs that without
    end. The other half is for the files of the answers."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return _CONNECTIONS
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY:
        return _CONNECTIONS
    spare = limit - len(os.listdir("/dev/fd")) - _BACKLOG
    return max(_LEAST_CONNECTIONS, min(_CONNECTIONS, spare // 2))
