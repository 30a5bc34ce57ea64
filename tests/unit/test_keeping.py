"""What takes longer than a lease before its first task: it renews the lease, and heeds a stop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from processor.dispatch import process
from processor.errors import ErrorKind, StoreUnavailable, TaskFailed
from processor.handler import PlanContext, TaskContext, TaskOutput, Work
from processor.models import JobBase
from processor.parallel import THREADS
from processor.records import InputFile, Plan, Task
from processor.run import run
from processor.store import Download, ObjectInfo
from processor.store.memory import MemoryStore
from processor.task_inputs import TaskInputs
from processor.testing.clock import ManualClock
from processor.testing.counting import CountingStore
from processor.testing.handler import ScriptedHandler, write_text_file
from processor.testing.machine import Bench
from processor.tick import tick

TASKS = 70
SLOW_S = 12.0
"""A request's time: seventy of them outlast a lease of ten minutes, and as many as run at once don't."""


class Shaped(ScriptedHandler):
    """Plans whose results another job may reuse."""

    def plan(self, job: JobBase, context: PlanContext) -> Plan:
        return super().plan(job, context).model_copy(update={"shape": "noop"})


class SlowStore(CountingStore):
    """Reading a result and copying a file take their time, once it is `slow`."""

    slow = False

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(MemoryStore(clock=clock))
        self._clock = clock

    def get(self, key: str, *, version: str | None = None) -> Download:
        self._wait(key.endswith("/result.json"))
        return super().get(key, version=version)

    def copy(self, source: str, target: str, *, version: str | None = None) -> ObjectInfo:
        self._wait("comfy_outputs/" in target)
        return super().copy(source, target, version=version)

    def _wait(self, long: bool) -> None:
        if self.slow and long:
            self._clock.advance(SLOW_S)


@pytest.fixture(name="store")
def _store() -> SlowStore:
    return SlowStore(ManualClock())


def finish(bench: Bench) -> list[dict[str, Any]]:
    machine = bench.machine()
    run(machine, once=True)
    machine.close()
    return bench.manifests()


def test_finding_what_was_finished_may_outlast_a_lease(tmp_path: Path, store: SlowStore) -> None:
    """A job of thousands of tasks, stopped near its end, is gone on with by the next attempt."""

    def script(work: Work, context: TaskContext) -> TaskOutput:
        if work.task.index == TASKS - 2 and not store.slow:
            first.stop.set(ErrorKind.PREEMPTED)
            context.stop.wait(10)
        context.stop.check()
        return write_text_file(work, context)

    bench = Bench(tmp_path, ScriptedHandler(script, concurrency=1), store=store, clock=store._clock)
    bench.drop({"workflow": "noop", "overrides": {"tasks": TASKS}})
    first = bench.machine()
    assert process(first, tick(first, capacity=1).claims[0]) is None
    store.slow = True
    (manifest,) = finish(bench)
    assert manifest["outcome"] == "done"
    assert manifest["attempt"].startswith("2-")
    assert {task["attempt"][0] for task in manifest["tasks"]} == {"1", "2"}


def test_a_stop_while_results_are_looked_for_gives_the_job_back(tmp_path: Path, store: SlowStore) -> None:
    bench = Bench(tmp_path, ScriptedHandler(write_text_file), store=store, clock=store._clock)
    bench.drop({"workflow": "noop", "overrides": {"tasks": TASKS}})
    (parent,) = finish(bench)
    bench.drop({"workflow": "noop", "retry_of": parent["job_id"]}, "inbox/jobs/again.json")
    stopped = bench.machine()
    (claim,) = tick(stopped, capacity=1).claims
    stopped.stop.set(ErrorKind.PREEMPTED)
    store.reset()
    assert process(stopped, claim) is None
    assert store.counts["copy"] < TASKS
    assert finish(bench)[-1]["outcome"] == "done"


def test_copying_a_retrys_results_may_outlast_a_lease(tmp_path: Path, store: SlowStore) -> None:
    bench = Bench(tmp_path, ScriptedHandler(write_text_file), store=store, clock=store._clock)
    bench.drop({"workflow": "noop", "overrides": {"tasks": TASKS}})
    (parent,) = finish(bench)
    store.slow = True
    bench.drop({"workflow": "noop", "retry_of": parent["job_id"]}, "inbox/jobs/again.json")
    again = next(each for each in finish(bench) if each["job_id"] != parent["job_id"])
    assert again["outcome"] == "done"
    assert again["attempt"].startswith("1-")
    assert [task["reused_from"] for task in again["tasks"]] == [parent["job_id"]] * TASKS


@pytest.mark.parametrize("job", ["retry", "reuse"])
def test_who_takes_over_copies_only_the_rest(
    tmp_path: Path, store: SlowStore, monkeypatch: pytest.MonkeyPatch, job: str
) -> None:
    """Each copied result is recorded, for the next attempt to adopt."""
    copy, copied = SlowStore.copy, 0

    def failing(self: SlowStore, source: str, target: str, *, version: str | None = None) -> ObjectInfo:
        nonlocal copied
        copied += "comfy_outputs/" in target
        if copied == TASKS - 10:
            raise StoreUnavailable("gone for a moment")
        return copy(self, source, target, version=version)

    bench = Bench(tmp_path, Shaped(write_text_file), store=store, clock=store._clock)
    bench.drop({"workflow": "noop", "overrides": {"tasks": TASKS}})
    (parent,) = finish(bench)
    monkeypatch.setattr(SlowStore, "copy", failing)
    again = {"overrides": {"tasks": TASKS}, "reuse": True} if job == "reuse" else {}
    origin = {"retry_of": parent["job_id"]} if job == "retry" else {}
    bench.drop({"workflow": "noop", **again, **origin}, "inbox/jobs/again.json")
    first = bench.machine()
    (claim,) = tick(first, capacity=1).claims
    assert process(first, claim) is None
    first.close()
    made = next(each for each in finish(bench) if each["job_id"] != parent["job_id"])
    assert made["outcome"] == "done"
    assert [task["reused_from"] for task in made["tasks"]] == [parent["job_id"]] * TASKS
    assert copied <= TASKS + THREADS + 1
    assert all(file["key"] in bench.all_keys for task in made["tasks"] for file in task["files"])


def test_planning_may_outlast_a_lease(tmp_path: Path) -> None:
    """A handler that plans for minutes says now and then that it is still there."""
    clock = ManualClock()

    class Thorough(ScriptedHandler):
        def plan(self, job: JobBase, context: PlanContext) -> Plan:
            for _ in range(TASKS):
                clock.advance(SLOW_S)
                context.keep_alive()
            return super().plan(job, context)

    bench = Bench(tmp_path, Thorough(), clock=clock)
    bench.drop({"workflow": "noop"})
    (manifest,) = finish(bench)
    assert manifest["outcome"] == "done"
    assert manifest["attempt"].startswith("1-")


def test_a_task_gets_the_files_it_names_and_no_others() -> None:
    """A batch over a folder of pictures has thousands; each task reads one."""
    files = [InputFile(name=f"{k}.png", source=f"photos/{k}.png") for k in range(5)]
    shared = {"workflow": {"1": {"class_type": "LoadImage", "inputs": {"image": "4.png"}}}}
    tasks = [
        Task(index=0, hash="a", payload={"sets": [["2", "image", "1.png"]]}),
        Task(index=1, hash="b", payload={"sets": [["2", "image", "9.png"], ["2", "mask", "4.png"]]}),
    ]
    inputs = TaskInputs(Plan(job_id="j", kind="render", shared=shared, tasks=tasks, inputs=files))
    assert [[file.name for file in inputs.of(task)] for task in tasks] == [["4.png", "1.png"], ["4.png"]]


def test_a_job_without_an_engine_waits_and_no_attempt_counts(tmp_path: Path) -> None:
    """ComfyUI is switched on later than the runner; what was finished before it went is kept."""
    away = 5

    def script(work: Work, context: TaskContext) -> TaskOutput:
        nonlocal away
        if work.task.index == 1 and away:
            away -= 1
            raise TaskFailed(ErrorKind.NO_ENGINE, "nobody is there")
        return write_text_file(work, context)

    bench = Bench(tmp_path, ScriptedHandler(script, concurrency=1), clock=ManualClock())
    bench.drop({"workflow": "noop", "overrides": {"tasks": 3}, "max_attempts": 1})
    machine = bench.machine()
    for left in (4, 3, 2, 1, 0):
        (claim,) = tick(machine, capacity=1).claims
        assert process(machine, claim) is None
        assert away == left
    run(machine, once=True)
    machine.close()
    (manifest,) = bench.manifests()
    assert manifest["outcome"] == "done"
    assert [task["attempt"][0] for task in manifest["tasks"][:2]] == ["1", "6"]
