"""Running a service: a port of its own, the model before the port answers, and an end that finishes what is running."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable

import uvicorn

from saysee.errors import SaySeeError
from saysee.search.index.index import Index
from saysee.search.service.app import make_app
from saysee.search.service.core import Service
from saysee.search.service.settings import ServiceSettings

_FINISH_SECONDS = 30
"""Longest that what is running is waited for at the end."""
_BACKLOG = 256


def serve(index: Index, settings: ServiceSettings, ready: Callable[[str], None]) -> None:
    """Serves an index until SIGTERM or Ctrl-C.

    The port is taken first, so that a port in use is told at once; it answers when the model is loaded.

    Args:
        index: to be served.
        settings: how.
        ready: is called with the service's address once it answers.

    Raises:
        SaySeeError: the port cannot be taken; the index or its model cannot be used.
        KeyboardInterrupt: Ctrl-C ended it.
    """
    with _bound(settings) as listener:
        service = Service(index, settings)
        name = f"[{settings.host.strip('[]')}]" if ":" in settings.host else settings.host
        config = uvicorn.Config(
            make_app(service),
            log_level="error",
            access_log=False,
            ws="none",
            proxy_headers=False,
            server_header=False,
            backlog=_BACKLOG,
            timeout_graceful_shutdown=_FINISH_SECONDS,
        )
        server = _Server(config, lambda: ready(f"http://{name}:{listener.getsockname()[1]}/"))
        # uvicorn ends in good order and then raises the signal again: SIGTERM has been obeyed by then.
        before = signal.signal(signal.SIGTERM, lambda *_: None)
        try:
            server.run(sockets=[listener])
        finally:
            signal.signal(signal.SIGTERM, before)


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()


def _bound(settings: ServiceSettings) -> socket.socket:
    host = settings.host.strip("[]")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, settings.port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise SaySeeError(f"--host {settings.host}: no such address ({error.strerror or error})") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise SaySeeError(
            f"port {settings.port} of {settings.host} cannot be taken ({error.strerror or error}); choose another with "
            "--port"
        ) from None
    return listener
