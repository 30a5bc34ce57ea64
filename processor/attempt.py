"""An attempt: one process's execution of a job under a lease, and what it writes of itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

import structlog

from processor.errors import ErrorKind, LeaseLost, StoreError
from processor.history import History, has_results
from processor.inbox import Drop
from processor.keeping import Interrupted, KeptLease
from processor.layout import attempt_key, engine_log_key
from processor.leases.lease import Lease
from processor.machine import Machine
from processor.models import IngestJob, JobBase, Scalar
from processor.peek import Peeked
from processor.records import (
    SCHEMA_VERSION,
    Attempt,
    AttemptSummary,
    DropRef,
    ErrorReport,
    Manifest,
    Outcome,
    Plan,
    TaskResult,
    dump,
)
from processor.store import ObjectInfo
from processor.version import VERSION

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Claim:
    """A drop and the lease on its job."""

    drop: Drop
    lease: Lease
    cancel: ObjectInfo | None = None
    """The request to cancel it, if one was seen."""
    peeked: Peeked | None = None
    """What the drop said when it was claimed; None in a claim handed to another process."""


@dataclass
class Trying:
    """This attempt as far as it has come; `attempt.json` and the manifest are made from it."""

    machine: Machine
    claim: Claim
    started_at: datetime
    job: JobBase | None = None
    plan: Plan | None = None
    history: History = field(default_factory=History)
    spent_usd: float = 0.0
    """What the job has cost so far, by attempts that nothing came of, too."""
    begun: Attempt | None = None
    """As written to `attempt.json`; None until then."""
    kept: KeptLease = field(init=False)

    def __post_init__(self) -> None:
        self.kept = KeptLease(self.machine, self.claim.lease)

    @property
    def job_id(self) -> str:
        return self.claim.lease.job_id

    @property
    def lease(self) -> Lease:
        """The lease with its newest end."""
        return self.kept.lease

    def keep_alive(self) -> None:
        """To be called between the steps of what may take minutes and runs no task.

        Raises:
            Interrupted: this runner is to stop.
            LeaseLost, ForeignAuthority: the job is somebody else's.
        Cost: as `KeptLease.keep`.
        """
        if self.machine.stop.is_set():
            raise Interrupted("this runner was stopped")
        self.kept.keep()

    @property
    def name(self) -> str:
        return f"{self.claim.lease.epoch}-{self.claim.lease.nonce}"

    @property
    def may_have_history(self) -> bool:
        """Whether anyone can have tried this job before. A first epoch tells that nobody has,
        unless the lease store was wiped since the drop arrived."""
        if self.claim.lease.epoch > 1:
            return True
        return self.machine.authority.older_than_founding(self.claim.drop.modified)

    def begin(self) -> None:
        """Write `attempt.json`: from here on the attempt counts.

        Raises:
            LeaseLost: the lease is over, and the job somebody else's, who may have ended it.
        Cost: 1 request.
        """
        self._must_hold()
        self.begun = Attempt(
            attempt=self.name,
            job_id=self.job_id,
            host=self.machine.host,
            version=VERSION,
            begun_at=self.started_at,
            plan=self.plan,
        )
        self._put(self.begun)

    def give_back(self, why: str) -> None:
        """Say that it ended on purpose, so that it does not count. Cost: 1 request if begun.

        A store out of reach can't be told; then it counts, which errs towards ending.
        """
        if self.begun is None:
            return
        now = self.machine.clock.now()
        try:
            self._put(self.begun.model_copy(update={"ended": why[:500], "released_at": now}))
        except StoreError as error:
            log.warning("attempt.not_closed", attempt=self.name, why=str(error))

    def give_up(self, why: str) -> None:
        """Say that its lease was lost. It does not count if it finished anything: a lid that is closed
        each night must not end a job that gets on, and one that gets nowhere is ended still.

        Cost: if begun 1 request per 1,000 files of this attempt, and 1.
        """
        if self.begun is None:
            return
        try:
            gets_on = has_results(self.machine.stores.main, self.job_id, self.name)
        except StoreError as error:
            log.warning("attempt.not_closed", attempt=self.name, why=str(error))
            return
        if gets_on:
            self.give_back(why)

    def write_log(self, text: str) -> None:
        """Put the engine's log beside the results. Cost: 1 request if there is any."""
        if not text:
            return
        key, data = engine_log_key(self.job_id, self.name), text.encode("utf-8", "replace")
        try:
            self.machine.stores.main.put(key, data, media_type="text/plain; charset=utf-8")
        except StoreError as error:
            log.warning("engine_log.not_written", attempt=self.name, why=str(error))

    def manifest(
        self,
        outcome: Outcome,
        *,
        error: ErrorReport | None = None,
        results: list[TaskResult] | None = None,
        engine: dict[str, Scalar] | None = None,
    ) -> Manifest:
        """The candidate manifest this attempt ends in."""
        drop, results = self.claim.drop, results or []
        if error is None and outcome is Outcome.FAILED:
            error = next((result.error for result in results if result.error), None)
        return Manifest(
            schema_version=SCHEMA_VERSION,
            job_id=self.job_id,
            kind=self.job.kind if self.job else None,
            outcome=outcome,
            drop=DropRef(
                key=drop.key, version=drop.version, size_bytes=drop.size_bytes, modified=drop.modified
            ),
            job=self.job.model_dump(mode="json", exclude_defaults=True) if self.job else None,
            plan=self.plan,
            tasks=results,
            error=error,
            attempt=self.name,
            attempts=[*self.history.summaries, *self._summary()],
            started_at=self.started_at,
            finished_at=self.machine.clock.now(),
            seconds=round(sum(result.seconds for result in results), 3),
            cost_usd=round(max(self.spent_usd, sum(result.cost_usd for result in results)), 6),
            engine=engine or {},
        )

    def exhausted(self, finished: int = 0) -> ErrorReport:
        """Why a job is dead: every attempt, by name.

        Args:
            finished: how many tasks of the plan have their results all the same.
        """
        lines = [
            f"{attempt.attempt} on {attempt.host}, begun {attempt.begun_at:%Y-%m-%d %H:%M:%S} UTC: "
            f"{attempt.ended or 'ended without a word'}"
            for attempt in self.history.attempts
        ]
        return ErrorReport(
            kind=ErrorKind.CRASHED,
            what=f"given up after {len(lines)} attempts that did not end",
            mend=f"The engine log of each attempt lies beside its results; {self._again(finished)}",
            details=lines,
        )

    def _again(self, finished: int) -> str:
        """How to try a dead job once more."""
        if isinstance(self.job, IngestJob):
            folder = f"failed/<date>/{self.job_id}/{self.job.dataset}/"
            return f"drop the folder again to try again, its files are in {folder}"
        if self.plan is not None and finished < len(self.plan.tasks):
            return "`dropbatch retry` tries the rest again"
        return "drop it anew to try again"

    def _summary(self) -> list[AttemptSummary]:
        if self.begun is None:
            return []
        return [AttemptSummary(attempt=self.name, begun_at=self.begun.begun_at, host=self.begun.host)]

    def _must_hold(self) -> None:
        if not self.machine.leases.holds(self.lease):
            raise LeaseLost("the lease ran out before the attempt began", where=self.job_id)

    def _put(self, record: Attempt) -> None:
        key = attempt_key(self.job_id, self.name)
        self.machine.stores.main.put(key, dump(record), media_type="application/json")
