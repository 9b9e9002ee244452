"""Services behind a real port, in a thread of this process and as a process of their own."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import uvicorn

from saysee.search.service.app import make_app
from saysee.search.service.connections import server_config
from saysee.search.service.core import Service
from saysee_process import Started, start_saysee

PATIENCE = 120


def run_apart(coroutine: Coroutine[Any, Any, None]) -> None:
    """Runs a coroutine in a thread of its own: the browser's tests leave a running loop in this one."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, coroutine).result()


@contextmanager
def listening(service: Service) -> Iterator[int]:
    """A service behind a real port, in a thread of this process."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = server_config(make_app(service), service.settings)
    config.lifespan = "off"
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        wait_until(lambda: server.started)
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()


def wait_until(holds: Callable[[], bool], seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it never came to be"
        time.sleep(0.005)


@contextmanager
def running(folder: Path, *words: object, program: str | None = None) -> Iterator[Running]:
    """``saysee serve``, or a program that takes its words, as a process of its own."""
    process = start_saysee("serve", folder, "--port", "0", "--json", *words, program=program)
    try:
        line = process.stdout.readline()
        assert line, process.stderr.read()
        yield Running(process, json.loads(line)["url"])
    finally:
        process.kill()
        process.communicate()


class Running:
    def __init__(self, process: Started, url: str) -> None:
        self.process, self.url = process, url
        self.port = int(url.rstrip("/").rpartition(":")[2])

    def client(self, **settings) -> httpx2.Client:
        return httpx2.Client(base_url=self.url, timeout=PATIENCE, **settings)

    def memory(self, **headers: str) -> float:
        return metric(self.client(headers=headers).get("/metrics").text, "process_resident_memory_bytes")

    def end(self, signal: int) -> tuple[int, str]:
        """Exit code and what was written on stderr."""
        os.kill(self.process.pid, signal)
        _, errors = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, errors


def metric(text: str, name: str) -> float:
    """A metric of Prometheus' text; 0 if it is not there yet."""
    return next((float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(f"{name} ")), 0.0)


def multipart(port: int, fields: dict[str, bytes], path: str = "/search") -> tuple[bytes, bytes]:
    """Head and body of a request, for a socket that sends them as it likes; files' names end in a dot."""
    parts = []
    for name, value in fields.items():
        file = b'; filename="x"' if name.endswith(".") else b""
        name = name.rstrip(".").encode()
        parts.append(
            b'--b\r\nContent-Disposition: form-data; name="' + name + b'"' + file + b"\r\n\r\n" + value + b"\r\n"
        )
    body = b"".join(parts) + b"--b--\r\n"
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: multipart/form-data; boundary=b\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode(), body
