"""Order among jobs: priority, then age; and a huge job leaves room for small ones."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from processor.events import JobClaimed, TaskStarted
from processor.handler import TaskContext, TaskOutput, Work
from processor.run import run
from processor.store import Download
from processor.store.memory import MemoryStore
from processor.testing.clock import ManualClock
from processor.testing.counting import CountingStore
from processor.testing.faults import Fault, FaultPlan, FaultyLeases, FaultyStore
from processor.testing.handler import ScriptedHandler
from processor.testing.machine import Bench
from processor.tick import tick

DEADLINE_S = 20.0
HUGE, SMALL = "inbox/jobs/huge.json", "inbox/jobs/small.json"


def job(tasks: int, **more: Any) -> dict[str, Any]:
    return {"workflow": "noop", "overrides": {"tasks": tasks}, **more}


@pytest.mark.parametrize("threads", [1, 3])
def test_a_small_job_does_not_wait_for_a_huge_one(tmp_path: Path, threads: int) -> None:
    """Once both run they take turns: no task of the small one is behind more than a share of the other."""
    small_began = threading.Event()

    def script(work: Work, _context: TaskContext) -> TaskOutput:
        if work.job_id.startswith("small"):
            small_began.set()
        elif work.task.index >= 2 * threads:
            # By now the small one could have begun: wait for it, as a slow engine would.
            assert small_began.wait(DEADLINE_S)
        return TaskOutput([], 0.0)

    bench = Bench(tmp_path, ScriptedHandler(script, concurrency=threads))
    bench.drop(job(400), HUGE)
    bench.clock.advance(1)
    bench.drop(job(10), SMALL)
    machine = bench.machine()
    run(machine, concurrency=2, once=True)
    machine.close()
    begun = [event.job_id[:5] for event in bench.events if isinstance(event, TaskStarted)]
    first = begun.index("small")
    last = len(begun) - begun[::-1].index("small") - 1
    between = begun[first:last].count("huge-")
    # Fairly shared it is one for one; threads may be unlucky, but not by hundreds.
    assert between <= 100, between
    assert first <= 4 * threads + 2


def test_what_one_job_does_not_need_another_may_have(tmp_path: Path) -> None:
    """The share of a job that runs alone is everything."""
    bench = Bench(tmp_path, ScriptedHandler(concurrency=3))
    machine = bench.machine()
    with machine.launcher.open("render") as alone:
        assert alone.window == 6
        with machine.launcher.open("render") as other:
            assert (alone.window, other.window) == (3, 3)
            with machine.launcher.open("render"):
                assert alone.window == 2
        assert alone.window == 6
    machine.close()


def test_priority_goes_before_age(tmp_path: Path) -> None:
    """Among what waits; equal ones in order of age."""
    bench = Bench(tmp_path, ScriptedHandler())
    for name, priority in (("old", 0), ("older-but-low", -5), ("urgent", 50), ("new", 0)):
        bench.drop(job(1, priority=priority), f"inbox/jobs/{name}.json")
        bench.clock.advance(1)
    machine = bench.machine()
    run(machine, concurrency=1, once=True)
    machine.close()
    begun = [event.job_id.rsplit("-", 1)[0] for event in bench.events if isinstance(event, TaskStarted)]
    assert begun == ["urgent", "old", "new", "older-but-low"]


@pytest.mark.parametrize("keep", [5_000, 50, 30])
def test_an_urgent_drop_overtakes_a_long_queue(tmp_path: Path, keep: int) -> None:
    """Although nobody has read what stands between, or can know of it in one look; the others keep the
    order of their ages."""
    bench = Bench(tmp_path, ScriptedHandler())
    bench.with_policy(scan_keep=keep)
    for number in range(60):
        bench.drop(job(1), f"inbox/jobs/{number:02}.json")
        bench.clock.advance(1)
    bench.drop(job(1, priority=50), "inbox/jobs/urgent.json")
    bench.drop(job(1), "inbox/jobs/newest.json")
    store = CountingStore(bench.main)
    bench.store = store
    machine = bench.machine()
    report = tick(machine, capacity=2)
    names = [claim.drop.key[len("inbox/jobs/") : -len(".json")] for claim in report.claims]
    assert names == ["urgent", "00"]
    assert store.counts["get"] <= 8 + 16 + 2
    for claim in report.claims:
        machine.leases.release(claim.lease)
    bench.events.clear()
    assert run(machine, once=True, concurrency=1).settled == 62
    machine.close()
    claimed = [event.job_id.rsplit("-", 1)[0] for event in bench.events if isinstance(event, JobClaimed)]
    assert claimed == ["urgent", *(f"{number:02}" for number in range(60)), "newest"]


def test_what_others_have_in_hand_hides_nothing(tmp_path: Path) -> None:
    """A runner with room for one finds the one job that is free behind many that another works."""
    bench = Bench(tmp_path, ScriptedHandler())
    for number in range(12):
        bench.drop(job(1), f"inbox/jobs/{number:02}.json")
        bench.clock.advance(1)
    taken = tick(bench.machine(), capacity=11)
    assert len(taken.claims) == 11
    report = tick(bench.machine(), capacity=1)
    assert [claim.drop.key for claim in report.claims] == ["inbox/jobs/11.json"]
    assert report.leased == 11
    assert 2.0 < report.next_wake_s < 60.0  # so much asking is not repeated at once


def test_many_drops_are_looked_at_side_by_side(tmp_path: Path) -> None:
    """A hundred round trips to a bucket, one after the other, would be seconds; their order stays."""

    class Distant(MemoryStore):
        meeting = threading.Barrier(8)

        def get(self, key: str, *, version: str | None = None) -> Download:
            if key.startswith("inbox/"):
                self.meeting.wait(DEADLINE_S)  # alone nobody gets past it
            return super().get(key, version=version)

    clock = ManualClock()
    bench = Bench(tmp_path, ScriptedHandler(), clock=clock, store=Distant(clock=clock))
    for number in range(64):
        bench.drop(job(1), f"inbox/jobs/{number:02}.json")
        clock.advance(1)
    report = tick(bench.machine(), capacity=16)
    assert [claim.drop.key[-7:-5] for claim in report.claims] == [f"{number:02}" for number in range(16)]


@pytest.mark.parametrize("out_of_reach", ["store", "lease store"])
def test_what_is_out_of_reach_is_not_asked_for_a_thousand_times(tmp_path: Path, out_of_reach: str) -> None:
    """One drop that fails hides no other; when many fail in a row the pass ends."""
    operation, key = ("get", "inbox/jobs/00") if out_of_reach == "store" else ("create", "lease/00-")
    fault = Fault(operation, key=key)
    plan = FaultPlan(fault)
    bench = Bench(tmp_path, ScriptedHandler())
    tick(bench.machine(), capacity=1)  # founds the authority
    for number in range(40):
        bench.drop(job(1), f"inbox/jobs/{number:02}.json")
    bench.store, bench.leases = FaultyStore(bench.main, plan), FaultyLeases(bench.leases, plan)
    (claim,) = tick(bench.machine(), capacity=1).claims
    assert claim.drop.key == "inbox/jobs/01.json"
    fault.key, fault.times = key.partition("00")[0], 1000
    report = tick(bench.machine(), capacity=1)
    assert not report.claims
    assert 5 < report.failures < 15
    assert 1000 - fault.times <= report.failures + 16
