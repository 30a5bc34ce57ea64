"""What a container of workers does: hold one handler with its engine, run orders, stay healthy."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from typing import Any, Final

import structlog

from infra.gpus import usd_per_s
from infra.health import Fitness, gpu_class, warm
from infra.paths import scratch
from infra.stops import StopWatch
from infra.transport import Order, execution_to_json
from processor import log as logs
from processor.errors import ErrorKind
from processor.execute import Execution, Watchdog, execute
from processor.handler import Handler, Progress, Stop, Stores, Work

log = structlog.get_logger(__name__)

_PROGRESS_EVERY_S: Final = 30.0
EXIT_GRACE_S: Final = 20.0
"""Modal kills 30 s after it has asked; the engine needs a few of those to end."""


class Worker:
    """One container's share of a fleet. Thread-safe: Modal calls `run` for several inputs at once.

    Args:
        default_gpu: what this pool's containers have, where the GPU can't tell itself.
        sharing: inputs that Modal sends at once, where they share an engine.
        drain: makes Modal send this container nothing more.
        reload_models: brings what others committed to the models' Volume.
    """

    def __init__(
        self,
        handler: Handler,
        stores: Stores,
        stops: StopWatch,
        *,
        default_gpu: str | None,
        sharing: int = 1,
        drain: Callable[[], None],
        reload_models: Callable[[], None] = lambda: None,
    ) -> None:
        self._handler = handler
        self._stores = stores
        self._stops = stops
        self._default_gpu = default_gpu
        self._sharing = sharing
        self._fitness = Fitness(handler, drain)
        self._reload_models = reload_models
        self._watchdog = Watchdog()
        self._lock = threading.Lock()
        self._busy = 0
        self._seen_jobs: set[str] = set()

    def warm(self) -> None:
        """Start the engine before the first task comes."""
        warm(self._handler)

    def run(self, value: dict[str, Any]) -> list[dict[str, Any]]:
        """Carry out one order; never raises for anything that a task can cause."""
        order, began = Order.from_json(value), time.monotonic()
        self._bring_models(order.works)
        with self._stops.watching(order) as stops:
            tasks = zip(order.works, stops, strict=True)
            executions = [self._run_one(work, order, stop) for work, stop in tasks]
        failures = {each.result.error.kind for each in executions if each.result.error is not None}
        self._fitness.look(failures, began=began)
        return [execution_to_json(execution) for execution in executions]

    def run_aside(self, value: dict[str, Any]) -> list[dict[str, Any]]:
        """As `run`, on a thread: a container that takes one input at a time runs it on its main
        thread, where a preemption's SIGINT would cut the task off instead of asking it to end."""
        with ThreadPoolExecutor(1, thread_name_prefix="task") as pool:
            future = pool.submit(self.run, value)
            try:
                return future.result()
            except KeyboardInterrupt:
                self._stops.stop_all(ErrorKind.PREEMPTED)
                wait([future], timeout=EXIT_GRACE_S)
                raise

    def close(self) -> None:
        """Stop what runs, give it a moment to leave, stop the engine. Idempotent."""
        self._stops.stop_all(ErrorKind.PREEMPTED)
        if not self._stops.wait_idle(EXIT_GRACE_S):
            log.warning("worker.left_tasks")
        self._handler.close()
        self._watchdog.close()

    def _run_one(self, work: Work, order: Order, stop: Stop) -> Execution:
        gpu = gpu_class() or order.gpu or self._default_gpu
        with logs.bind(job_id=work.job_id, task=work.task.index, attempt=work.attempt):
            with self._lock:
                self._busy += 1
                abreast = self._busy
            try:
                execution = execute(
                    self._handler,
                    work,
                    self._stores,
                    stop=stop,
                    watchdog=self._watchdog,
                    progress=_Progress(),
                    work_dir=scratch() / "tasks",
                    gpu=gpu,
                    usd_per_s=usd_per_s(gpu),
                    sharing=self._sharing,
                    abreast=abreast,
                )
            finally:
                with self._lock:
                    self._busy -= 1
            result = execution.result
            why = result.error.kind.value if result.error else None
            log.info("task", status=result.status, seconds=result.seconds, gpu=gpu, tries=work.tries, why=why)
            return execution

    def _bring_models(self, works: list[Work]) -> None:
        """See what was pulled to the Volume for a job that is new here; best effort.

        The handler downloads what is still missing, so a reload that fails (files are open)
        costs GPU time, and nothing else.
        """
        jobs = {work.job_id for work in works}
        if not jobs <= self._seen_jobs:
            with suppress(RuntimeError):
                self._reload_models()
            self._seen_jobs |= jobs


class _Progress:
    """A line in the container's log now and then, so that a long task is seen to move."""

    def __init__(self) -> None:
        self._next = time.monotonic() + _PROGRESS_EVERY_S

    def __call__(self, step: Progress) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _PROGRESS_EVERY_S
            log.info("task.progress", stage=step.stage, value=step.value, total=step.total)
