"""One engine for the tests that need no folder of their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.unit.engine.serving import Listener, Server, engine


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with engine(tmp_path_factory.mktemp("engine")) as started:
        yield started


@pytest.fixture
def client(server: Server) -> Iterator[Listener]:
    with server.listener() as listener:
        yield listener
