"""A machine in memory with the real render handler, whose engine a test may never start."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from handlers.render import RenderHandler
from processor.clock import SystemClock
from processor.errors import JobInvalid
from processor.handler import PlanContext, Stores
from processor.reading import read_job
from processor.records import Plan, dump
from processor.store.memory import MemoryStore
from processor.testing.machine import Bench
from tests.support.rendering import builtin_settings

MAX_TASKS = 10_000
KEY = "inbox/jobs/job.json"

Judge = Callable[[bytes], Plan | JobInvalid]


@pytest.fixture(name="store")
def _store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture(name="handler")
def _handler(tmp_path: Path) -> Iterator[RenderHandler]:
    handler = RenderHandler(builtin_settings(tmp_path), SystemClock())
    yield handler
    handler.close()


@pytest.fixture(name="bench")
def _bench(tmp_path: Path, handler: RenderHandler) -> Bench:
    return Bench(tmp_path / "tasks", handler)


@pytest.fixture(name="judge")
def _judge(store: MemoryStore, handler: RenderHandler) -> Judge:
    """What becomes of a job file before anything runs: a plan, or the reason why not.

    Any other exception is a defect of ours, and fails the test.
    """

    def judge(data: bytes) -> Plan | JobInvalid:
        stores = Stores.single(store)
        context = PlanContext(
            job_id="job-0123456789abcdef",
            drop_key=KEY,
            stores=stores,
            now=datetime.now(UTC),
            max_tasks=MAX_TASKS,
        )
        try:
            plan = handler.plan(read_job(data, key=KEY), context)
        except JobInvalid as error:
            str(error).encode()  # it goes into reports and pages
            return error
        assert 0 < len(plan.tasks) <= MAX_TASKS
        dump(plan)
        return plan

    return judge


Bounded = Callable[[], AbstractContextManager[None]]


@pytest.fixture(name="bounded")
def _bounded() -> Bounded:
    """Fails a block that costs more CPU than a poison drop may: others wait behind it."""

    @contextmanager
    def bounded(cpu_s: float = 10.0) -> Iterator[None]:
        began = time.thread_time()
        yield
        assert time.thread_time() - began < cpu_s

    return bounded
