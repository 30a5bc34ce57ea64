"""What `processor.leases.protocol.LeaseStore` promises, as tests for any lease store.

    class TestMine(LeaseContract):
        @pytest.fixture
        def leases(self) -> LeaseStore: ...   # empty

A class whose transport can lose replies takes `LostRepliesContract` as well.
"""

from __future__ import annotations

import threading
from abc import abstractmethod

import pytest

from processor.errors import StoreUnavailable
from processor.leases import LeaseStore, Record
from processor.testing import Fault, FaultPlan, When

WORKERS = 5
ROUNDS = 5


def record(nonce: str, **more: str | float | bool | None) -> Record:
    return {"nonce": nonce, **more}


class LeaseContract:
    """Subclass it with a `leases` fixture."""

    def test_create_returns_what_stands(self, leases: LeaseStore) -> None:
        """The first value stands, for ever and for all."""
        assert leases.create("lease/job-1/1", record("a", until=12.5)) == record("a", until=12.5)
        assert leases.create("lease/job-1/1", record("b")) == record("a", until=12.5)
        assert leases.create("lease/job-1/1", record("a")) == record("a", until=12.5)
        assert leases.read("lease/job-1/1") == record("a", until=12.5)

    def test_records_keep_their_values(self, leases: LeaseStore) -> None:
        """All that JSON has for a flat record comes back as it went."""
        value = record("ñ-日本", text='"\\\n', whole=2**53, real=0.1, yes=True, no=False, none=None)
        leases.create("k/1", value)
        leases.write("k/2", value)
        assert leases.read("k/1") == leases.read("k/2") == value

    def test_absent_is_none(self, leases: LeaseStore) -> None:
        """Nothing was created: nothing is read, also below and above what stands."""
        assert leases.read("lease/job/1") is None
        leases.create("lease/job/1", record("a"))
        for key in ("lease/job/2", "lease/job", "lease/job/1/below", "lease", "lease/job/11"):
            assert leases.read(key) is None

    def test_write_overwrites(self, leases: LeaseStore) -> None:
        """A beat is written again and again by its one writer."""
        for number in range(4):
            leases.write("beat/job/1/a", record("a", number=number))
            assert leases.read("beat/job/1/a") == record("a", number=number)
        leases.create("beat/job/1/b", record("b"))
        leases.write("beat/job/1/b", record("b", number=1))
        assert leases.read("beat/job/1/b") == record("b", number=1)

    def test_delete(self, leases: LeaseStore) -> None:
        """Gone with all it ever held; again is no error; others stay; the key is free."""
        leases.create("lease/job/1", record("a"))
        leases.create("lease/job/10", record("ten"))
        for number in range(3):
            leases.write("lease/job/1", record("a", number=number))
        leases.delete("lease/job/1")
        leases.delete("lease/job/1")
        leases.delete("never/was")
        assert leases.read("lease/job/1") is None
        assert leases.read("lease/job/10") == record("ten")
        assert leases.create("lease/job/1", record("b")) == record("b")
        assert leases.read("lease/job/1") == record("b")

    def test_values_are_not_shared(self, leases: LeaseStore) -> None:
        """Changing what was given or returned doesn't change what stands."""
        value = record("a")
        returned = leases.create("k", value)
        value["nonce"] = returned["nonce"] = "changed"
        assert leases.read("k") == record("a")

    def test_five_workers_race_to_create(self, leases: LeaseStore) -> None:
        """All are told of the same winner, and it is one of them."""
        for number in range(ROUNDS):
            start = threading.Barrier(WORKERS)
            told: list[Record] = []

            def work(nonce: str, number: int = number, told: list[Record] = told) -> None:
                start.wait(timeout=10)  # noqa: B023 - joined below, within this round
                told.append(leases.create(f"commit/{number}", record(nonce)))

            threads = [threading.Thread(target=work, args=(f"w{each}",)) for each in range(WORKERS)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(timeout=30)
            assert len(told) == WORKERS
            assert all(each == told[0] for each in told)
            assert told[0] == leases.read(f"commit/{number}")

    def test_readers_see_whole_records(self, leases: LeaseStore) -> None:
        """A record under a writer is always one that it wrote; a new key is never empty."""
        finished = threading.Event()
        values = [record("w", fill="x" * 3000, number=0), record("w", number=1)]
        seen: list[Record | None] = []

        def watch() -> None:
            while not finished.is_set():
                seen.append(leases.read("beat/job/1/w"))

        watcher = threading.Thread(target=watch)
        watcher.start()
        for number in range(20):
            leases.write("beat/job/1/w", values[number % 2])
        finished.set()
        watcher.join(timeout=30)
        assert seen
        assert all(each is None or each in values for each in seen)

    def test_backend_names_the_place(self, leases: LeaseStore) -> None:
        """It is recorded for people, and shows no secret."""
        kind, _, place = leases.backend.partition(":")
        assert kind
        assert place
        assert "never-show" not in leases.backend


class LostRepliesContract:
    """What `create` promises when replies get lost: whoever stands is told so."""

    @abstractmethod
    def lossy(self, plan: FaultPlan) -> LeaseStore:
        """An empty lease store whose transport fails as planned ("put" and "get")."""

    def test_a_lost_reply_is_resolved(self) -> None:
        """The put arrived, its reply didn't: the creator learns that it stands."""
        leases = self.lossy(FaultPlan(Fault("put", When.AFTER)))
        assert leases.create("lease/j/1", record("a")) == record("a")
        assert leases.create("lease/j/1", record("b")) == record("a")

    def test_a_lost_request_is_repeated(self) -> None:
        """The put never arrived: it is sent again."""
        leases = self.lossy(FaultPlan(Fault("put", When.BEFORE)))
        assert leases.create("lease/j/1", record("a")) == record("a")
        assert leases.read("lease/j/1") == record("a")

    def test_a_lost_reply_of_a_loser(self) -> None:
        """An unclear reply where another stands is not taken for a win."""
        plan = FaultPlan()
        leases = self.lossy(plan)
        leases.create("lease/j/1", record("a"))
        plan.add(Fault("put", When.AFTER))
        assert leases.create("lease/j/1", record("b")) == record("a")

    def test_an_outage_is_said(self) -> None:
        """When nothing answers, nothing is claimed to be known; later the same value works."""
        leases = self.lossy(FaultPlan(Fault("put", When.AFTER), Fault("get", times=3)))
        with pytest.raises(StoreUnavailable):
            leases.create("lease/j/1", record("a"))
        with pytest.raises(StoreUnavailable):
            leases.create("lease/j/1", record("a"))
        with pytest.raises(StoreUnavailable):
            leases.read("lease/j/1")
        assert leases.create("lease/j/1", record("a")) == record("a")
        assert leases.create("lease/j/1", record("b")) == record("a")
