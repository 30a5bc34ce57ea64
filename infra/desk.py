"""What is done for a render of the API before a GPU is rented: on a CPU, in the door's own container."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from handlers.model_cache import ModelCache
from infra.models import Problem, raise_problem
from processor.budget import DayBudget
from processor.errors import ErrorKind, JobInvalid, NotFound, TaskFailed
from processor.handler import Handler, PlanContext, Stores
from processor.layout import PAUSED, slug
from processor.models import RenderJob
from processor.plan import planned
from processor.records import ModelFile, Plan

MAX_TASKS: Final = 8
"""More belong in a job: the caller of a web endpoint waits."""
_NOTE_EVERY_S: Final = 3600.0


@dataclass(frozen=True)
class Desk:
    """Takes a request as far as a CPU can. Thread-safe.

    Args:
        gpus: what the pool's containers may have; none where it renders on CPUs.
        timeout_s: a task's limit there, which a job may lower.
        cache: the models' Volume as this container sees it; only looked at.
        reload_models: makes seen what others brought to the Volume.
        pull: brings models to it; raises nothing, but may say what kept it.
        note_use: has it known that models were used, without waiting: those that were not for longest
            leave the Volume first.
        render: runs an order on a GPU: see `infra.studio`.
    """

    handler: Handler
    stores: Stores
    budget: DayBudget
    max_job_cost_usd: float
    gpus: Sequence[str]
    timeout_s: float
    cache: ModelCache
    reload_models: Callable[[], None]
    pull: Callable[[list[dict[str, Any]]], Problem]
    note_use: Callable[[list[dict[str, Any]]], None]
    render: Callable[[dict[str, Any]], dict[str, Any]]
    _noted: dict[ModelFile, float] = field(default_factory=dict)

    def __call__(self, job: RenderJob) -> dict[str, Any]:
        """Run a render job to its files: `files`, or `error`.

        Raises:
            JobInvalid: it can't be run, as a drop's report has it.
            TaskFailed: OVER_BUDGET on a day at its cap; UNAVAILABLE while the bucket is paused, or
                while its models are still on their way.
            StoreError: the bucket is out of reach.
        Cost: 1 request, 1 a minute for the day's sum, those of planning, and 1 a model.
        """
        self._check_pool(job)
        self._check_may_begin()
        plan = self._plan(job)
        self._bring(plan.models)
        return self.render(
            {
                "plan": plan.model_dump(mode="json", exclude_defaults=True),
                "max_cost_usd": job.cap_usd(self.max_job_cost_usd),
                "timeout_s": job.timeout_s or self.timeout_s,
                "output": job.output.model_dump(mode="json", exclude_defaults=True) if job.output else None,
            }
        )

    def _check_pool(self, job: RenderJob) -> None:
        """Refuse what would be asked for in vain: there is one pool, and no gallery to put more into."""
        pool = " or ".join(self.gpus) or "CPUs"
        if job.gpu is not None and list(self.gpus) != [job.gpu]:
            where, what = "gpu", f"renders that are answered at once run on {pool}"
        elif (job.timeout_s or 0) > self.timeout_s:
            where, what = "timeout_s", f"renders that are answered at once may take {self.timeout_s:g} s"
        elif job.output and (job.output.contact_sheet or job.output.sequence):
            where, what = "output", "contact sheets and sequences are made beside a job's gallery"
        else:
            return
        raise JobInvalid(what, where=where, mend="Leave it out, or POST /jobs, which has it as asked for")

    def _check_may_begin(self) -> None:
        try:
            self.stores.main.stat(PAUSED)
        except NotFound:
            pass
        else:
            raise TaskFailed(
                ErrorKind.UNAVAILABLE,
                "the bucket is paused",
                mend="`dropbatch resume` lets it go on; what is sent to POST /jobs waits until then",
            )
        check_day(self.budget)

    def _plan(self, job: RenderJob) -> Plan:
        job_id = f"{slug(job.name or 'api')}-{secrets.token_hex(8)}"
        context = PlanContext(
            job_id=job_id,
            drop_key="request",
            stores=self.stores,
            now=datetime.now(UTC),
            max_tasks=MAX_TASKS,
        )
        return planned(self.handler, job, context)

    def _bring(self, models: list[ModelFile]) -> None:
        """Have them on the Volume: most are, and then nothing is started for it."""
        if not models:
            return
        with suppress(RuntimeError):  # another request reads there just now; what it sees is as good
            self.reload_models()
        lacking, now = self.cache.lacking(models), time.monotonic()
        if lacking:
            raise_problem(self.pull([model.model_dump() for model in lacking]))
        used = [model for model in models if now - self._noted.get(model, -_NOTE_EVERY_S) >= _NOTE_EVERY_S]
        if unknown := [model for model in used if model not in lacking]:
            self.note_use([model.model_dump() for model in unknown])
        self._noted.update(dict.fromkeys(used, now))


def check_day(budget: DayBudget) -> None:
    """See that the day's cap leaves something.

    Raises:
        TaskFailed: OVER_BUDGET, it does not.
    Cost: 1 request a minute.
    """
    if budget.used_up:
        raise TaskFailed(
            ErrorKind.OVER_BUDGET,
            f"the day has cost ${budget.spent_usd():.2f} of ${budget.cap_usd:.2f}",
            where="max_day_cost_usd",
            mend="Ask again tomorrow, or raise max_day_cost_usd; what is sent to POST /jobs waits",
        )
