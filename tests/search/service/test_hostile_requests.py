"""No request causes a server error: requests generated from OpenAPI, damaged files, and many clients at once."""

from __future__ import annotations

import asyncio
import io
import itertools
import time

import av
import httpx2
import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from service_tools import metric, run_apart, running

from saysee.search.service.app import make_app

SMALL, NIGHTLY = 150, 10_000
HERE = {"Host": "127.0.0.1"}
QUIET = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much]


@pytest.mark.parametrize("cases", [6, pytest.param(500, marks=pytest.mark.nightly)])
def test_requests_generated_from_openapi(make_service, cases):
    import schemathesis  # here, for it takes seconds in each process
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi import checks

    all_checks = [not_a_server_error, checks.status_code_conformance, checks.content_type_conformance]
    all_checks.append(checks.response_schema_conformance)
    app = make_app(make_service(write=True))
    schema = schemathesis.openapi.from_asgi("/openapi.json", app, headers=HERE)
    operations = [result.ok() for result in schema.get_all_operations()]
    assert len(operations) == 11
    answered = set()
    for operation in operations:

        @settings(max_examples=cases, deadline=None, derandomize=cases == 6, database=None, suppress_health_check=QUIET)
        @given(_requests(operation))
        def ask(case):
            answered.add(case.call_and_validate(checks=all_checks, headers=HERE).status_code)

        ask()
    assert answered >= {200, 404, 422}, answered


def _requests(operation):
    """Requests that follow the schema, and for operations with input, requests that break it."""
    from schemathesis import GenerationMode

    good = operation.as_strategy(generation_mode=GenerationMode.POSITIVE)
    if not operation.body and not operation.path_parameters:
        return good
    return st.one_of(good, operation.as_strategy(generation_mode=GenerationMode.NEGATIVE))


def _audio(kind: str, subtype: str | None = None) -> bytes:
    buffer = io.BytesIO()
    noise = (0.1 * np.random.default_rng(1).standard_normal(8_000)).astype(np.float32)
    soundfile.write(buffer, noise, 16_000, format=kind, subtype=subtype)
    return buffer.getvalue()


def _recording(container: str, codec: str) -> bytes:
    """As browsers record it."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as media:
        stream = media.add_stream(codec, rate=48_000)
        noise = (0.1 * np.random.default_rng(2).standard_normal((1, 24_000))).astype(np.float32)
        frame = av.AudioFrame.from_ndarray(noise, format="fltp", layout="mono")
        frame.sample_rate = 48_000
        for packet in itertools.chain(stream.encode(frame), stream.encode(None)):
            media.mux(packet)
    return buffer.getvalue()


def _image(kind: str) -> bytes:
    buffer = io.BytesIO()
    coarse = np.random.default_rng(3).integers(0, 255, (6, 5, 3), np.uint8)
    Image.fromarray(coarse).resize((60, 50)).save(buffer, kind)
    return buffer.getvalue()


AUDIO = [
    *(_audio(kind) for kind in ("WAV", "FLAC", "OGG", "MP3")),
    _audio("WAV", "FLOAT"),
    _audio("OGG", "OPUS"),
    _recording("webm", "libopus"),
    _recording("mp4", "aac"),
]
IMAGES = [_image(kind) for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")]


@st.composite
def damaged(draw, files: list[bytes]) -> bytes:
    """A good file with bytes changed, removed, doubled or inserted, most often near its start."""
    content = bytearray(draw(st.sampled_from(files)))
    for _ in range(draw(st.integers(0, 4))):
        near = st.integers(0, min(100, len(content)))
        at = draw(st.one_of(near, st.integers(0, len(content))))
        size = draw(st.sampled_from([1, 1, 2, 4, 64, 4_096]))
        way = draw(st.sampled_from(["change", "change", "cut", "put in", "double", "end"]))
        if way == "change":
            content[at : at + size] = draw(st.binary(min_size=1, max_size=min(size, 16)))
        elif way == "cut":
            del content[at : at + size]
        elif way == "put in":
            content[at:at] = draw(st.binary(max_size=64))
        elif way == "double":
            content[at:at] = content[at : at + size]
        else:
            del content[at:]
    return bytes(content)


@pytest.mark.parametrize("cases", [SMALL, pytest.param(NIGHTLY, marks=pytest.mark.nightly)])
def test_damaged_files_never_cause_a_server_error(ask, cases):
    client = ask(write=True)
    seen = {200: 0, 201: 0, 413: 0, 422: 0}

    @settings(max_examples=cases, deadline=None, derandomize=cases == SMALL, database=None, suppress_health_check=QUIET)
    @given(
        st.one_of(
            st.tuples(st.just("audio"), damaged(AUDIO)),
            st.tuples(st.just("image"), damaged(IMAGES)),
            st.tuples(st.just("file"), damaged(AUDIO + IMAGES)),
        )
    )
    def send(sent):
        field, content = sent
        answer = client.post("/items" if field == "file" else "/search", files={field: ("x", content)})
        seen[answer.status_code] += 1  # any other status fails
        if answer.status_code >= 400:
            assert "\n" not in answer.json()["detail"]

    send()
    assert sum(seen.values()) >= cases
    assert min(seen[200], seen[422]) > cases / 20, seen  # some files are rejected and some accepted


@pytest.mark.parametrize("seconds", [2, pytest.param(60, marks=pytest.mark.nightly)])
def test_fifty_clients_at_once(index, photos, seconds):
    audio, image = AUDIO[6], IMAGES[1]
    statuses: dict[int, int] = {}

    async def client(http: httpx2.AsyncClient, number: int, until: float) -> None:
        ways = itertools.cycle(
            [
                {"files": {"audio": ("x", audio)}},
                {"files": {"text": (None, "two green stars")}},
                {"files": {"image": ("x", image)}, "data": {"kind": "image"}},
                None,
            ]
        )
        for way in itertools.islice(ways, number % 4, None):
            if time.monotonic() > until:
                return
            answer = await (http.get("/images/1/thumbnail") if way is None else http.post("/search", **way))
            statuses[answer.status_code] = statuses.get(answer.status_code, 0) + 1

    async def all_clients(url: str, until: float) -> None:
        limits = httpx2.Limits(max_connections=50)
        async with httpx2.AsyncClient(base_url=url, timeout=120, limits=limits) as http:
            await asyncio.gather(*(client(http, number, until) for number in range(50)))

    with running(index.folder) as service:
        run_apart(all_clients(service.url, time.monotonic() + seconds / 5))  # warm-up
        before = service.memory()
        run_apart(all_clients(service.url, time.monotonic() + seconds))
        after = service.memory()
        metrics = service.client().get("/metrics").text
    batches = metric(metrics, "saysee_batch_size_count")
    print(
        f"{statuses}; memory {before / 1e6:.0f} MB before, {after / 1e6:.0f} MB after; "
        f"{metric(metrics, 'saysee_batch_size_sum') / batches:.1f} requests a batch"
    )
    assert set(statuses) == {200}
    assert statuses[200] > 50
    assert metric(metrics, "saysee_places_taken") == 0
    assert after - before < 100e6
