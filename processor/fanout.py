"""Fan out: keep a launcher busy with one job's tasks until each has its result.

One loop on one thread: it submits, waits for what finishes (never longer than to the next
renewal), renews the lease, looks for a cancel request, and asks `processor.retry` about
every failure.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import deque
from dataclasses import dataclass, field
from typing import NoReturn

from processor.errors import ErrorKind, NotFound, StoreUnavailable
from processor.events import TaskFinished
from processor.execute import Execution
from processor.handler import Remedy, Work
from processor.keeping import Interrupted, KeptLease
from processor.launch import Run
from processor.layout import cancel_key
from processor.machine import Machine
from processor.models import JobBase, RenderJob, Scalar
from processor.records import ErrorReport, Plan, Task, TaskResult
from processor.report import error_line
from processor.retry import PERMANENT, decide
from processor.task_inputs import TaskInputs

_MAX_LOG_BYTES = 1024 * 1024


@dataclass(slots=True)
class FanOutResult:
    """One result per task, and what else the manifest needs."""

    results: dict[int, TaskResult]
    cancelled: bool = False
    engine: dict[str, Scalar] = field(default_factory=dict)


class FanOut:
    """Runs the tasks of one plan under one lease."""

    def __init__(
        self,
        machine: Machine,
        kept: KeptLease,
        attempt: str,
        *,
        job: JobBase,
        plan: Plan,
    ) -> None:
        self._machine = machine
        self._kept = kept
        self._attempt = attempt
        self._job = job
        self._plan = plan
        self._tasks = {task.index: task for task in plan.tasks}
        self._inputs = TaskInputs(plan)
        self._timeout_s = job.timeout_s or machine.policy.task_timeout_s[plan.kind]
        self._gpu = job.gpu or plan.gpu
        self._pending: deque[tuple[Task, int, Remedy]] = deque()
        self._again: list[tuple[float, int, tuple[Task, int, Remedy]]] = []
        self._order = itertools.count()
        self._outstanding = 0
        self.spent_usd = 0.0
        """Of the whole job, by earlier attempts too."""
        self._attempt_usd = 0.0
        self._task_cost: dict[int, float] = {}
        self._cancelled = False
        self._poll_at = machine.clock.monotonic() + machine.policy.cancel_poll_s
        self.log = ""
        """The engine's log so far, bounded."""

    def run(self, done: dict[int, TaskResult], *, spent_usd: float = 0.0) -> FanOutResult:
        """Run every task that has no result yet.

        Args:
            done: results that need no execution, by task index.
            spent_usd: what earlier attempts have cost, these results included.
        Raises:
            Interrupted: the machine is stopping, or has no engine just now; what finished is recorded
                for adoption.
            LeaseLost, ForeignAuthority: nothing more was started after it was noticed.
        """
        out = FanOutResult(dict(done))
        # What an attempt has spent is written later than its results.
        self.spent_usd = max(spent_usd, sum(result.cost_usd for result in done.values()))
        todo = [task for task in self._plan.tasks if task.index not in done]
        # Equal groups together, in order of their first task: warm engines keep their models.
        rank = {group: place for place, group in enumerate(dict.fromkeys(task.group for task in todo))}
        todo.sort(key=lambda task: (rank[task.group], task.index))
        self._pending.extend((task, 1, Remedy.NONE) for task in todo)
        if todo:
            try:
                with self._machine.launcher.open(self._plan.kind) as run:
                    self._loop(run, out)
            finally:
                self._machine.budget.write(self._spender)
        out.cancelled = self._cancelled and len(out.results) < len(self._plan.tasks)
        return out

    def _loop(self, run: Run, out: FanOutResult) -> None:
        while self._pending or self._again or self._outstanding:
            self._check_stop(run)
            self._keep_lease(run)
            self._poll_cancel(run)
            self._submit(run, out)
            if not self._outstanding and not self._again:
                continue
            execution = run.next(self._wait_s())
            if execution is not None:
                self._outstanding -= 1
                self._check_machine(run, execution.result)
                self._take(execution, out)

    def _submit(self, run: Run, out: FanOutResult) -> None:
        now = self._machine.clock.monotonic()
        while self._again and self._again[0][0] <= now:
            self._pending.appendleft(heapq.heappop(self._again)[2])
        if self._cancelled:
            self._pending.clear()
            self._again.clear()
            return
        while self._pending and self._outstanding < run.window:
            if (error := self._out_of_money()) is not None:
                self._give_up_rest(out, error)
                return
            if self._may_run_out():
                return
            task, tries, remedy = self._pending.popleft()
            run.submit(self._work(task, tries, remedy))
            self._outstanding += 1

    def _take(self, execution: Execution, out: FanOutResult) -> None:
        result = execution.result
        self._append_log(execution.log)
        out.engine.update(execution.engine)
        spent = self._charge(result)
        if spent != result.cost_usd:  # earlier tries cost, too
            result = result.model_copy(update={"cost_usd": round(spent, 6)})
        policy = self._machine.policy
        again = result.error and decide(
            result.error.kind,
            result.tries,
            max_tries=policy.max_task_tries,
            first_delay_s=policy.retry_delay_s,
        )
        retry = bool(again) and not self._cancelled
        self._machine.observe(TaskFinished(self._plan.job_id, result, will_retry=retry))
        if again and retry:
            due = self._machine.clock.monotonic() + again.delay_s
            task = self._tasks[result.index]
            heapq.heappush(self._again, (due, next(self._order), (task, result.tries + 1, again.remedy)))
        elif not (self._cancelled and result.error and _says_nothing(result.error)):
            out.results[result.index] = result

    def _charge(self, result: TaskResult) -> float:
        """Count what an execution cost, whatever came of it; returns what its task has cost so far."""
        self.spent_usd += result.cost_usd
        self._attempt_usd += result.cost_usd
        self._machine.budget.add(self._spender, result.cost_usd)
        spent = self._task_cost.get(result.index, 0.0) + result.cost_usd
        self._task_cost[result.index] = spent
        return spent

    def _work(self, task: Task, tries: int, remedy: Remedy) -> Work:
        options: dict[str, Scalar] = {}
        if isinstance(self._job, RenderJob):
            options["allow_invalid_outputs"] = self._job.allow_invalid_outputs
        return Work(
            job_id=self._plan.job_id,
            attempt=self._attempt,
            kind=self._plan.kind,
            task=task,
            shared=self._plan.shared,
            inputs=self._inputs.of(task),
            models=self._plan.models,
            gpu=self._gpu,
            timeout_s=self._timeout_s,
            max_cost_usd=self._share_usd,
            tries=tries,
            remedy=remedy,
            retried=self._plan.retried,
            options=options,
            output=self._job.output if isinstance(self._job, RenderJob) else None,
        )

    def _wait_s(self) -> float:
        now = self._machine.clock.monotonic()
        # Once cancelled nothing is polled for any more: its time, long past, must not count.
        polled = [] if self._cancelled else [self._poll_at]
        due = min([self._kept.due, *polled, *(entry[0] for entry in self._again[:1])])
        # Short enough to notice a stop; the launcher's queue wakes us earlier for results.
        return min(max(0.0, due - now), self._machine.policy.stop_poll_s)

    def _keep_lease(self, run: Run) -> None:
        try:
            if self._kept.keep():
                self._machine.budget.write(self._spender)
        except Exception:
            run.cancel(ErrorKind.PREEMPTED)
            raise

    def _poll_cancel(self, run: Run) -> None:
        """Look for a cancel request now and then. Cost: 1 request each time."""
        machine = self._machine
        if self._cancelled or machine.clock.monotonic() < self._poll_at:
            return
        self._poll_at = machine.clock.monotonic() + machine.policy.cancel_poll_s
        try:
            machine.stores.main.stat(cancel_key(self._plan.job_id))
        except (NotFound, StoreUnavailable):
            return
        self._cancelled = True
        run.cancel(ErrorKind.CANCELLED)

    def _check_stop(self, run: Run) -> None:
        if self._machine.stop.is_set():
            self._give_back(run, "this runner was stopped")

    def _check_machine(self, run: Run, result: TaskResult) -> None:
        """Give the job back for a failure that is this machine's, not the task's."""
        if result.error is None or self._cancelled:
            return
        if result.error.kind in (ErrorKind.NO_ENGINE, ErrorKind.NO_STORE):
            why = error_line(result.error)
        elif self._machine.stop.is_set() and _says_nothing(result.error):
            # A service's processes are told to end all at once: its engine has died of that.
            why = "this runner was stopped"
        else:
            return
        self._charge(result)
        self._give_back(run, why)

    def _give_back(self, run: Run, why: str) -> NoReturn:
        run.cancel(ErrorKind.PREEMPTED)
        clock, policy = self._machine.clock, self._machine.policy
        until = clock.monotonic() + policy.stop_grace_s
        # What is nearly done gets to write its result, for the next attempt to adopt.
        while self._outstanding and (left_s := until - clock.monotonic()) > 0:
            if (execution := run.next(left_s)) is not None:
                self._outstanding -= 1
                self._charge(execution.result)
        raise Interrupted(why)

    @property
    def _spender(self) -> tuple[str, str]:
        return self._plan.job_id, self._attempt

    def _out_of_money(self) -> ErrorReport | None:
        """Why nothing more may be begun. Cost: 1 request a minute, where tasks cost anything."""
        priced = self._machine.policy.priced or self.spent_usd > 0
        if priced and self.spent_usd >= self._cap_usd:
            own = self._job.max_cost_usd is not None
            mend = "`dropbatch retry JOB --max-cost USD` runs the rest; finished tasks are kept"
            return ErrorReport(
                kind=ErrorKind.OVER_BUDGET,
                what=f"not run: the job had cost ${self.spent_usd:.2f} of ${self._cap_usd:.2f}",
                where="max_cost_usd" if own else "max_job_cost_usd",
                mend=mend if own else f"{mend}. For all jobs raise max_job_cost_usd in the settings",
            )
        budget = self._machine.budget
        if priced and budget.used_up:
            return ErrorReport(
                kind=ErrorKind.OVER_BUDGET,
                what=f"not run: the day had cost ${budget.spent_usd():.2f} of ${budget.cap_usd:.2f}",
                where="max_day_cost_usd",
                mend="`dropbatch retry` runs the rest tomorrow, or today with a higher max_day_cost_usd",
            )
        return None

    def _may_run_out(self) -> bool:
        """Whether what runs already may use the job's money up: then it is waited for."""
        # Asked before every task, so nothing is summed up here.
        known = len(self._task_cost)
        expected_usd = self._outstanding * self._attempt_usd / known if known else 0.0
        return self._outstanding > 0 and 0 < self._cap_usd <= self.spent_usd + expected_usd

    @property
    def _cap_usd(self) -> float:
        return self._job.cap_usd(self._machine.policy.max_job_cost_usd)

    @property
    def _share_usd(self) -> float | None:
        """What one task may cost; None where the settings say `inf`."""
        return self._cap_usd / len(self._plan.tasks) if math.isfinite(self._cap_usd) else None

    def _give_up_rest(self, out: FanOutResult, error: ErrorReport) -> None:
        for task, tries, _ in self._pending:
            out.results[task.index] = TaskResult(
                index=task.index,
                hash=task.hash,
                status="failed",
                params=task.params,
                seed=task.seed,
                error=error,
                attempt=self._attempt,
                execution="",
                tries=tries - 1,
                started_at=self._machine.clock.now(),
                seconds=0.0,
            )
        self._pending.clear()

    def _append_log(self, text: str) -> None:
        if text and len(self.log) < _MAX_LOG_BYTES:
            self.log = (self.log + text.rstrip("\n") + "\n")[:_MAX_LOG_BYTES]


def _says_nothing(error: ErrorReport) -> bool:
    """Whether what was being stopped may have failed of that: nothing is known of the task."""
    return error.kind is ErrorKind.CANCELLED or error.kind not in PERMANENT
