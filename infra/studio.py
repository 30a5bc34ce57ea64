"""Renders for the API: the same handler as the batch's, without a drop, a lease or a manifest."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from infra.desk import check_day
from infra.gpus import usd_per_s
from infra.health import Fitness, gpu_class, warm
from infra.machine import container_start, factory_of, open_stores, rented_policy
from infra.paths import scratch
from infra.settings import Deployment
from processor.budget import DayBudget, Spender
from processor.clock import SystemClock
from processor.errors import DropbatchError, ErrorKind, TaskFailed
from processor.execute import Watchdog, backstop_s
from processor.handler import Handler, Progress, Stop, Stores, TaskContext, TaskOutput, Work
from processor.models import Output
from processor.records import Plan, Task
from processor.report import error_report
from processor.shaping import shaped

MAX_REPLY_BYTES: Final = 100 * 1024 * 1024
_ATTEMPT: Final = "api"
"""Stands for the attempt in what is spent and run; there is only one."""


class Studio:
    """One container of the API's pool. Thread-safe.

    Args:
        default_gpu: what its containers have, where the GPU can't tell itself.
        drain: makes Modal send this container nothing more.
    """

    def __init__(
        self,
        handler: Handler,
        stores: Stores,
        budget: DayBudget,
        *,
        timeout_s: float,
        default_gpu: str | None = None,
        drain: Callable[[], None],
    ) -> None:
        self._handler = handler
        self._stores = stores
        self._budget = budget
        self._timeout_s = timeout_s
        self._default_gpu = default_gpu
        self._fitness = Fitness(handler, drain)
        self._watchdog = Watchdog()
        self._lock = threading.Lock()
        self._running: set[Stop] = set()

    @classmethod
    def open(cls, deployed: Deployment, *, gpus: Sequence[str] = (), drain: Callable[[], None]) -> Studio:
        ours = container_start(deployed)
        stores = open_stores(ours)
        return cls(
            factory_of(ours, "render").configured(ours.settings, stores),
            stores,
            DayBudget(stores.main, rented_policy(ours), SystemClock()),
            timeout_s=ours.settings.render_timeout_s,
            default_gpu=next(iter(gpus), None),
            drain=drain,
        )

    def warm(self) -> None:
        """Start the engine before the first request comes."""
        warm(self._handler)

    def render(self, order: dict[str, Any], reload_models: Callable[[], None]) -> dict[str, Any]:
        """Run an order of `infra.desk`, task by task, until its money or the day's is spent.

        Args:
            reload_models: makes seen here what was pulled to the Volume.
        Returns:
            `files`, or `error`: an exception would not cross the wire with what it says.
        Cost: 1 request for what it has cost, and 1 a minute for the day's sum.
        """
        plan = Plan.model_validate(order["plan"])
        spender = (plan.job_id, _ATTEMPT)
        began, failures = time.monotonic(), set[ErrorKind]()
        try:
            if plan.models:
                with suppress(RuntimeError):  # files are open; the handler brings what is missing
                    reload_models()
            files: list[dict[str, Any]] = []
            spent_usd = 0.0
            for task in plan.tasks:
                self._check_money(spent_usd, order["max_cost_usd"])
                made, cost_usd = self._run(self._work(plan, task, order), spender)
                files += made
                spent_usd += cost_usd
        except DropbatchError as error:
            report = error_report(error)
            failures.add(report.kind)
            return {"error": report.model_dump(mode="json", exclude_defaults=True)}
        else:
            return {"files": files}
        finally:
            self._budget.write(spender)
            self._fitness.look(failures, began=began)

    def close(self) -> None:
        """Stop what runs, then the engine."""
        with self._lock:
            running = list(self._running)
        for stop in running:
            stop.set(ErrorKind.PREEMPTED)
        self._handler.close()
        self._watchdog.close()

    def _check_money(self, spent_usd: float, max_cost_usd: float) -> None:
        if spent_usd > 0 and spent_usd >= max_cost_usd:
            raise TaskFailed(
                ErrorKind.OVER_BUDGET,
                f"not all was run: the request had cost ${spent_usd:.2f} of ${max_cost_usd:.2f}",
                where="max_cost_usd",
                mend="Raise max_cost_usd, or ask for less at once; POST /jobs keeps what was finished",
            )
        check_day(self._budget)

    def _work(self, plan: Plan, task: Task, order: dict[str, Any]) -> Work:
        output = order.get("output")
        return Work(
            job_id=plan.job_id,
            attempt=_ATTEMPT,
            kind="render",
            task=task,
            shared=plan.shared,
            inputs=plan.inputs,
            models=plan.models,
            timeout_s=order.get("timeout_s", self._timeout_s),
            output=Output.model_validate(output) if output else None,
        )

    def _run(self, work: Work, spender: Spender) -> tuple[list[dict[str, Any]], float]:
        """A task's files, and what it cost; that is counted whether it ends well or not."""
        scratch().mkdir(parents=True, exist_ok=True)
        with self._stoppable() as (stop, abreast), tempfile.TemporaryDirectory(dir=scratch()) as directory:
            price = usd_per_s(gpu_class() or self._default_gpu)
            began, output = time.monotonic(), None
            try:
                output = self._run_work(work, stop, Path(directory))
            finally:
                # The engine's own seconds, else those here, which requests side by side share.
                seconds = (time.monotonic() - began) / abreast if output is None else output.seconds
                cost_usd = seconds * price
                self._budget.add(spender, cost_usd)
            files = shaped(output.files, work.task, work.output, Path(directory))
            if sum(file.path.stat().st_size for file in files) > MAX_REPLY_BYTES:
                raise TaskFailed(
                    ErrorKind.REFUSED,
                    f"the files have more than {MAX_REPLY_BYTES:,} bytes, too many for a reply",
                    mend="POST /jobs instead; they go to the bucket",
                )
            return [
                {"name": file.name, "media_type": file.media_type, "data": file.path.read_bytes()}
                for file in files
            ], cost_usd

    def _run_work(self, work: Work, stop: Stop, directory: Path) -> TaskOutput:
        deadline = time.monotonic() + work.timeout_s
        # The handler counts from a task's turn: another request may be on the same engine before it.
        with self._watchdog.limit(stop, backstop_s(work.timeout_s, self._handler.concurrency)):
            return self._handler.run(work, TaskContext(directory, self._stores, stop, deadline, _no_progress))

    @contextmanager
    def _stoppable(self) -> Iterator[tuple[Stop, int]]:
        """Its stop, and how many run now."""
        stop = Stop()
        with self._lock:
            self._running.add(stop)
            count = len(self._running)
        try:
            yield stop, count
        finally:
            with self._lock:
                self._running.discard(stop)


def _no_progress(_step: Progress) -> None:
    """The caller waits for the reply; nothing else can be told."""
