"""A spoken query over HTTP, from the audio file to the hits, against the encoder's forward pass alone; and many."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from benchmarks.search.encoding import noise
from benchmarks.search.models import Size, model_of
from benchmarks.search.turns import ratio, take_turns
from benchmarks.search.vectors import write_vectors
from saysee.encoding.encoder import Encoder
from saysee.errors import SaySeeError
from saysee.media.audio import SAMPLE_RATE
from saysee.search.index.imported_vectors import index_vectors
from saysee.search.index.readers.files import read_files

SECONDS = 5.0
CLIENTS, CLIENT_SECONDS, ASKING_SECONDS = 50, 4.0, 20.0
"""Clients at the same time, the speech that each sends, and how long they go on."""
WARM_UP = 3
_BOUNDARY = "saysee-benchmark"
_PATIENCE_SECONDS = 60.0


def compare_spoken(size: Size, rows: int, rounds: int, scratch: Path) -> dict[str, Any]:
    """Times ``POST /search`` of ``saysee serve`` and the forward pass of the same encoder in this process, in turn.

    Args:
        size: of the model.
        rows: number of vectors in the index.
        rounds: timed rounds.
        scratch: folder for model, vectors and index.

    Returns:
        p50 and p99 of both in milliseconds, and the ratio of the p50; for many clients at once, each of which asks
        again when it is answered, the requests a second and the p99.

    Raises:
        SaySeeError: the service does not start.
    """
    model = model_of(size)
    model.save_pretrained(scratch / "model")
    encoder = Encoder(scratch / "model", "cpu")
    vectors, ids, _ = write_vectors(scratch / "vectors", rows, 1, encoder.dimension)
    index_vectors(encoder, read_files(vectors, ids, encoder.dimension), scratch / "index")
    samples = noise(np.random.default_rng(0), SECONDS)
    prepared = [encoder.prepare("clip", samples)]
    body = _form(samples)

    @torch.inference_mode()
    def forward() -> None:
        encoder.side("clip").vectors(prepared)

    with _served(scratch / "index") as address:
        turns = {"forward": forward, "http": lambda: _ask(address, body)}
        take_turns(turns, WARM_UP)
        spent = take_turns(turns, rounds)
        many = _ask_at_once(address, _form(noise(np.random.default_rng(0), CLIENT_SECONDS)))
    return {
        "size": size,
        "rows": rows,
        "seconds_of_speech": SECONDS,
        "arithmetic": encoder.side("clip").precision,
        "rounds": rounds,
        "forward_p50_ms": round(1000 * spent["forward"].median(), 1),
        "http_p50_ms": round(1000 * spent["http"].median(), 1),
        "http_p99_ms": round(1000 * spent["http"].percentile(99), 1),
        "ratio_of_p50": round(spent["http"].median() / spent["forward"].median(), 3),
        "median_ratio": round(ratio(spent["http"], spent["forward"]), 3),
        **many,
    }


@contextmanager
def _served(index: Path) -> Iterator[str]:
    """Runs ``saysee serve`` within a ``with`` block, and gives its address."""
    command = [sys.executable, "-m", "saysee", "serve", str(index), "--port", "0", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise SaySeeError("'saysee serve' did not start; fix the error above and run it again")
        yield json.loads(line)["url"].rstrip("/")
    finally:
        process.terminate()
        try:
            process.wait(_PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _ask(address: str, body: bytes) -> None:
    request = urllib.request.Request(
        f"{address}/search", body, {"Content-Type": f"multipart/form-data; boundary={_BOUNDARY}"}
    )
    with urllib.request.urlopen(request, timeout=_PATIENCE_SECONDS) as answer:
        if not json.load(answer)["hits"]:
            raise SaySeeError(f"{address}: the service found nothing; give an index with rows")


def _ask_at_once(address: str, body: bytes) -> dict[str, Any]:
    start = time.perf_counter()

    def ask(_: int) -> list[float]:
        taken = []
        while (begun := time.perf_counter()) < start + ASKING_SECONDS:
            _ask(address, body)
            taken.append(time.perf_counter() - begun)
        return taken

    with ThreadPoolExecutor(CLIENTS) as clients:
        taken = [each for of_client in clients.map(ask, range(CLIENTS)) for each in of_client]
    seconds = time.perf_counter() - start
    return {
        "clients": CLIENTS,
        "requests_per_second": round(len(taken) / seconds, 1),
        "clients_p99_ms": round(1000 * float(np.percentile(taken, 99)), 1),
    }


def _form(samples: Any) -> bytes:
    """A multipart body with a WAV file, as browsers send it."""
    wav = io.BytesIO()
    soundfile.write(wav, samples, SAMPLE_RATE, format="WAV")
    head = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="audio"; filename="query.wav"\r\n\r\n'
    return head.encode() + wav.getvalue() + f"\r\n--{_BOUNDARY}--\r\n".encode()
