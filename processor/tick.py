"""A tick: one pass over the inbox that claims what is due. It never waits and never runs a job."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Literal

import structlog

from processor.attempt import Claim
from processor.discard import discard
from processor.errors import DropbatchError, ForeignAuthority, StoreError
from processor.events import JobClaimed
from processor.folders import Look, look_at_folders
from processor.inbox import Drop, Inbox, scan
from processor.leases.lease import Lease
from processor.machine import Machine
from processor.peek import Peeked, peek
from processor.settle import remove

log = structlog.get_logger(__name__)

_LOOKAHEAD = 4
"""Drops peeked at per job that could be claimed: among them priority decides, then age."""
_MAX_FAILURES = 8
"""Drops that may be out of reach in one pass; at more it is the store that is."""
_STALE_CANCEL = timedelta(hours=1)
_ASKING_S = 0.25
"""Between two passes, for each job that was found to be another runner's."""


@dataclass(slots=True)
class TickReport:
    """What one pass found and took."""

    claims: list[Claim] = field(default_factory=list)
    pending: int = 0
    """Job files that were due, claimed or not."""
    young: int = 0
    """Of those looked at: perhaps still being written."""
    later: int = 0
    """Of those looked at: not due yet, or for another place."""
    leased: int = 0
    """Of those looked at: another runner's, as far as could be told."""
    folders: dict[str, Look] = field(default_factory=dict)
    """Dataset folders with something in them, and how far each is."""
    failures: int = 0
    """Of those looked at: could not be read, or their leases not be asked for."""
    paused: bool = False
    inbox: Inbox | None = None
    looked: int = 0
    """How many of the inbox's due drops were looked at."""
    ready: list[Peeked] = field(default_factory=list)
    """Those found ready and not claimed yet."""
    problem: str | None = None
    """Why nothing could be done, for people."""
    refused: Literal["authority"] | None = None
    over_budget: str | None = None
    """Why nothing was claimed although jobs are due: the day's budget is used up."""

    @property
    def has_more(self) -> bool:
        """Whether `claim_more` may find anything."""
        due = self.inbox.due if self.inbox and not self.paused else []
        return bool(self.ready) or (self.looked < len(due) and not self.out_of_reach)

    @property
    def out_of_reach(self) -> bool:
        """Whether it is no use to ask for more in this pass."""
        return self.failures > _MAX_FAILURES

    @property
    def next_wake_s(self) -> float:
        """How long until another pass is worth while, without being woken."""
        if self.problem:
            return 30.0
        if self.young:
            return 2.0
        # Asking about another's job costs as much whether 3 or 300 are asked about: the more, the rarer.
        return min(60.0, max(2.0, self.leased * _ASKING_S)) if self.leased else 60.0


def tick(
    machine: Machine, *, capacity: int, busy: Collection[str] = (), night_open: bool | None = None
) -> TickReport:
    """Scan the inbox, claim up to `capacity` jobs, tidy what nobody will run.

    Args:
        busy: ids of jobs that this runner works on already; not asked about again.
        night_open: whether held drops are due; None asks the policy's nightly window.
    Returns:
        The report; what one drop does wrong never keeps others from being claimed.
    Cost: 1 request per 1,000 objects in the inbox; 1 and 1 of the lease store for the authority,
        and 1 more of the latter where anything is claimed; 1 and 1 of it per job claimed.
    """
    report = TickReport()
    try:
        sent_at = machine.clock.monotonic()
        night = (machine.policy.night or False) if night_open is None else night_open
        inbox = scan(machine.stores.main, keep=machine.policy.scan_keep, night=night)
        machine.clock.sync(inbox.date, sent_at=sent_at)
        machine.authority.check()
    except ForeignAuthority as error:
        report.problem, report.refused = str(error), "authority"
        return report
    except StoreError as error:
        report.problem = str(error)
        return report
    report.inbox, report.pending, report.paused = inbox, inbox.pending, inbox.paused
    _discard_superseded(machine, inbox, busy)
    if not inbox.paused and not machine.stop.is_set():
        # What it dropped is in the next listing.
        report.young += len(machine.recurring.emit_due(machine, inbox, zone=machine.policy.zone))
    if not inbox.paused and capacity > 0 and not machine.stop.is_set() and not _out_of_money(machine, report):
        _claim(machine, inbox, report, capacity, busy)
        _vouch(machine, report.claims)
        report.folders = look_at_folders(machine, inbox)
        # Frozen just now, or as soon as the next listing agrees: worth another look at once.
        report.young += sum(look in ("soon", "frozen") for look in report.folders.values())
    _tidy(machine, inbox, busy)
    return report


def claim_more(
    machine: Machine, report: TickReport, *, capacity: int, busy: Collection[str] = ()
) -> list[Claim]:
    """Claim further jobs of those that a tick found, without looking at the inbox again.

    A re-upload since that tick is as one that arrives while the job runs, and a pause or a
    cancel request is noticed later by as much: only for reports that are seconds old.

    Returns:
        The new claims. A problem is noted in the report, as `tick` does.
    Cost: 1 request and 1 of the lease store per job claimed; for the authority 1 of each where
        its last check is older than a commit would take, and 1 of the latter if anything is claimed.
    """
    before = len(report.claims)
    if report.inbox is None or report.problem or machine.stop.is_set():
        return []
    try:
        machine.authority.check(max_age_s=machine.policy.authority_max_age_s)
    except ForeignAuthority as error:
        report.problem, report.refused = str(error), "authority"
        return []
    except StoreError as error:
        report.problem = str(error)
        return []
    _claim(machine, report.inbox, report, capacity, busy)
    claims = report.claims[before:]
    _vouch(machine, claims)
    return claims


def _out_of_money(machine: Machine, report: TickReport) -> bool:
    """Whether the day's budget is used up; then drops wait in the inbox for tomorrow."""
    budget = machine.budget
    if not machine.policy.priced or not report.pending or not budget.used_up:
        return False
    report.over_budget = f"the day has cost ${budget.spent_usd():.2f} of ${budget.cap_usd:.2f}"
    log.warning("tick.over_budget", why=report.over_budget)
    return True


def _claim(machine: Machine, inbox: Inbox, report: TickReport, capacity: int, busy: Collection[str]) -> None:
    """Claim what is free, however much of the inbox others have in hand."""
    ready, full = report.ready, len(report.claims) + capacity
    while len(report.claims) < full and not machine.stop.is_set() and not report.out_of_reach:
        if not ready:
            _look_further(machine, inbox, report, capacity * _LOOKAHEAD, busy)
        if not ready:
            return
        peeked = ready.pop(0)
        if peeked.drop.job_id in busy:
            continue
        lease = _acquire(machine, peeked.drop, report)
        if lease is None:
            continue
        machine.observe(JobClaimed(lease.job_id, peeked.drop.key))
        report.claims.append(
            Claim(peeked.drop, lease, inbox.cancels.get(lease.job_id), _still_true(peeked, lease))
        )


def _look_further(
    machine: Machine, inbox: Inbox, report: TickReport, wanted: int, busy: Collection[str]
) -> None:
    """Look at the next drops, oldest first, until so many are ready or none is left."""
    while report.looked < len(inbox.due) and len(report.ready) < wanted and not report.out_of_reach:
        drop = inbox.due[report.looked]
        report.looked += 1
        if drop.key in inbox.held:
            report.leased += 1
        elif not (drop.version and drop.job_id in busy):
            _look(machine, drop, report, report.ready)
    report.ready.sort(key=lambda peeked: -peeked.priority)  # stable: equal ones stay in order of age


def _vouch(machine: Machine, claims: list[Claim]) -> None:
    """Ask who rules now that leases are held, once for all of them: their commits need to know."""
    if claims:
        with suppress(StoreError, ForeignAuthority):  # then they ask themselves
            machine.authority.check(
                max_age_s=machine.policy.authority_max_age_s,
                since=max(claim.lease.held_since for claim in claims),
            )


def _still_true(peeked: Peeked, lease: Lease) -> Peeked | None:
    """What was read before the claim; None if somebody else had the job, maybe since then."""
    return peeked if lease.epoch == 1 else None


def _look(machine: Machine, drop: Drop, report: TickReport, ready: list[Peeked]) -> None:
    peeked = _peek(machine, drop)
    if peeked is None:
        report.failures += 1
        return
    match peeked.state:
        case "ready":
            ready.append(peeked)
        case "superseded":
            _discard(machine, drop)
        case "young":
            report.young += 1
        case "later" | "elsewhere":
            report.later += 1
        case "withdrawn":
            pass  # nothing is inferred from one answer; the next listing tells


def _peek(machine: Machine, drop: Drop) -> Peeked | None:
    now = machine.clock.now()
    try:
        return peek(machine.stores.main, drop, policy=machine.policy, place=machine.launcher.place, now=now)
    except StoreError as error:
        log.warning("drop.not_read", key=drop.key, why=str(error))
        return None


def _acquire(machine: Machine, drop: Drop, report: TickReport) -> Lease | None:
    lease = None
    try:
        lease = machine.leases.acquire(drop.job_id, nonce=machine.nonce())
    except StoreError as error:
        log.warning("lease.not_acquired", key=drop.key, why=str(error))
        report.failures += 1
    report.leased += lease is None
    return lease


def _discard_superseded(machine: Machine, inbox: Inbox, busy: Collection[str]) -> None:
    """Remove versions that newer ones replaced, as far as nobody runs them."""
    for drop in inbox.superseded:
        if drop.job_id in busy or not _discard(machine, drop):
            inbox.held.add(drop.key)


def _tidy(machine: Machine, inbox: Inbox, busy: Collection[str]) -> None:
    """Remove what would otherwise lie about: delete markers, stale cancel requests."""
    for item in inbox.litter:
        if item.key not in inbox.held:
            _quietly(machine, item.key, item.version)
    for job_id, request in inbox.cancels.items():
        stale = inbox.date - request.modified > _STALE_CANCEL
        if stale and job_id not in busy and not inbox.may_be_pending(job_id):
            _quietly(machine, request.key, request.version)


def _discard(machine: Machine, drop: Drop) -> bool:
    """Remove a version that a newer one replaced, unless somebody is running it.

    Under its lease, so that nobody can begin it at the same time.

    Returns:
        Whether it is gone.
    Cost: 1 request and 3 of the lease store.
    """
    if not drop.version:
        return True  # without versions nothing of it is left
    try:
        if drop.emitted_id is not None and not drop.hidden:
            remove(machine, drop)  # the same job stands above it, under the same id
            return True
        lease = machine.leases.acquire(drop.job_id, nonce=machine.nonce())
        if lease is None:
            return False
        discard(machine, lease, drop)
        machine.leases.release(lease)
    except DropbatchError as error:
        log.warning("drop.not_discarded", key=drop.key, why=str(error))
        return False
    return True


def _quietly(machine: Machine, key: str, version: str) -> None:
    try:
        version = version or machine.stores.main.stat(key).version
        machine.stores.main.delete(key, version=version)
    except StoreError as error:
        log.debug("inbox.not_tidied", key=key, why=str(error))
