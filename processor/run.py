"""The loop on one machine: tick, hand claims to dispatcher threads, wait to be woken."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field

import structlog

from processor import parallel
from processor.attempt import Claim
from processor.claiming import claim_more
from processor.dispatch import process
from processor.errors import StoreError
from processor.machine import Machine
from processor.nightly import Mornings, announcing
from processor.records import Manifest, Outcome
from processor.spelling import plural
from processor.sweep import sweep
from processor.tick import tick
from processor.tick_report import TickReport

log = structlog.get_logger(__name__)

_SWEEP_EVERY_S = 3600.0
_MAX_REST_S = 600.0
_GIVE_UP_AFTER = 5
"""With `once`, so many times a job is given back, or nothing can be claimed, before the run leaves it."""
_FRESH_S = 10.0
"""For so long jobs are claimed from the last look at the inbox; unless something was dropped."""


class Wake:
    """Ends the loop's waiting early: a watcher or a stop sets it, a finished job nudges it."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._news = threading.Event()

    def set(self) -> None:
        """There may be something new in the inbox."""
        self._news.set()
        self._event.set()

    def nudge(self) -> None:
        """There is room for another job."""
        self._event.set()

    @property
    def has_news(self) -> bool:
        """Whether it was set since `take_news`."""
        return self._news.is_set()

    def take_news(self) -> None:
        """The inbox is looked at next, whatever is set from now on is news again."""
        self._news.clear()

    def wait(self, timeout_s: float) -> None:
        self._event.wait(timeout_s)
        self._event.clear()


@dataclass(slots=True)
class _Rest:
    """A job that was given back here: how often, and until when it is left alone."""

    times: int
    until: float
    """On the monotonic clock."""


@dataclass(slots=True)
class RunReport:
    """What a run came to."""

    outcomes: dict[Outcome, int] = field(default_factory=dict)
    given_back: int = 0
    problem: str | None = None
    over_budget: str | None = None
    """Why jobs that are due were left in the inbox at the last look, if the day's budget is used up."""
    paused: bool = False
    """The bucket was paused at the last look."""

    @property
    def settled(self) -> int:
        return sum(self.outcomes.values())

    @property
    def all_well(self) -> bool:
        good = self.outcomes.get(Outcome.DONE, 0) + self.outcomes.get(Outcome.CANCELLED, 0)
        return self.problem is None and good == self.settled


def run(
    machine: Machine,
    *,
    concurrency: int = 4,
    once: bool = False,
    night_open: bool | None = None,
    period_s: float = 60.0,
    wake: Wake | None = None,
    on_tick: Callable[[TickReport], None] | None = None,
) -> RunReport:
    """Work the bucket until stopped; with `once`, until nothing is due any more.

    Args:
        concurrency: jobs in work at a time; their tasks share one launcher.
        night_open: take held nightly jobs now (or never); None asks the policy's window. With
            `once` they are reported at the end, although their night may not be over.
        period_s: the longest pause between two looks at the inbox.
        wake: set by whoever knows that something was dropped.
    Returns:
        When `machine.stop` is set (running tasks are asked to end, leases are given back),
        or with `once` when the inbox holds nothing this runner could still do; what another
        runner has leased is waited for, since that runner may have died. A job that can't be
        claimed or brought to its end (a store refuses) is tried again ever later; with `once`
        five times in all.
    """
    loop = _Loop(machine, concurrency, period_s, wake or Wake(), on_tick=on_tick, night_open=night_open)
    return loop.run(once=once)


class _Loop:
    def __init__(
        self,
        machine: Machine,
        concurrency: int,
        period_s: float,
        wake: Wake,
        *,
        on_tick: Callable[[TickReport], None] | None,
        night_open: bool | None,
    ) -> None:
        self._machine = machine
        self._night_open = night_open
        self._concurrency = concurrency
        self._period_s = period_s
        self._wake = wake
        self._on_tick = on_tick
        self._lock = threading.Lock()
        self._busy: dict[str, Future[Manifest | None]] = {}
        self._resting: dict[str, _Rest] = {}
        self._report = RunReport()
        self._problem_logged: str | None = None
        self._sweep_at = machine.clock.monotonic()
        self._last: TickReport | None = None
        self._fruitless = 0
        """So many looks in a row found what could not be claimed, and nothing else."""
        self._looked_at = self._looked_until = 0.0
        """When the last look at the inbox began and ended."""
        self._mornings = Mornings(machine, announce=announcing(machine))
        self._reporting: Future[None] | None = None
        self._sweeping: Future[None] | None = None

    def run(self, *, once: bool) -> RunReport:
        stop = self._machine.stop
        # Chores have threads of their own: what is claimed starts at once, however long a sweep takes.
        with (
            parallel.new_pool(self._concurrency, "dispatch") as pool,
            parallel.new_pool(2, "chores") as chores,
        ):
            while not stop.is_set():
                tick_report = self._claim(pool)
                if once and self._finished(tick_report):
                    break
                self._report_the_night(chores)
                if not once:
                    self._sweep_now_and_then(chores)
                self._wake.wait(self._pause_s(tick_report))
        if not stop.is_set() and self._report.problem is None:
            self._report.problem = self._why_left() if once else None
            self._mornings.look()
            if once and self._night_open:
                self._mornings.tell_early()
        return self._report

    def _report_the_night(self, chores: Executor) -> None:
        if self._mornings.due and (self._reporting is None or self._reporting.done()):
            self._reporting = chores.submit(self._mornings.look)

    def _sweep_now_and_then(self, chores: Executor) -> None:
        now = self._machine.clock.monotonic()
        if now >= self._sweep_at and (self._sweeping is None or self._sweeping.done()):
            self._sweep_at = now + _SWEEP_EVERY_S
            self._sweeping = chores.submit(_sweep_quietly, self._machine)

    def _claim(self, pool: Executor) -> TickReport:
        """Fill up with jobs: of those that the last look found, or of those that a new one does."""
        busy = self._busy_ids()
        report = self._last
        if report is not None and self._is_fresh(report):
            # Whatever happens meanwhile, what was claimed here is started: its leases are ours by now.
            claims = self._claim_more(report, busy)
            if claims or busy:
                return self._start_all(pool, report, claims)
        self._wake.take_news()
        self._looked_at = self._machine.clock.monotonic()
        report = self._last = self._tick(busy)
        self._looked_until = self._machine.clock.monotonic()
        return self._start_all(pool, report, report.claims)

    def _start_all(self, pool: Executor, report: TickReport, claims: list[Claim]) -> TickReport:
        for claim in claims:
            self._start(pool, claim)
        return report

    def _is_fresh(self, report: TickReport) -> bool:
        age_s = self._machine.clock.monotonic() - self._looked_until
        if self._wake.has_news or 0.0 in self._rests_s():
            return False
        # A full inbox takes minutes to list: the look must be worth that.
        return age_s < min(max(_FRESH_S, self._looked_until - self._looked_at), report.next_wake_s)

    def _claim_more(self, report: TickReport, busy: set[str]) -> list[Claim]:
        capacity = self._concurrency - len(busy)
        if capacity <= 0 or not report.has_more:
            return []
        claims = claim_more(self._machine, report, capacity=capacity, busy=busy | self._resting_ids())
        self._note_problem(report)
        return claims

    def _busy_ids(self) -> set[str]:
        with self._lock:
            return set(self._busy)

    def _resting_ids(self) -> set[str]:
        now = self._machine.clock.monotonic()
        with self._lock:
            return {job_id for job_id, rest in self._resting.items() if rest.until > now}

    def _tick(self, busy: set[str]) -> TickReport:
        capacity = self._concurrency - len(busy)
        busy = busy | self._resting_ids()
        report = tick(self._machine, capacity=capacity, busy=busy, night_open=self._night_open)
        self._note_problem(report)
        self._report.over_budget, self._report.paused = report.over_budget, report.paused
        self._fruitless = self._fruitless + 1 if report.unclaimed and not report.claims else 0
        if self._on_tick:
            self._on_tick(report)
        return report

    def _note_problem(self, report: TickReport) -> None:
        if report.problem and report.problem != self._problem_logged:
            log.error("tick.problem", why=report.problem)
        self._problem_logged = self._report.problem = report.problem

    def _start(self, pool: Executor, claim: Claim) -> None:
        with self._lock:
            future = pool.submit(process, self._machine, claim)
            self._busy[claim.lease.job_id] = future
        future.add_done_callback(lambda done: self._end(claim.lease.job_id, done))

    def _end(self, job_id: str, done: Future[Manifest | None]) -> None:
        # Whatever it was, the job's place is free again, and the job is one that was given back.
        defect = done.exception()
        if defect is not None:
            log.error("job.defect", job_id=job_id, exc_info=defect)
        manifest = None if defect else done.result()
        self._mornings.note([manifest] if manifest else [])
        with self._lock:
            del self._busy[job_id]
            if manifest is None:
                self._report.given_back += 1
                self._let_rest(job_id)
            else:
                self._resting.pop(job_id, None)
                outcomes = self._report.outcomes
                outcomes[manifest.outcome] = outcomes.get(manifest.outcome, 0) + 1
        self._wake.nudge()

    def _let_rest(self, job_id: str) -> None:
        """What refused a job a moment ago (a key, a cap, a full disk) mostly refuses it still."""
        now = self._machine.clock.monotonic()
        before = self._resting.get(job_id)
        times = before.times + 1 if before else 1
        self._resting[job_id] = _Rest(times, now + self._rest_s(times))
        for other, rest in list(self._resting.items()):
            if now - rest.until > _MAX_REST_S:  # long gone, or somebody else's
                del self._resting[other]

    def _rest_s(self, times: int) -> float:
        """How long what has failed so many times is left alone."""
        return float(min(_MAX_REST_S, self._machine.policy.rest_s * 2 ** min(times - 1, 32)))

    def _rests_s(self, *, fewer_than: int = sys.maxsize) -> list[float]:
        """How much longer those rest whose turn has not come since, of those given back less often."""
        now = self._machine.clock.monotonic()
        with self._lock:
            rests = [rest for rest in self._resting.values() if rest.until > self._looked_at]
        return [max(0.0, rest.until - now) for rest in rests if rest.times < fewer_than]

    def _why_left(self) -> str | None:
        """Why a run that ends leaves something in the inbox that was due."""
        return self._left_behind() or self._refused() or self._unclaimed()

    def _left_behind(self) -> str | None:
        """What a run that ends leaves in the inbox, since it could not bring it to its end."""
        inbox = self._last.inbox if self._last else None
        left = [
            job_id
            for job_id, rest in self._resting.items()
            if rest.times >= _GIVE_UP_AFTER and inbox is not None and inbox.may_be_pending(job_id)
        ]
        if not left:
            return None
        return f"given back {_GIVE_UP_AFTER} times and left in the inbox: {', '.join(left)}; the log says why"

    def _refused(self) -> str | None:
        """What it leaves there, since it may not read it."""
        keys = self._last.refused_keys if self._last else []
        if not keys:
            return None
        more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
        return f"{keys[0]}{more} could not be read and stay in the inbox: access was denied"

    def _unclaimed(self) -> str | None:
        """What it leaves there, since a store failed."""
        if self._last is None or not self._last.unclaimed:
            return None
        jobs = plural(self._last.unclaimed, "job")
        return f"{jobs} left in the inbox that could not be claimed: {self._last.why_not}"

    def _finished(self, report: TickReport) -> bool:
        with self._lock:
            if self._busy or report.claims:
                return False
        if self._rests_s(fewer_than=_GIVE_UP_AFTER):
            return False
        if report.problem is not None or report.paused:
            return True
        if report.young or report.leased:
            return False
        return not report.unclaimed or self._fruitless >= _GIVE_UP_AFTER

    def _pause_s(self, report: TickReport) -> float:
        with self._lock:
            full = len(self._busy) >= self._concurrency
        # A full runner is woken by whichever job ends; it need not look before.
        if full:
            return self._period_s
        again_s = [self._rest_s(self._fruitless)] if self._fruitless else []
        return min(report.next_wake_s, self._period_s, *again_s, *self._rests_s())


def _sweep_quietly(machine: Machine) -> None:
    """A sweep is housekeeping: what keeps it from working today is logged, and tried again."""
    try:
        sweep(machine)
    except StoreError as error:
        log.warning("sweep.not_finished", why=str(error))
