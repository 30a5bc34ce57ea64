"""An inbox that is full, slow to list, or full of what is no use: what is due is claimed all the same."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from processor.errors import AccessDenied, ErrorKind
from processor.handler import TaskContext, TaskOutput, Work
from processor.run import run
from processor.store import Page
from processor.store.memory import MemoryStore
from processor.testing.clock import ManualClock
from processor.testing.counting import CountingStore
from processor.testing.faults import Fault, FaultPlan, FaultyStore
from processor.testing.handler import ScriptedHandler
from processor.testing.machine import Bench
from processor.tick import tick

JOB = json.dumps({"workflow": "noop"}).encode()
A_PAGE_S = 2.0


class FarStore(CountingStore):
    """Each page of the inbox takes two seconds, each removal one."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(MemoryStore(clock=clock, page_size=10))
        self._clock = clock
        self.looks = 0

    def list(self, prefix: str, *, versions: bool = False, start_after: str = "") -> Iterator[Page]:
        self.looks += prefix == "inbox/"
        for page in super().list(prefix, versions=versions, start_after=start_after):
            self._clock.advance(A_PAGE_S if prefix == "inbox/" else 0.0)
            yield page

    def delete(self, key: str, *, version: str) -> None:
        self._clock.advance(1.0)
        super().delete(key, version=version)


@pytest.fixture(name="far")
def _far() -> FarStore:
    return FarStore(ManualClock())


def fill(store: FarStore, drops: int) -> None:
    for number in range(drops):
        store.put(f"inbox/jobs/{number:03}.json", JOB)
    store.reset()


def test_a_listing_may_take_longer_than_one_reply(tmp_path: Path, far: FarStore) -> None:
    """The store's time comes with the first page; the others have no say in when leases end."""
    fill(far, 200)
    bench = Bench(tmp_path, ScriptedHandler(), store=far, clock=far._clock)
    began = far._clock.monotonic()
    report = tick(bench.machine(), capacity=3)
    assert far._clock.monotonic() - began > 30
    assert (report.problem, len(report.claims)) == (None, 3)


def test_a_look_that_took_long_is_used_for_long(tmp_path: Path, far: FarStore) -> None:
    """Not one listing of the whole inbox for each few jobs."""
    fill(far, 200)
    done: list[str] = []

    def script(work: Work, _context: TaskContext) -> TaskOutput:
        done.append(work.job_id)
        if len(done) == 40:
            machine.stop.set(ErrorKind.PREEMPTED)
        return TaskOutput([], seconds=0.0)

    bench = Bench(tmp_path, ScriptedHandler(script), store=far, clock=far._clock)
    machine = bench.machine()
    run(machine, concurrency=4)
    machine.close()
    assert len(done) >= 40
    assert far.looks <= 3


def test_files_that_may_not_be_read_hide_no_others(tmp_path: Path) -> None:
    """Somebody else's files in a shared folder: they stay, the run says so, the others are worked."""
    bench = Bench(tmp_path, ScriptedHandler())
    for number in range(40):
        bench.clock.advance(1)
        bench.drop({"workflow": "noop"}, f"inbox/jobs/{'mine' if number > 30 else 'other'}-{number}.json")

    def denied() -> AccessDenied:
        return AccessDenied("permission denied")

    plan = FaultPlan(Fault("get", key="inbox/jobs/other", times=10_000, error=denied))
    bench.store = FaultyStore(bench.main, plan)
    machine = bench.machine()
    report = run(machine, once=True)
    machine.close()
    assert report.settled == 9
    assert report.problem is not None
    assert "inbox/jobs/other-0.json and 30 more" in report.problem


def test_what_was_deleted_by_name_keeps_nobody_waiting(tmp_path: Path, far: FarStore) -> None:
    """Each leaves two versions to remove; a pass takes some, claims what is due, and comes back soon."""
    fill(far, 30)
    memory: Any = far.inner
    for number in range(30):
        memory.hide(f"inbox/jobs/{number:03}.json")
    far.put("inbox/jobs/good.json", JOB)
    bench = Bench(tmp_path, ScriptedHandler(), store=far, clock=far._clock)
    machine = bench.machine()
    report = tick(machine, capacity=1)
    assert [claim.drop.key for claim in report.claims] == ["inbox/jobs/good.json"]
    assert far.counts["delete"] <= 24
    assert report.next_wake_s <= 2.0
    machine.stop.set(ErrorKind.PREEMPTED)
    far.reset()
    tick(machine, capacity=1)
    assert far.counts["delete"] == 0


def test_more_old_versions_than_are_kept_uncover_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thousands were replaced and deleted by name: bounded memory, and yet none of them is ever run."""
    monkeypatch.setattr("processor.inbox._MAX_OLD", 3)
    store = MemoryStore(clock=ManualClock())
    bench = Bench(tmp_path, ScriptedHandler(), store=store)
    for version in ("old", "older", "new"):
        for number in range(4):
            bench.drop({"workflow": version}, f"inbox/jobs/replaced-{number}.json")
    for number in range(8):
        bench.drop({"workflow": "deleted"}, f"inbox/jobs/deleted-{number}.json")
        store.hide(f"inbox/jobs/deleted-{number}.json")
    machine = bench.machine()
    first = tick(machine, capacity=0)
    assert first.inbox is not None
    assert len(first.inbox.superseded) == len(first.inbox.litter) == 3
    assert first.next_wake_s <= 2.0
    run(machine, once=True)
    machine.close()
    assert [manifest["job"]["workflow"] for manifest in bench.manifests()] == ["new"] * 4
    left = [item for page in store.list("inbox/", versions=True) for item in page.objects]
    assert left == []
