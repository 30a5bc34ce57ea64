"""The sweep as housekeeping: in nobody's way, ended by a stop, and not by one bad job."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from processor.errors import ErrorKind, StoreUnavailable
from processor.events import Event, JobSettled
from processor.layout import manifest_key
from processor.machine import Machine
from processor.run import Wake, run
from processor.store import Page
from processor.store.memory import MemoryStore
from processor.sweep import sweep
from processor.testing import CountingStore, Fault, FaultPlan, FaultyStore, ManualClock
from processor.testing.handler import ScriptedHandler
from processor.testing.machine import Bench
from processor.tick import tick

JOB = {"workflow": {"1": {"class_type": "X", "inputs": {}}}}
LATER_S = 3 * 86_400.0
LIMIT_S = 10.0


def finished(bench: Bench, count: int) -> list[str]:
    """Jobs that have settled days ago, each with a file that no manifest names."""
    for number in range(count):
        bench.drop(JOB, f"inbox/jobs/{number}.json")
    machine = bench.machine()
    run(machine, once=True)
    machine.close()
    jobs = sorted(manifest["job_id"] for manifest in bench.manifests())
    for job in jobs:
        bench.main.put(stray(job), b"loser")
    bench.clock.advance(LATER_S)
    return jobs


def stray(job: str) -> str:
    return f"comfy_outputs/{job}/9-abc/00000-dead/x.png"


def left(bench: Bench, jobs: list[str]) -> list[str]:
    """Those of whose strays there is still one."""
    return [job for job in jobs if stray(job) in bench.all_keys]


def sweeper(bench: Bench) -> Machine:
    machine = bench.machine()
    tick(machine, capacity=0)
    return machine


class Held(CountingStore):
    """Holds up whoever lists what has settled, until it is let go."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(MemoryStore(clock=clock))
        self.asked, self.go_on = threading.Event(), threading.Event()
        self.go_on.set()

    def list(self, prefix: str, *, versions: bool = False, start_after: str = "") -> Iterator[Page]:
        if prefix.startswith("done/"):
            self.asked.set()
            self.go_on.wait(LIMIT_S)
        return super().list(prefix, versions=versions, start_after=start_after)


class Watching(list[Event]):
    """Events as they come, and whether a job has settled."""

    def __init__(self) -> None:
        super().__init__()
        self.settled = threading.Event()

    def append(self, event: Event) -> None:
        super().append(event)
        if isinstance(event, JobSettled):
            self.settled.set()


def test_no_job_waits_for_the_sweep(tmp_path: Path) -> None:
    """A day of thousands of jobs takes an hour to sweep; what is claimed meanwhile runs at once."""
    clock, events = ManualClock(), Watching()
    store = Held(clock)
    store.go_on.clear()
    bench = Bench(tmp_path, ScriptedHandler(), clock=clock, store=store, events=events)
    machine, wake = bench.machine(), Wake()
    runner = threading.Thread(target=run, args=(machine,), kwargs={"concurrency": 1, "wake": wake})
    runner.start()
    try:
        assert store.asked.wait(LIMIT_S)
        bench.drop(JOB)
        wake.set()
        assert events.settled.wait(LIMIT_S / 2)
    finally:
        machine.stop.set(ErrorKind.PREEMPTED)
        store.go_on.set()
        wake.set()
        runner.join(LIMIT_S)
        machine.close()


class Stopping(CountingStore):
    """Stops a machine as soon as something is removed."""

    machine: Machine

    def delete(self, key: str, *, version: str) -> None:
        super().delete(key, version=version)
        self.machine.stop.set(ErrorKind.PREEMPTED)


def test_a_stop_ends_the_sweep_and_the_rest_is_swept_later(tmp_path: Path) -> None:
    """Whoever stops a runner does not wait for an hour; and half a day is no day that was swept."""
    bench = Bench(tmp_path, ScriptedHandler())
    jobs, whole = finished(bench, 3), bench.main
    bench.store = stopping = Stopping(whole)
    stopping.machine = sweeper(bench)
    assert sweep(stopping.machine).removed == 1
    bench.store = whole
    sweep(sweeper(bench))
    assert not left(bench, jobs)


def test_one_bad_manifest_leaves_one_job_out(tmp_path: Path) -> None:
    """It is named in the log; the day is swept, and not begun again each hour."""
    bench = Bench(tmp_path, ScriptedHandler())
    jobs = finished(bench, 3)
    bench.main.put(manifest_key(jobs[0]), b"{}")
    with capture_logs() as logs:
        sweep(sweeper(bench))
    assert [line["job_id"] for line in logs if line["event"] == "sweep.left_out"] == jobs[:1]
    assert left(bench, jobs) == jobs[:1]
    assert sweep(sweeper(bench)).jobs == 0


def test_a_store_out_of_reach_ends_the_sweep(tmp_path: Path) -> None:
    """Not one job after the other; and the day is taken up again."""
    bench = Bench(tmp_path, ScriptedHandler())
    jobs = finished(bench, 20)
    whole = bench.main
    gone = Fault("get", key="manifest.json", times=99, error=lambda: StoreUnavailable("gone"))
    bench.store = FaultyStore(whole, FaultPlan(gone))
    with pytest.raises(StoreUnavailable):
        sweep(sweeper(bench))
    bench.store = whole
    sweep(sweeper(bench))
    assert not left(bench, jobs)
