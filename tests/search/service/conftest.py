"""A small index, made once and copied for each test, and services of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from starlette.testclient import TestClient

from saysee import Index
from saysee.search.index.updating import update_index
from saysee.search.service.app import make_app
from saysee.search.service.core import Service
from saysee.search.service.settings import ServiceSettings

HERE = "http://127.0.0.1:8765"


@pytest.fixture
def index(encoder, photos, tmp_path) -> Index:
    update_index(encoder, photos, tmp_path / "index")
    return Index.open(tmp_path / "index", model=encoder.model)


@pytest.fixture
def make_service(index) -> Iterator[Callable[..., Service]]:
    services = []

    def make(of: Index = index, **settings) -> Service:
        services.append(Service(of, ServiceSettings(**settings)))
        return services[-1]

    yield make
    for service in services:
        service.close()


@pytest.fixture
def ask(make_service) -> Callable[..., TestClient]:
    """A client of a service with these settings, in this process. An internal error is raised in the test."""

    def client(*of: Index, **settings) -> TestClient:
        service = make_service(*of, **settings)
        client = TestClient(make_app(service), base_url=HERE)
        client.service = service
        return client

    return client
