"""``saysee serve``."""

import os
import sys
import threading
import webbrowser
from pathlib import Path
from typing import Literal

from saysee.cli.printing import Result, print_result
from saysee.cli.search import open_recognizer
from saysee.errors import extra_needed


def serve(
    index: str,
    *,
    host: str = "127.0.0.1",
    port: int = 8765,
    token: str | None = None,
    write: bool = False,
    uploads: Path | None = None,
    images_from: str | None = None,
    recognizer: str | None = None,
    language: str | None = None,
    speech: Literal["direct", "transcribed", "both"] | None = None,
    model: str | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    queue: int = 64,
    batch: int = 16,
    wait: float = 5.0,
    max_bytes: int = 33_554_432,
    max_seconds: float = 60.0,
    max_pixels: int = 64_000_000,
    max_k: int = 100,
    max_text: int = 1000,
    max_rerank: int = 50,
    access_log: Path | None = None,
    json: bool = False,
) -> None:
    """Answer searches over HTTP, with a web page to speak to.

    In a terminal on a desktop, the page is opened in the browser, unless other machines are admitted.

    Args:
        index: folder of the index or of a demo, or its address (postgresql://, lance://, s3://)
        host: address to listen on; the default admits this machine only
        port: port to listen on; 0 takes a free one
        token: secret that clients must send (default: SAYSEE_TOKEN); required if other machines can connect
        write: let clients add and remove images and clips
        uploads: folder for added files (default: uploads in the index folder)
        images_from: address of the server that has the images of the index; its key is in SAYSEE_IMAGES_KEY
        recognizer: transcribe speech and search for the text: a size of Whisper such as small, or its folder
        language: of the speech, such as en, for the recognizer (default: detected)
        speech: unless a client chooses, search by the model's speech encoder (direct), by the transcript (transcribed),
            or both rankings fused (default: transcribed with --recognizer, else direct)
        model: the model of the index, if it has moved
        device: device to compute on
        queue: maximum number of requests processed at once
        batch: maximum number of queries encoded together
        wait: maximum time to wait for further queries to encode together, in milliseconds
        max_bytes: largest file, in bytes
        max_seconds: longest clip, in seconds
        max_pixels: largest image, in pixels
        max_k: maximum number of hits
        max_text: longest text, in characters
        max_rerank: maximum number of hits that are re-ranked
        access_log: file to write a line of JSON to for each request
        json: print the address as JSON
    """
    with extra_needed("saysee serve", "serve"):
        from saysee.search.service.app import serve
    from saysee.media.web import ImageServer
    from saysee.search.index.index import Index
    from saysee.search.service.settings import Limits, ServiceSettings

    settings = ServiceSettings(
        host=host,
        port=port,
        token=token if token is not None else os.environ.get("SAYSEE_TOKEN"),
        write=write,
        uploads=uploads,
        images_from=None if images_from is None else ImageServer(images_from),
        limits=Limits(max_bytes, max_seconds, max_pixels, max_k, max_text, max_rerank),
        places=queue,
        batch=batch,
        wait_ms=wait,
        access_log=access_log,
    )

    heard_by = open_recognizer(recognizer, language, device)
    opened = Index.open(index, model=model, device=device, recognizer=heard_by, speech=speech)

    def ready(address: str) -> None:
        line = f"{opened.place}: served at {address}"  # the address of a database, as typed, may hold its password
        print_result(Result({"url": address, "pid": os.getpid()}, [line]), json)
        if not json and settings.token is None and _has_desktop():
            threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()  # it may wait for its end

    serve(opened, settings, ready)


def _has_desktop() -> bool:
    """Whether a person sits at this machine who can see a browser: not in a script, over SSH or without a display."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()) or "SSH_CONNECTION" in os.environ:
        return False
    return sys.platform in ("darwin", "win32") or bool({"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys())
