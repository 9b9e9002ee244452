"""Clients that keep the service waiting: with half a head, half a body, or an answer that they do not read."""

from __future__ import annotations

import resource
import socket
import time
from contextlib import ExitStack

import httpx2
import pytest
from service_tools import listening, multipart, running, wait_until

from saysee.search.service import batching, connections


def connect(stack: ExitStack, port: int, sent: bytes) -> socket.socket:
    client = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=60))
    client.sendall(sent)
    return client


def is_open(client: socket.socket) -> bool:
    client.setblocking(False)
    try:
        return client.recv(1) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False


def health(port: int) -> int:
    return httpx2.get(f"http://127.0.0.1:{port}/health", timeout=10).status_code


def test_six_hundred_half_heads_keep_nobody_waiting(index):
    """Where a process may open 512 files, as on some systems by default."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2_000:
        pytest.skip(f"this test opens 600 sockets, and only {hard} files may be open here")
    program = """import sys; from saysee.cli import main; from saysee.search.service import connections
connections._HEAD_SECONDS = 4.0; sys.exit(main(sys.argv[1:]))"""
    with ExitStack() as stack:
        resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
        try:
            service = stack.enter_context(running(index.folder, program=program))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2_000), hard))
        half = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Half: "
        clients = [connect(stack, service.port, half) for _ in range(600)]
        for _ in range(3):
            assert health(service.port) == 200
        assert sum(map(is_open, clients)) > 100, "they are still there"
        wait_until(lambda: not any(map(is_open, clients)))
        _, errors = service.end(15)
    assert errors == ""


def test_a_head_that_trickles_in_is_closed(make_service, monkeypatch):
    monkeypatch.setattr(connections, "_HEAD_SECONDS", 0.5)
    with listening(make_service()) as port, ExitStack() as stack:
        client = connect(stack, port, b"GET /health HTTP/1.1\r\n")
        with pytest.raises(OSError):  # noqa: PT012
            for _ in range(1_000):
                time.sleep(0.05)
                client.sendall(b"X: y\r\n")


def test_a_second_request_on_the_same_connection_has_its_own_time(make_service, monkeypatch):
    monkeypatch.setattr(connections, "_HEAD_SECONDS", 1.5)
    request = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    with listening(make_service()) as port, ExitStack() as stack:
        client = connect(stack, port, b"")
        for _ in range(3):
            time.sleep(0.8)
            client.sendall(request)
            received = b""
            while not received.endswith(b'{"status":"ok"}'):
                received += client.recv(10_000)


def test_the_rest_of_a_rejected_body_is_not_awaited_for_long(make_service, monkeypatch):
    monkeypatch.setattr(connections, "_REST_SECONDS", 0.5)
    with listening(make_service()) as port, ExitStack() as stack:
        head, body = multipart(port, {"text": b"a"}, "/nowhere")
        client = connect(stack, port, head.replace(b"Connection: close\r\n", b"") + body[:5])
        assert b" 404 " in client.recv(10_000)
        with pytest.raises(OSError):  # noqa: PT012
            for _ in range(1_000):
                time.sleep(0.02)
                client.sendall(b"x")


def test_an_answer_that_nobody_reads_is_dropped(make_service, index, photos, monkeypatch):
    monkeypatch.setattr(connections, "_ANSWER_SECONDS", 0.5)
    service = make_service()
    row = next(number for number, item in index.rows(range(1, 99)).items() if item.path.endswith("4.png"))
    photo = photos / "work/4.png"
    photo.write_bytes(photo.read_bytes() + bytes(30_000_000))  # readers of PNG ignore what follows
    with listening(service) as port, ExitStack() as stack:
        client = connect(stack, port, b"GET /images/%d HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" % row)
        wait_until(lambda: counted(service) == 1)
        assert len(client.recv(1_000)) == 1_000
        client.settimeout(60)
        received = 1_000
        with pytest.raises(OSError):  # noqa: PT012
            while piece := client.recv(1_000_000):
                received += len(piece)
            raise ConnectionResetError
        assert received < 30_000_000


def counted(service) -> float:
    labels = {"route": "/images/{id}", "method": "GET", "status": "200"}
    return service.metrics.registry.get_sample_value("saysee_requests_total", labels) or 0


def test_slow_bodies_do_not_take_the_places_of_quick_ones(make_service):
    with listening(make_service(places=2)) as port, ExitStack() as stack:
        head, body = multipart(port, {"text": b"two green stars"})
        slow = [connect(stack, port, head + body[:-5]) for _ in range(20)]
        assert search(port) == 200
        for client in slow:
            client.sendall(body[-5:])
        statuses = [int(client.recv(10_000).split()[1]) for client in slow]
    assert set(statuses) <= {200, 503}
    assert 200 in statuses


def test_slow_bodies_give_way_where_the_memory_is_full(make_service, monkeypatch):
    monkeypatch.setattr(batching, "SLOW_SECONDS", 0.5)
    service = make_service(buffer_bytes=500_000)
    with listening(service) as port, ExitStack() as stack:
        head, body = multipart(port, {"audio.": bytes(450_000)})
        slow = connect(stack, port, head + body[:-1_000])
        wait_until(lambda: service.places.bytes > 400_000)
        assert search(port, bytes(200_000)) == 503
        time.sleep(0.6)
        assert search(port, bytes(200_000)) == 422  # it was read: zeros are no audio
        assert b" 408 " in slow.recv(10_000)
        wait_until(lambda: service.places.bytes == 0)


def search(port: int, audio: bytes | None = None) -> int:
    files = {"text": (None, "a")} if audio is None else {"audio": ("x", audio)}
    return httpx2.post(f"http://127.0.0.1:{port}/search", files=files, timeout=60).status_code
