"""What a container of workers charges and how it looks after itself, without Modal."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from infra.gpus import usd_per_s
from infra.stops import StopNotes, StopWatch
from infra.transport import Order
from infra.worker import Worker
from processor.errors import ErrorKind, TaskFailed
from processor.handler import Stores, TaskContext, TaskOutput, Work
from processor.leases.memory import MemoryLeases
from processor.records import Task
from processor.store.memory import MemoryStore
from processor.testing.handler import ScriptedHandler

JOB_ID = "job-0123456789abcdef"


@pytest.fixture(autouse=True)
def _mounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.paths._ROOT", tmp_path)


def worker(handler: ScriptedHandler, drain: Callable[[], None] = lambda: None) -> Worker:
    stops = StopWatch(StopNotes({}), MemoryLeases())  # type: ignore[arg-type]  # as far as it is used
    return Worker(handler, Stores.single(MemoryStore()), stops, default_gpu="L40S", sharing=3, drain=drain)


def run_tasks(worker: Worker, count: int) -> list[dict[str, Any]]:
    """That many tasks, three at a time as Modal sends them; their results."""

    def run(index: int) -> dict[str, Any]:
        task = Task(index=index, hash=f"{index:064d}")
        work = Work(job_id=JOB_ID, attempt="1-a", kind="render", task=task, shared={}, timeout_s=60)
        (reply,) = worker.run(Order("run", None, [work]).to_json())
        result: dict[str, Any] = reply["result"]
        return result

    with ThreadPoolExecutor(3) as pool:
        return list(pool.map(run, range(count)))


def test_tasks_that_take_turns_are_charged_what_the_gpu_worked() -> None:
    """The engine's own seconds add up to its time, however many tasks wait beside."""
    together = threading.Barrier(3)

    def script(_work: Work, _context: TaskContext) -> TaskOutput:
        together.wait(10)
        return TaskOutput([], seconds=100.0)

    results = run_tasks(worker(ScriptedHandler(script)), 3)
    assert [result["cost_usd"] for result in results] == [round(100 * usd_per_s("L40S"), 6)] * 3


def test_tasks_that_fail_together_share_the_time_of_their_container(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nobody knows what the engine did for which: each has its share of the wall's time."""
    monkeypatch.setattr("infra.worker.usd_per_s", lambda _gpu: 1000.0)
    together = threading.Barrier(3)

    def script(_work: Work, _context: TaskContext) -> TaskOutput:
        together.wait(10)
        time.sleep(0.2)
        raise TaskFailed(ErrorKind.BAD_INPUT, "no")

    results = run_tasks(worker(ScriptedHandler(script)), 3)
    shares = sorted(result["seconds"] * 1000.0 / result["cost_usd"] for result in results)
    assert shares == pytest.approx([1, 2, 3], rel=0.02)
