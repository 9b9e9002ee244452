"""``saysee serve``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from saysee.cli.printing import Result, print_result
from saysee.errors import extra_needed
from saysee.hardware import torch_device

_TOKEN_VARIABLE = "SAYSEE_TOKEN"


def serve(
    index: str,
    *,
    host: str = "127.0.0.1",
    port: int = 8765,
    token: str | None = None,
    write: bool = False,
    uploads: Path | None = None,
    model: str | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    queue: int = 64,
    batch: int = 16,
    wait: float = 5.0,
    max_bytes: int | None = None,
    max_seconds: float | None = None,
    max_pixels: int | None = None,
    max_k: int | None = None,
    max_text: int | None = None,
    json: bool = False,
) -> None:
    """Answer searches over HTTP, with a web page to speak to.

    Args:
        index: folder of the index, or its postgresql:// address
        host: address to listen on; the default admits this machine only
        port: port to listen on; 0 takes a free one
        token: secret that clients must send (default: SAYSEE_TOKEN); required if other machines can connect
        write: let clients add and remove images and clips
        uploads: folder for added files (default: uploads in the index folder)
        model: the model of the index, if it has moved
        device: device to compute on
        queue: maximum number of requests accepted at once
        batch: maximum number of queries encoded together
        wait: maximum time to wait for further queries to encode together, in milliseconds
        max_bytes: largest file, in bytes (default: 33554432)
        max_seconds: longest clip, in seconds (default: 60)
        max_pixels: largest image, in pixels (default: 64000000)
        max_k: maximum number of hits (default: 100)
        max_text: longest text, in characters (default: 1000)
        json: print the address as JSON
    """
    with extra_needed("saysee serve", "serve"):
        from saysee.search.service.app import serve
    from saysee.search.index.index import Index
    from saysee.search.service.settings import Limits, ServiceSettings

    limits: dict[str, Any] = {
        "bytes": max_bytes,
        "seconds": max_seconds,
        "pixels": max_pixels,
        "k": max_k,
        "text": max_text,
    }
    settings = ServiceSettings(
        host=host,
        port=port,
        token=token if token is not None else os.environ.get(_TOKEN_VARIABLE),
        write=write,
        uploads=uploads,
        limits=Limits(**{name: value for name, value in limits.items() if value is not None}),
        places=queue,
        batch=batch,
        wait_ms=wait,
    )
    opened = Index.open(index, model=model, device=torch_device(device))

    def ready(address: str) -> None:
        print_result(Result({"url": address, "pid": os.getpid()}, [f"{index}: served at {address}"]), json)

    serve(opened, settings, ready)
