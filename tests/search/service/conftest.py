"""A small index, and services of it."""

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

    def make(**settings) -> Service:
        services.append(Service(index, ServiceSettings(**settings)))
        return services[-1]

    yield make
    for service in services:
        service.close()


@pytest.fixture
def ask(make_service) -> Callable[..., TestClient]:
    """A client of a service with these settings, in this process. What would be a 500 is raised in the test."""

    def client(**settings) -> TestClient:
        service = make_service(**settings)
        client = TestClient(make_app(service), base_url=HERE)
        client.service = service
        return client

    return client
