"""``saysee serve``."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

from saysee.cli.parsing import verb
from saysee.cli.printing import EXIT_DONE
from saysee.errors import extra_needed
from saysee.hardware import torch_device

_TOKEN_VARIABLE = "SAYSEE_TOKEN"


def add_verbs(verbs: Any) -> None:
    """Adds ``serve``."""
    serve = verb(verbs, "serve", _serve, "answer searches over HTTP, with a page to speak to")
    serve.add_argument("index", metavar="INDEX", help="folder of the index")
    serve.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; another machine's way in (%(default)s)"
    )
    serve.add_argument("--port", type=int, default=8765, help="0 takes a free one (%(default)s)")
    serve.add_argument("--token", help=f"what clients must show; needed beyond this machine (or set {_TOKEN_VARIABLE})")
    serve.add_argument("--write", action="store_true", help="let clients add and remove pictures and clips")
    serve.add_argument("--uploads", metavar="DIR", help="folder of what they add (uploads in the index)")
    serve.add_argument("--model", metavar="MODEL", help="where the index's model lies now")
    serve.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"), help="where (%(default)s)")
    serve.add_argument("--queue", type=int, default=64, metavar="N", help="requests taken on at once (%(default)s)")
    serve.add_argument("--batch", type=int, default=16, metavar="N", help="queries encoded together (%(default)s)")
    serve.add_argument(
        "--wait", type=float, default=5.0, metavar="MS", help="longest wait for queries on their way (%(default)s)"
    )
    for name, kind, text in (
        ("bytes", int, "of a file (33554432)"),
        ("seconds", float, "of a sound (60)"),
        ("pixels", int, "of a picture (64000000)"),
        ("k", int, "hits (100)"),
        ("text", int, "characters of a text (1000)"),
    ):
        serve.add_argument(f"--max-{name}", type=kind, metavar="N", help=f"most {text}")


def _serve(options: argparse.Namespace) -> int:
    with extra_needed("saysee serve", "serve"):
        from saysee.search.service.app import serve
    from saysee.search.index.index import Index
    from saysee.search.service.settings import Limits, ServiceSettings

    given = {field.name: getattr(options, f"max_{field.name}") for field in fields(Limits)}
    settings = ServiceSettings(
        host=options.host,
        port=options.port,
        token=options.token if options.token is not None else os.environ.get(_TOKEN_VARIABLE),
        write=options.write,
        uploads=None if options.uploads is None else Path(options.uploads),
        limits=Limits(**{name: value for name, value in given.items() if value is not None}),
        places=options.queue,
        batch=options.batch,
        wait_ms=options.wait,
    )
    index = Index.open(options.index, model=options.model, device=torch_device(options.device))

    def ready(address: str) -> None:
        told = {"url": address, "pid": os.getpid()}
        print(json.dumps(told) if options.json else f"{options.index}: served at {address}", flush=True)

    serve(index, settings, ready)
    return EXIT_DONE
