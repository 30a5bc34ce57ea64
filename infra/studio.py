"""Renders for the API: the same handler as the batch's, without a drop, a lease or a manifest."""

from __future__ import annotations

import secrets
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from infra.machine import container_start, open_stores
from infra.models import Problem, raise_problem
from infra.paths import scratch
from infra.settings import Deployment
from processor.config import resolve_handlers
from processor.errors import DropbatchError, ErrorKind, TaskFailed
from processor.execute import Watchdog
from processor.handler import Handler, PlanContext, Progress, Stop, Stores, TaskContext, Work
from processor.layout import slug
from processor.models import RenderJob
from processor.records import Plan
from processor.report import error_report

MAX_TASKS: Final = 8
"""More belong in a job: the caller of a web endpoint waits."""
MAX_REPLY_BYTES: Final = 100 * 1024 * 1024


class Studio:
    """One container of the API's pool. Thread-safe."""

    def __init__(self, handler: Handler, stores: Stores, timeout_s: float) -> None:
        self._handler = handler
        self._stores = stores
        self._timeout_s = timeout_s
        self._watchdog = Watchdog()
        self._lock = threading.Lock()
        self._running: set[Stop] = set()

    @classmethod
    def open(cls, deployed: Deployment) -> Studio:
        ours = container_start(deployed)
        stores = open_stores(ours)
        handler = resolve_handlers(ours.settings)["render"].configured(ours.settings, stores)
        return cls(handler, stores, ours.settings.render_timeout_s)

    def warm(self) -> None:
        """Start the engine before the first request comes."""
        start = getattr(self._handler, "warm", None)
        if callable(start):
            try:
                start()
            except TaskFailed:
                return  # the first request meets the same, and is told

    def render(
        self,
        job: dict[str, Any],
        pull: Callable[[list[dict[str, Any]]], Problem],
        reload_models: Callable[[], None],
    ) -> dict[str, Any]:
        """Run a render job to its files.

        Args:
            pull: brings models to the Volume, on a CPU.
            reload_models: makes them seen here.
        Returns:
            `files`, or `error`: an exception would not cross the wire with what it says.
        """
        try:
            plan = self._plan(RenderJob.model_validate(job))
            if plan.models:
                raise_problem(pull([model.model_dump() for model in plan.models]))
                with suppress(RuntimeError):  # files are open; the handler brings what is missing
                    reload_models()
            return {"files": [file for index in range(len(plan.tasks)) for file in self._run(plan, index)]}
        except DropbatchError as error:
            return {"error": error_report(error).model_dump(mode="json", exclude_defaults=True)}

    def close(self) -> None:
        """Stop what runs, then the engine."""
        with self._lock:
            running = list(self._running)
        for stop in running:
            stop.set(ErrorKind.PREEMPTED)
        self._handler.close()
        self._watchdog.close()

    def _plan(self, job: RenderJob) -> Plan:
        job_id = f"{slug(job.name or 'api')}-{secrets.token_hex(8)}"
        context = PlanContext(
            job_id=job_id,
            drop_key="request",
            stores=self._stores,
            now=datetime.now(UTC),
            max_tasks=MAX_TASKS,
        )
        return self._handler.plan(job, context)

    def _run(self, plan: Plan, index: int) -> list[dict[str, Any]]:
        work = Work(
            job_id=plan.job_id,
            attempt="api",
            kind="render",
            task=plan.tasks[index],
            shared=plan.shared,
            inputs=plan.inputs,
            models=plan.models,
            timeout_s=self._timeout_s,
        )
        scratch().mkdir(parents=True, exist_ok=True)
        with (
            self._stoppable() as stop,
            tempfile.TemporaryDirectory(dir=scratch()) as directory,
            self._watchdog.limit(stop, self._timeout_s),
        ):
            deadline = time.monotonic() + self._timeout_s
            context = TaskContext(Path(directory), self._stores, stop, deadline, _no_progress)
            files = self._handler.run(work, context).files
            if sum(file.path.stat().st_size for file in files) > MAX_REPLY_BYTES:
                raise TaskFailed(
                    ErrorKind.REFUSED,
                    f"the files have more than {MAX_REPLY_BYTES:,} bytes, too many for a reply",
                    mend="POST /jobs instead; they go to the bucket",
                )
            return [
                {"name": file.name, "media_type": file.media_type, "data": file.path.read_bytes()}
                for file in files
            ]

    @contextmanager
    def _stoppable(self) -> Iterator[Stop]:
        stop = Stop()
        with self._lock:
            self._running.add(stop)
        try:
            yield stop
        finally:
            with self._lock:
                self._running.discard(stop)


def _no_progress(_step: Progress) -> None:
    """The caller waits for the reply; nothing else can be told."""
