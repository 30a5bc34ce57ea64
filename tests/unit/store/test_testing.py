"""The fakes that ship with the package: clock, counters, faults."""

from __future__ import annotations

from datetime import timedelta

import pytest

from processor.errors import AccessDenied, LeaseLost, NotFound, StoreUnavailable
from processor.leases.memory import MemoryLeases
from processor.store.memory import MemoryStore
from processor.testing import (
    CountingLeases,
    CountingStore,
    Fault,
    FaultPlan,
    FaultyLeases,
    FaultyStore,
    ManualClock,
    When,
)


def test_a_clock_that_moves_when_told() -> None:
    """Sleeping passes the time at once; a wall clock set wrong leaves the monotonic alone."""
    clock = ManualClock()
    start = clock.now()
    clock.sleep(90)
    clock.advance(10)
    assert (clock.now() - start, clock.monotonic()) == (timedelta(seconds=100), 100)
    clock.set_wall(start - timedelta(hours=1))
    assert clock.now() == start - timedelta(hours=1)
    clock.advance(5)
    assert (clock.now() - start, clock.monotonic()) == (timedelta(seconds=-3595), 105)
    with pytest.raises(ValueError, match="back"):
        clock.advance(-1)


def test_requests_are_counted() -> None:
    """By operation; a listing by its pages; since the last reset."""
    store = CountingStore(MemoryStore(page_size=2))
    for name in "abc":
        store.put(name, b"")
    store.copy("a", "d")
    store.delete("a", version=store.stat("a").version)
    store.get("b").body.close()
    assert len(list(store.list(""))) == 2
    assert store.total == 9
    assert store.reset() == {"put": 3, "copy": 1, "stat": 1, "delete": 1, "get": 1, "list": 2}
    assert store.total == 0
    leases = CountingLeases(MemoryLeases())
    leases.create("k", {"nonce": "a"})
    leases.read("k")
    assert (leases.total, leases.reset()) == (2, {"create": 1, "read": 1})


def test_a_fault_before_changes_nothing_and_after_everything() -> None:
    """Both look alike to the caller, as they do on a network."""
    inner = MemoryStore()
    plan = FaultPlan(Fault("put", When.BEFORE, key="lost"), Fault("put", When.AFTER, key="kept"))
    store = FaultyStore(inner, plan)
    for key in ("lost", "kept"):
        with pytest.raises(StoreUnavailable):
            store.put(key, b"x")
    with pytest.raises(NotFound):
        inner.stat("lost")
    assert inner.stat("kept").size_bytes == 1
    assert plan.struck == [("put", "lost"), ("put", "kept")]
    store.put("lost", b"now")
    assert inner.stat("lost").size_bytes == 3


def test_faults_wait_for_their_turn() -> None:
    """After so many good calls, so many times, with any error; pages of a listing too."""
    inner = MemoryStore(page_size=1)
    for name in "abc":
        inner.put(name, b"")
    store = FaultyStore(inner, FaultPlan(Fault("list", after=2, error=lambda: AccessDenied("no"))))
    pages = store.list("")
    assert [next(pages).objects[0].key for _ in range(2)] == ["a", "b"]
    with pytest.raises(AccessDenied):
        next(pages)


def test_faults_can_be_drawn() -> None:
    """A simulation decides by its own seed, for leases as for stores."""
    draws = iter([None, When.AFTER, When.BEFORE, None])
    plan = FaultPlan(decide=lambda *_: next(draws))
    inner = MemoryLeases()
    leases = FaultyLeases(inner, plan)
    leases.create("k", {"nonce": "a"})
    with pytest.raises(StoreUnavailable):
        leases.write("k", {"nonce": "b"})
    with pytest.raises(StoreUnavailable):
        leases.delete("k")
    assert leases.read("k") == {"nonce": "b"}
    plan.add(Fault("*", error=lambda: LeaseLost("gone")))
    with pytest.raises(LeaseLost):
        leases.read("k")
