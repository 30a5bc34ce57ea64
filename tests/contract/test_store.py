"""Every store, put to the same contract."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import ClassVar

import pytest

from processor.store import Capabilities, Store
from processor.store.directory import DirectoryStore
from processor.store.memory import MemoryStore
from processor.store.s3 import S3Store
from tests.contract.store_contract import (
    NoPutIfAbsentContract,
    NoVersionsContract,
    PutIfAbsentContract,
    StoreContract,
    VersionsContract,
)
from tests.support import rclone as rclone_server
from tests.support.b2like import B2Like
from tests.support.fixtures import make_bucket
from tests.support.moto import SerialMotoServer

PAGE_SIZE = 3


class MemoryContract(StoreContract):
    """The two kinds of memory."""

    @pytest.fixture
    def store(self) -> Store:
        return MemoryStore(
            versions=self.expected.versions,
            put_if_absent=self.expected.put_if_absent,
            page_size=PAGE_SIZE,
        )

    def hide(self, store: Store, key: str) -> None:
        assert isinstance(store, MemoryStore)
        store.hide(key)


class TestMemory(MemoryContract, VersionsContract, PutIfAbsentContract):
    """Memory, with versions."""

    expected = Capabilities(versions=True, put_if_absent=True)


class TestMemoryLikeB2(MemoryContract, VersionsContract, NoPutIfAbsentContract):
    """Memory, with versions and without put-if-absent."""

    expected = Capabilities(versions=True, put_if_absent=False)


class TestMemoryWithoutVersions(MemoryContract, NoVersionsContract, PutIfAbsentContract):
    """Memory, as an S3 bucket without versioning."""

    expected = Capabilities(versions=False, put_if_absent=True)


class TestDirectory(NoVersionsContract, PutIfAbsentContract):
    """A folder."""

    expected = Capabilities(versions=False, put_if_absent=True, atomic_put=False)

    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        (tmp_path / "bucket").mkdir()
        return DirectoryStore(tmp_path / "bucket", page_size=PAGE_SIZE)

    def hide(self, store: Store, key: str) -> None:
        assert isinstance(store, DirectoryStore)
        (store.root / key).unlink()


@pytest.fixture(scope="module")
def versioned_bucket(moto: SerialMotoServer) -> Iterator[S3Store]:
    store = make_bucket(moto.url, versions=True, page_size=PAGE_SIZE)
    yield store
    store.close()


@pytest.fixture(scope="module")
def plain_bucket(moto: SerialMotoServer) -> Iterator[S3Store]:
    store = make_bucket(moto.url, page_size=PAGE_SIZE)
    yield store
    store.close()


@pytest.fixture(scope="module")
def b2_bucket(b2_server: B2Like) -> Iterator[S3Store]:
    store = make_bucket(b2_server.url, page_size=PAGE_SIZE)
    yield store
    store.close()


@pytest.fixture(scope="module")
def rclone_bucket(rclone: str) -> Iterator[S3Store]:
    store = make_bucket(rclone, key_id=rclone_server.KEY_ID, secret=rclone_server.SECRET, page_size=PAGE_SIZE)
    yield store
    store.close()


class S3Contract(StoreContract):
    """One bucket a server, one prefix a test: a client takes 0.2 s to make."""

    _numbers: ClassVar[count[int]] = count(1)

    @pytest.fixture
    def store(self, bucket: S3Store) -> Store:
        bucket.capabilities  # noqa: B018 - probed once, then inherited
        return bucket.below(f"test {next(self._numbers)}")

    def hide(self, store: Store, key: str) -> None:
        assert isinstance(store, S3Store)
        store._client.delete_object(Bucket=store._bucket, Key=store._prefix + key)


class TestS3WithVersions(S3Contract, VersionsContract, PutIfAbsentContract):
    """moto, on a bucket that keeps versions."""

    expected = Capabilities(versions=True, put_if_absent=True)

    @pytest.fixture
    def bucket(self, versioned_bucket: S3Store) -> S3Store:
        return versioned_bucket


class TestS3WithoutVersions(S3Contract, NoVersionsContract, PutIfAbsentContract):
    """moto, on a bucket that doesn't."""

    expected = Capabilities(versions=False, put_if_absent=True)

    @pytest.fixture
    def bucket(self, plain_bucket: S3Store) -> S3Store:
        return plain_bucket


class TestB2(S3Contract, VersionsContract, NoPutIfAbsentContract):
    """The B2-like proxy: versions, no conditional puts, 403 for what is missing."""

    expected = Capabilities(versions=True, put_if_absent=False, missing_is_403=True)

    @pytest.fixture
    def bucket(self, b2_bucket: S3Store) -> S3Store:
        return b2_bucket


class TestRclone(S3Contract, NoVersionsContract, NoPutIfAbsentContract):
    """`rclone serve s3`: signatures are checked, conditions are ignored."""

    expected = Capabilities(versions=False, put_if_absent=False)

    # While a put is under way, rclone 1.75 answers with the older object's length and the
    # newer one's bytes. The machine reads no key that it may be writing.
    test_readers_see_old_or_new = None  # type: ignore[assignment]

    @pytest.fixture
    def bucket(self, rclone_bucket: S3Store) -> S3Store:
        return rclone_bucket
