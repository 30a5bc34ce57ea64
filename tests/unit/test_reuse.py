"""Reuse: equal tasks are answered from earlier jobs, saying from where, at a few requests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from processor.handler import PlanContext, TaskContext, TaskOutput, Work
from processor.layout import reuse_prefix
from processor.models import JobBase, RenderJob
from processor.records import Plan
from processor.run import run
from processor.store.memory import MemoryStore
from processor.testing.clock import ManualClock
from processor.testing.counting import CountingStore
from processor.testing.handler import ScriptedHandler, write_text_file
from processor.testing.machine import Bench


class Shaped(ScriptedHandler):
    """Plans whose shape is the workflow's name, and counts what it runs."""

    def __init__(self) -> None:
        self.ran: list[int] = []
        super().__init__(self._count)

    def plan(self, job: JobBase, context: PlanContext) -> Plan:
        assert isinstance(job, RenderJob)
        return super().plan(job, context).model_copy(update={"shape": str(job.workflow)})

    def _count(self, work: Work, context: TaskContext) -> TaskOutput:
        self.ran.append(work.task.index)
        return write_text_file(work, context)


@pytest.fixture(name="bench")
def _bench(tmp_path: Path) -> Bench:
    clock = ManualClock()
    return Bench(tmp_path, Shaped(), clock=clock, store=CountingStore(MemoryStore(clock=clock)))


def finish(bench: Bench, key: str, tasks: int, **job: Any) -> dict[str, Any]:
    bench.clock.advance(60)
    bench.drop({"workflow": "noop", "overrides": {"tasks": tasks}, **job}, key)
    machine = bench.machine()
    run(machine, once=True)
    machine.close()
    (manifest,) = [m for m in bench.manifests() if m["drop"]["key"] == key]
    return manifest


def ran(bench: Bench) -> list[int]:
    assert isinstance(bench.handler, Shaped)
    done, bench.handler.ran = sorted(bench.handler.ran), []
    return done


def test_only_what_is_new_is_run(bench: Bench) -> None:
    """Two of three tasks are known; their files are copies, under this job's own keys."""
    first = finish(bench, "inbox/jobs/a.json", 2)
    assert ran(bench) == [0, 1]
    second = finish(bench, "inbox/jobs/b.json", 3, reuse=True)
    assert ran(bench) == [2]
    assert second["outcome"] == "done"
    assert [task.get("reused_from") for task in second["tasks"]] == [first["job_id"], first["job_id"], None]
    for old, new in zip(first["tasks"], second["tasks"], strict=False):
        assert new["files"][0]["sha256"] == old["files"][0]["sha256"]
        assert new["files"][0]["key"].startswith(f"comfy_outputs/{second['job_id']}/")
        assert new["files"][0]["key"] in bench.all_keys


def test_a_retry_of_all_tasks_runs_them_again(bench: Bench) -> None:
    """Although the job it retries may take earlier results, and its own are the nearest."""
    first = finish(bench, "inbox/jobs/a.json", 2, reuse=True)
    ran(bench)
    again = {"reuse": True, "retry_of": first["job_id"], "retry_tasks": "all"}
    second = finish(bench, "inbox/jobs/b.json", 2, **again)
    assert (ran(bench), second["outcome"]) == ([0, 1], "done")


def test_without_being_asked_for_nothing_is_reused(bench: Bench) -> None:
    finish(bench, "inbox/jobs/a.json", 2)
    finish(bench, "inbox/jobs/b.json", 2)
    assert ran(bench) == [0, 0, 1, 1]


def test_other_names_or_formats_are_other_results(bench: Bench) -> None:
    finish(bench, "inbox/jobs/a.json", 1)
    finish(bench, "inbox/jobs/b.json", 1, reuse=True, output={"name": "{task}"})
    assert ran(bench) == [0, 0]


def test_results_whose_files_are_gone_are_run_again(bench: Bench) -> None:
    first = finish(bench, "inbox/jobs/a.json", 1)
    key = first["tasks"][0]["files"][0]["key"]
    bench.main.delete(key, version=bench.main.stat(key).version)
    second = finish(bench, "inbox/jobs/b.json", 1, reuse=True)
    assert (ran(bench), second["outcome"]) == ([0, 0], "done")


def test_a_copy_of_a_copy_names_where_it_was_made(bench: Bench) -> None:
    first = finish(bench, "inbox/jobs/a.json", 1)
    finish(bench, "inbox/jobs/b.json", 1, reuse=True)
    third = finish(bench, "inbox/jobs/c.json", 1, reuse=True)
    assert third["tasks"][0]["reused_from"] == first["job_id"]


def test_what_was_deleted_by_name_hides_no_result(tmp_path: Path) -> None:
    """Where versions are kept, a listing's first page may hold nothing but hidden ones."""
    clock = ManualClock()
    store = MemoryStore(clock=clock, page_size=3)
    bench = Bench(tmp_path, Shaped(), clock=clock, store=store)
    finish(bench, "inbox/jobs/a.json", 2)
    for number in range(4):
        key = f"{reuse_prefix('noop')}{number:011}/gone-{number:016}"
        store.put(key, b"")
        store.hide(key)
    finish(bench, "inbox/jobs/b.json", 2, reuse=True)
    assert ran(bench) == [0, 1]


def test_looking_costs_few_requests_however_long_the_history(bench: Bench) -> None:
    """One listing and at most twenty manifests."""
    for number in range(30):
        finish(bench, f"inbox/jobs/{number}.json", 1, workflow="other" if number % 2 else "noop")
    store = bench.main
    assert isinstance(store, CountingStore)
    bench.drop({"workflow": "noop", "reuse": True}, "inbox/jobs/last.json")
    machine = bench.machine()
    store.reset()
    run(machine, once=True)
    asked = store.total
    machine.close()
    assert asked <= 8 + 1 + 20 + 15, asked
