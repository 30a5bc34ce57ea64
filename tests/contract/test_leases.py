"""Every lease store, put to the same contract."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from processor.errors import ConfigError
from processor.leases import LeaseStore
from processor.leases.directory import DirectoryLeases
from processor.leases.memory import MemoryLeases
from processor.leases.on_store import LEASES_PREFIX, StoreLeases
from processor.store.directory import DirectoryStore
from processor.store.memory import MemoryStore
from processor.store.s3 import S3Store
from processor.testing import CountingStore, Fault, FaultPlan, FaultyStore, When
from tests.contract.lease_contract import LeaseContract, LostRepliesContract, record
from tests.support.fixtures import make_bucket
from tests.support.moto import SerialMotoServer

_numbers = count(1)


class TestMemoryLeases(LeaseContract):
    """In memory."""

    @pytest.fixture
    def leases(self) -> LeaseStore:
        return MemoryLeases()

    def test_wipe_forgets(self) -> None:
        """A lease store that forgot: everything can be created anew."""
        leases = MemoryLeases()
        leases.create("k", record("a"))
        leases.wipe()
        assert leases.create("k", record("b")) == record("b")


class TestDirectoryLeases(LeaseContract):
    """In a folder."""

    @pytest.fixture
    def leases(self, tmp_path: Path) -> LeaseStore:
        return DirectoryLeases(tmp_path / "made" / "leases")

    def test_two_processes_agree(self, tmp_path: Path) -> None:
        """What one instance creates stands for another on the same folder."""
        one, other = DirectoryLeases(tmp_path), DirectoryLeases(tmp_path)
        one.create("lease/j/1", record("a"))
        assert other.create("lease/j/1", record("b")) == record("a")

    def test_a_folder_that_cannot_be_made(self, tmp_path: Path) -> None:
        """A file in the way is a mistake in the settings, and said."""
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(ConfigError, match="can't be made"):
            DirectoryLeases(tmp_path / "file" / "leases")


class TestStoreLeases(LeaseContract, LostRepliesContract):
    """On a store in memory, without versions."""

    @pytest.fixture
    def leases(self) -> LeaseStore:
        return StoreLeases(MemoryStore(versions=False))

    def lossy(self, plan: FaultPlan) -> LeaseStore:
        return StoreLeases(FaultyStore(MemoryStore(versions=False), plan))

    def test_a_store_without_put_if_absent_is_refused(self) -> None:
        """B2 can't keep its own leases; the error says what can."""
        with pytest.raises(ConfigError, match="Modal Dict"):
            StoreLeases(MemoryStore(put_if_absent=False))


class TestStoreLeasesWithVersions(LeaseContract, LostRepliesContract):
    """On a store in memory that keeps versions."""

    @pytest.fixture
    def leases(self) -> LeaseStore:
        return StoreLeases(MemoryStore())

    def lossy(self, plan: FaultPlan) -> LeaseStore:
        return StoreLeases(FaultyStore(MemoryStore(), plan))

    def test_beats_leave_no_versions(self) -> None:
        """However often a lease is renewed, one version is kept; deleted, none."""
        store = MemoryStore()
        leases = StoreLeases(store)
        leases.create("beat/j/1/a", record("a"))
        for number in range(50):
            leases.write("beat/j/1/a", record("a", number=number))
        assert _versions(store) == 1
        leases.delete("beat/j/1/a")
        assert _versions(store) == 0

    def test_versions_that_could_not_be_removed_go_later(self) -> None:
        """An outage while old beats are removed loses neither the beat nor the tidying."""
        store = MemoryStore()
        leases = StoreLeases(FaultyStore(store, FaultPlan(Fault("delete", times=2))))
        for number in range(3):
            leases.write("beat/j/1/a", record("a", number=number))
        assert _versions(store) == 3
        leases.write("beat/j/1/a", record("a", number=3))
        assert _versions(store) == 1
        assert leases.read("beat/j/1/a") == record("a", number=3)

    def test_what_a_dead_process_wrote_is_deleted(self) -> None:
        """The sweep removes all versions, also those of writers it never knew, oldest
        first: an older value never stands again."""
        store = MemoryStore()
        for number in range(3):
            StoreLeases(store).write("lease/j/1", record("a", number=number))
        StoreLeases(store).create("lease/j/10", record("neighbour"))
        plan = FaultPlan(Fault("delete", When.BEFORE, after=1))
        sweep = StoreLeases(FaultyStore(store, plan))
        with pytest.raises(Exception, match="injected"):
            sweep.delete("lease/j/1")
        assert sweep.read("lease/j/1") == record("a", number=2)
        sweep.delete("lease/j/1")
        assert _versions(store) == 1
        assert sweep.read("lease/j/10") == record("neighbour")

    def test_what_it_costs(self) -> None:
        """As the contract says, in requests to the store."""
        store = CountingStore(MemoryStore())
        leases = StoreLeases(store)
        leases.create("lease/j/1", record("a"))
        assert store.reset() == {"put": 1}
        leases.create("lease/j/1", record("b"))
        assert store.reset() == {"put": 1, "get": 1}
        leases.write("beat/j/1/a", record("a"))
        assert store.reset() == {"put": 1}
        leases.write("beat/j/1/a", record("a"))
        assert store.reset() == {"put": 1, "delete": 1}
        leases.delete("beat/j/1/a")
        assert store.reset() == {"list": 1, "delete": 1}


class TestStoreLeasesOnAFolder(LeaseContract, LostRepliesContract):
    """On a folder-bucket."""

    @pytest.fixture(autouse=True)
    def _root(self, tmp_path: Path) -> None:
        self.root = tmp_path

    @pytest.fixture
    def leases(self) -> LeaseStore:
        return StoreLeases(DirectoryStore(self.root))

    def lossy(self, plan: FaultPlan) -> LeaseStore:
        return StoreLeases(FaultyStore(DirectoryStore(self.root), plan))


@pytest.fixture(scope="module")
def versioned_bucket(moto: SerialMotoServer) -> Iterator[S3Store]:
    store = make_bucket(moto.url, versions=True)
    assert store.capabilities.put_if_absent
    yield store
    store.close()


@pytest.fixture(scope="module")
def plain_bucket(moto: SerialMotoServer) -> Iterator[S3Store]:
    store = make_bucket(moto.url)
    assert store.capabilities.put_if_absent
    yield store
    store.close()


class S3LeaseContract(LeaseContract, LostRepliesContract):
    """One bucket a module, one prefix a test."""

    @pytest.fixture(autouse=True)
    def _below(self, bucket: S3Store) -> None:
        self.store = bucket.below(f"test-{next(_numbers)}")

    @pytest.fixture
    def leases(self) -> LeaseStore:
        return StoreLeases(self.store)

    def lossy(self, plan: FaultPlan) -> LeaseStore:
        return StoreLeases(FaultyStore(self.store, plan))


class TestS3LeasesWithVersions(S3LeaseContract):
    """On S3, on a bucket that keeps versions."""

    @pytest.fixture
    def bucket(self, versioned_bucket: S3Store) -> S3Store:
        return versioned_bucket


class TestS3LeasesWithoutVersions(S3LeaseContract):
    """On S3, on a bucket that doesn't."""

    @pytest.fixture
    def bucket(self, plain_bucket: S3Store) -> S3Store:
        return plain_bucket


def _versions(store: MemoryStore) -> int:
    return sum(len(page.objects) for page in store.list(LEASES_PREFIX, versions=True))
