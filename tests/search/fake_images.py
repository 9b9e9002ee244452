"""A small server of images as Immich's API gives them: by the id of an asset, for who has the key."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

KEY = "the-key-of-the-library"


@dataclass
class FakeImages:
    """The server.

    Attributes:
        base: its address.
        key: which requests must have.
        images: the file of each asset.
        asked: the addresses that were asked for, with the key or not.
        mode: "good", or how it misbehaves: "html", "cut", "huge", "slow", "redirect".
    """

    base: str
    key: str
    images: dict[str, Path]
    asked: list[str] = field(default_factory=list)
    mode: str = "good"


@contextlib.contextmanager
def serving(images: dict[str, Path]) -> Iterator[FakeImages]:
    """Runs it in a thread."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            fake.asked.append(self.path)
            parts = self.path.partition("?")[0].split("/")
            if self.headers.get("x-api-key") != fake.key:
                return self.answer(401, b"{}", "application/json")
            if fake.mode == "redirect":
                self.send_response(302)
                self.send_header("Location", "http://elsewhere.example/")
                self.end_headers()
                return None
            if parts[1:3] != ["api", "assets"] or parts[4:] != ["thumbnail"] or parts[3] not in fake.images:
                return self.answer(400, b"{}", "application/json")
            content = fake.images[parts[3]].read_bytes()
            if fake.mode == "html":
                return self.answer(200, b"<html><script>alert(1)</script></html>", "image/png")
            if fake.mode == "cut":
                return self.answer(200, content[: len(content) // 2], "text/html", len(content))
            if fake.mode == "huge":
                content += bytes(40 * 2**20)
            return self.answer(200, content, "text/html")  # what it calls its answer does not count

        def answer(self, status: int, content: bytes, media_type: str, length: int | None = None) -> None:
            self.send_response(status)
            self.send_header("Content-Type", media_type)
            self.send_header("Content-Length", str(length or len(content)))
            self.end_headers()
            with contextlib.suppress(OSError):  # the client has had enough
                for start in range(0, len(content), 1 if fake.mode == "slow" else len(content)):
                    self.wfile.write(content[start : start + (1 if fake.mode == "slow" else len(content))])
                    if fake.mode == "slow":
                        time.sleep(0.1)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    fake = FakeImages(f"http://127.0.0.1:{server.server_port}", KEY, images)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
