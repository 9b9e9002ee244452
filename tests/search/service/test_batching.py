"""Queries wait a bounded time for each other, share a batch, and free their places when their clients leave."""

from __future__ import annotations

import socket
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest
from prometheus_client import generate_latest
from service_tools import listening, multipart, wait_until

from saysee.search.service.batching import ModelThread
from saysee.search.service.records import Metrics


@pytest.fixture
def make_thread():
    threads = []

    def make(batch: int = 8, wait_seconds: float = 0.0, incoming=lambda: 0) -> ModelThread:
        threads.append(ModelThread(batch, wait_seconds, incoming, Metrics()))
        return threads[-1]

    yield make
    for thread in threads:
        thread.close()


class Held:
    """Keeps the model's thread busy until it is released."""

    def __init__(self, thread: ModelThread) -> None:
        self.release, self.begun = threading.Event(), threading.Event()
        self.future = thread.submit("held", None, self._run)
        assert self.begun.wait(60)

    def _run(self, contents: list) -> list:
        self.begun.set()
        assert self.release.wait(60)
        return contents


def test_queued_jobs_are_batched_by_kind(make_thread):
    thread = make_thread(batch=3)
    held = Held(thread)
    batches = []

    def run(contents: list) -> list:
        batches.append(contents)
        return [-content for content in contents]

    futures = [thread.submit(kind, number, run) for number, kind in enumerate("aabab")]
    held.release.set()
    assert [future.result(60) for future in futures] == [0, -1, -2, -3, -4]
    assert batches == [[0, 1], [2], [3], [4]]  # three of a batch by kind, then the other two


def test_a_failing_job_does_not_fail_its_batch(make_thread):
    thread = make_thread()
    held = Held(thread)

    def run(contents: list) -> list:
        if 2 in contents:
            raise ValueError("two")
        return contents

    futures = [thread.submit("a", number, run) for number in range(4)]
    held.release.set()
    assert [futures[number].result(60) for number in (0, 1, 3)] == [0, 1, 3]
    with pytest.raises(ValueError, match="two"):
        futures[2].result(60)


def test_a_job_waits_only_for_incoming_requests_and_not_for_long(make_thread):
    alone = make_thread(wait_seconds=30, incoming=lambda: 1)
    start = time.monotonic()
    alone.submit("a", 1, list).result(60)
    assert time.monotonic() - start < 10  # it is the only incoming request itself
    seen = []
    expecting = make_thread(wait_seconds=30, incoming=lambda: 2)
    first = expecting.submit("a", 1, lambda contents: seen.append(contents) or contents)
    second = expecting.submit("a", 2, list)
    assert (first.result(20), second.result(20), seen) == (1, 2, [[1, 2]])
    bounded = make_thread(wait_seconds=0.05, incoming=lambda: 2)
    assert bounded.submit("a", 1, list).result(60) == 1


def test_a_cancelled_job_leaves_the_queue_and_never_runs(make_thread):
    thread = make_thread()
    held = Held(thread)
    ran = []
    futures = [thread.submit("a", number, lambda contents: ran.extend(contents) or contents) for number in range(3)]
    assert thread.pending() == 4
    assert futures[1].cancel()
    assert thread.pending() == 3
    held.release.set()
    assert futures[2].result(60) == 2
    assert ran == [0, 2]


def test_closing_runs_the_queued_jobs(make_thread):
    thread = make_thread()
    held = Held(thread)
    future = thread.submit("a", 1, list)
    threading.Timer(0.05, held.release.set).start()
    thread.close()
    assert future.result(0) == 1


def counted(service, status: int) -> float:
    """Requests to /search with this status, as Prometheus reads them."""
    labels = {"route": "/search", "method": "POST", "status": str(status)}
    return service.metrics.registry.get_sample_value("saysee_requests_total", labels)


def post(port: int, path: str = "/search", **settings) -> httpx2.Response:
    return httpx2.post(f"http://127.0.0.1:{port}{path}", timeout=60, **settings)


def test_a_busy_service_says_when_to_retry_and_answers_what_it_accepted(make_service):
    service = make_service(places=2)
    with listening(service) as port, ThreadPoolExecutor(2) as clients:
        held = Held(service.model)
        taken = [clients.submit(post, port, files={"text": (None, "two green stars")}) for _ in range(2)]
        wait_until(lambda: service.model.pending() == 3)
        rejected = post(port, files={"text": (None, "a")})
        assert rejected.status_code == 503
        assert int(rejected.headers["retry-after"]) >= 1
        assert rejected.json()["code"] == "busy"
        assert httpx2.get(f"http://127.0.0.1:{port}/health").status_code == 200  # the event loop is free
        held.release.set()
        assert [answer.result().status_code for answer in taken] == [200, 200]
        assert post(port, files={"text": (None, "a")}).status_code == 200
        assert counted(service, 503) == 1


@pytest.mark.parametrize("how", ["closed", "reset"])
def test_a_client_that_leaves_frees_its_place(make_service, how):
    service = make_service(places=1)
    with listening(service) as port:
        held = Held(service.model)
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(b"".join(multipart(port, {"text": b"two green stars"})))
            wait_until(lambda: service.model.pending() == 2)
            assert post(port, files={"text": (None, "a")}).status_code == 503
            if how == "reset":
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        wait_until(lambda: service.places.taken == 0)
        assert service.model.pending() == 1  # removed from the queue while the model is busy
        assert counted(service, 499) == 1
        held.release.set()
        assert post(port, files={"text": (None, "a")}).status_code == 200


def test_a_client_that_leaves_while_it_sends_frees_its_place_and_memory(make_service):
    service = make_service(places=1)
    with listening(service) as port:
        head, body = multipart(port, {"audio.": bytes(300_000)})
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(head + body[:200_000])
            wait_until(lambda: service.places.bytes > 100_000)
            assert service.places.taken == 1
        wait_until(lambda: service.places.taken == 0)
        assert service.places.bytes == 0


def test_a_slow_client_gets_a_timeout(make_service):
    service = make_service(places=1, body_seconds=0.2)
    with listening(service) as port, socket.create_connection(("127.0.0.1", port)) as client:
        head, body = multipart(port, {"text": b"a"})
        client.sendall(head + body[:-5])
        assert b" 408 " in client.recv(1_000)
        wait_until(lambda: service.places.taken == 0)


def test_all_bodies_together_stay_within_the_memory_limit(make_service):
    service = make_service(buffer_bytes=500_000)
    with listening(service) as port, socket.create_connection(("127.0.0.1", port)) as client:
        head, body = multipart(port, {"audio.": bytes(400_000)})
        client.sendall(head + body[:-1_000])
        wait_until(lambda: service.places.bytes > 350_000)
        rejected = post(port, files={"audio": ("x", bytes(200_000))})
        assert (rejected.status_code, "retry-after" in rejected.headers) == (503, True)
        assert post(port, files={"text": (None, "a")}).status_code == 200


def test_a_client_that_is_rejected_while_sending_can_read_the_error(make_service):
    service = make_service()
    with listening(service) as port, socket.create_connection(("127.0.0.1", port)) as client:
        size = service.settings.limits.bytes + 4_000_000
        client.sendall(
            b"POST /search HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary=b\r\n"
            b"Content-Length: %d\r\n\r\n" % size
        )
        for _ in range(size // 1_000_000):  # a client that reads only once it has sent all
            client.sendall(bytes(1_000_000))
        answer = client.recv(10_000)
        assert b" 413 " in answer
        assert b'"too-large"' in answer
        assert service.places.bytes == 0


def test_queries_that_arrive_together_are_encoded_together(make_service, photos):
    service = make_service(wait_ms=1_000)
    audio = (photos / "clips/0.wav").read_bytes()
    with listening(service) as port:
        alone = post(port, files={"audio": ("x", audio)}).json()
        before = service.metrics.batch._sum.get()
        with socket.create_connection(("127.0.0.1", port)) as slow:
            head, body = multipart(port, {"audio.": audio})
            slow.sendall(head + body[:-1])  # incoming
            wait_until(lambda: service.places.taken == 1)
            with ThreadPoolExecutor(1) as clients:
                quick = clients.submit(post, port, files={"audio": ("x", audio)})
                wait_until(lambda: service.model.pending() == 1)
                slow.sendall(body[-1:])
                together = quick.result().json()
            assert b" 200 " in slow.recv(1_000)
        text = generate_latest(service.metrics.registry).decode()
    assert 'saysee_batch_size_bucket{le="1.0"} 1.0' in text
    assert 'saysee_batch_size_bucket{le="2.0"} 2.0' in text
    assert service.metrics.batch._sum.get() - before == 2
    assert [hit["id"] for hit in together["hits"]] == [hit["id"] for hit in alone["hits"]]
    for one, other in zip(together["hits"], alone["hits"], strict=True):
        assert one["score"] == pytest.approx(other["score"], abs=1e-4)
