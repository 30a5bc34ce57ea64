"""What a failure means: the task's own, this machine's, or a defect; a job always ends or goes back."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from processor import execute
from processor.errors import AccessDenied, DropbatchError, ErrorKind, StoreUnavailable, TaskFailed
from processor.events import Event, JobReleased, TaskStarted
from processor.handler import Stop, TaskContext, TaskOutput, Work
from processor.launch import LocalConfig, LocalLauncher
from processor.run import run
from processor.store.memory import MemoryStore
from processor.testing.faults import Fault, FaultPlan, FaultyStore
from processor.testing.handler import ScriptedHandler, write_text_file
from processor.testing.machine import Bench
from tests.unit.test_machine import SkippingWake


@pytest.mark.parametrize("max_task_tries", [3, 1])
def test_an_engine_that_dies_with_its_stopped_runner_fails_no_task(
    tmp_path: Path, max_task_tries: int
) -> None:
    """`systemctl stop` tells a service's processes all at once; the job used to end `failed`."""

    def script(work: Work, context: TaskContext) -> TaskOutput:
        if machine.stop.is_set():
            return write_text_file(work, context)
        machine.stop.set(ErrorKind.PREEMPTED)
        raise TaskFailed(ErrorKind.CRASHED, "the engine died while the prompt ran")

    bench = Bench(tmp_path, ScriptedHandler(script))
    bench.with_policy(max_task_tries=max_task_tries)
    bench.drop({"workflow": "noop"})
    machine = bench.machine()
    assert run(machine, once=True).given_back == 1
    machine.close()
    assert bench.keys("inbox/") == ["inbox/jobs/a.json"]
    another = bench.machine()
    run(another, once=True)
    another.close()
    assert [manifest["outcome"] for manifest in bench.manifests()] == ["done"]


def test_an_engine_that_dies_of_being_cancelled_leaves_the_job_cancelled(tmp_path: Path) -> None:
    """Its request goes with it, too."""

    def script(work: Work, context: TaskContext) -> TaskOutput:
        bench.main.put(f"inbox/control/cancel/{work.job_id}", b"")
        assert context.stop.wait(20)
        raise TaskFailed(ErrorKind.CRASHED, "the engine died")

    bench = Bench(tmp_path, ScriptedHandler(script))
    bench.with_policy(cancel_poll_s=0.0)
    bench.drop({"workflow": "noop"})
    machine = bench.machine()
    run(machine, once=True)
    machine.close()
    assert [manifest["outcome"] for manifest in bench.manifests()] == ["cancelled"]
    assert bench.keys("inbox/") == []


def half_a_character(work: Work, context: TaskContext) -> TaskOutput:
    return replace(write_text_file(work, context), data={"text": "caf\udce9.png"})


def not_a_number(work: Work, context: TaskContext) -> TaskOutput:
    return replace(write_text_file(work, context), seconds=float("nan"))


def leaves(_work: Work, _context: TaskContext) -> TaskOutput:
    sys.exit(3)


@pytest.mark.parametrize("script", [half_a_character, not_a_number, leaves])
def test_whatever_a_handler_hands_over_the_job_ends(
    tmp_path: Path, script: Callable[[Work, TaskContext], TaskOutput]
) -> None:
    """What could not be recorded was swallowed by the pool, and the job waited for ever."""
    bench = Bench(tmp_path, ScriptedHandler(script))
    bench.drop({"workflow": "noop"})
    machine = bench.machine()
    run(machine, once=True)
    machine.close()
    (manifest,) = bench.manifests()
    assert manifest["outcome"] == "failed"
    assert manifest["tasks"][0]["error"]["kind"] == "internal"
    assert "files" not in manifest["tasks"][0]


def test_a_defect_of_the_launchers_own_ends_the_job(tmp_path: Path) -> None:
    """As above: nothing that a worker's thread raises is lost."""

    def observe(event: Event) -> None:
        if isinstance(event, TaskStarted):
            raise KeyError("a display's defect")

    bench = Bench(tmp_path, ScriptedHandler(write_text_file))
    bench.drop({"workflow": "noop"})
    machine = bench.machine()
    launcher = LocalLauncher(machine.handlers, machine.stores, LocalConfig(tmp_path), observe)
    machine = replace(machine, launcher=launcher)
    run(machine, once=True)
    machine.close()
    assert [manifest["error"]["kind"] for manifest in bench.manifests()] == ["internal"]


def counting(ran: list[int]) -> ScriptedHandler:
    def script(work: Work, context: TaskContext) -> TaskOutput:
        ran.append(work.task.index)
        return write_text_file(work, context)

    return ScriptedHandler(script, concurrency=1)


@pytest.mark.parametrize("key", [".txt", "result.json"])
def test_a_store_that_is_away_for_a_moment_costs_no_second_rendering(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    """The files are still there: they are uploaded again, and nothing else is done again."""
    monkeypatch.setattr(execute, "_STORE_PAUSES_S", (0.01,) * 6)
    ran: list[int] = []
    away = FaultPlan(Fault("put", key=key, times=6))
    bench = Bench(tmp_path, counting(ran), store=FaultyStore(MemoryStore(), away))
    bench.drop({"workflow": "noop", "overrides": {"tasks": 3}})
    machine = bench.machine()
    run(machine, once=True)
    machine.close()
    assert [manifest["outcome"] for manifest in bench.manifests()] == ["done"]
    assert ran == [0, 1, 2]


@pytest.mark.parametrize(
    "error",
    [lambda: AccessDenied("storage cap exceeded"), lambda: StoreUnavailable("503 Service Unavailable")],
)
def test_a_store_that_takes_no_files_fails_no_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Callable[[], DropbatchError]
) -> None:
    """Each of them used to be rendered three times, and failed. Now the job waits, and says for what."""
    monkeypatch.setattr(execute, "_STORE_PAUSES_S", ())
    ran: list[int] = []
    refuse = Fault("put", key="/00001-", times=10**9, error=error)
    bench = Bench(tmp_path, counting(ran), store=FaultyStore(MemoryStore(), FaultPlan(refuse)))
    bench.drop({"workflow": "noop", "overrides": {"tasks": 20}})
    machine = bench.machine()
    report = run(machine, once=True, wake=SkippingWake(bench))
    machine.close()
    assert report.given_back > 0
    assert error().what in str([event for event in bench.events if isinstance(event, JobReleased)])
    assert ran.count(1) == report.given_back
    assert bench.manifests() == []
    refuse.times = 0
    machine = replace(bench.machine(), stop=Stop())
    run(machine, once=True)
    machine.close()
    assert [manifest["outcome"] for manifest in bench.manifests()] == ["done"]
    assert ran.count(0) == 1, "what was finished is adopted"
