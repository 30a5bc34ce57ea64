"""A tick: one pass over the inbox that claims what is due. It never waits and never runs a job."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import timedelta
from functools import partial

import structlog

from processor.claiming import claim
from processor.discard import try_discard
from processor.errors import ForeignAuthority, StoreError
from processor.folders import look_at_folders
from processor.inbox import Drop, Inbox, scan
from processor.machine import Machine
from processor.tick_report import TickReport

log = structlog.get_logger(__name__)

_STALE_CANCEL = timedelta(hours=1)
_REMOVING_S = 10.0


def tick(
    machine: Machine,
    *,
    capacity: int,
    busy: Collection[str] = (),
    night_open: bool | None = None,
    at_most: Mapping[str, int] | None = None,
) -> TickReport:
    """Scan the inbox, claim up to `capacity` jobs, tidy what nobody will run.

    Args:
        busy: ids of jobs that this runner works on already; not asked about again.
        night_open: whether held drops are due; None asks the policy's nightly window.
        at_most: of a kind, how many jobs may be in anybody's hands.
    Returns:
        The report; what one drop does wrong never keeps others from being claimed.
    Cost: 1 request per 1,000 objects in the inbox; 1 and 1 of the lease store for the authority,
        and 1 more of the latter where anything is claimed; 1 and 1 of it per job claimed.
    """
    report = TickReport()
    try:
        set_clock = partial(machine.clock.sync, sent_at=machine.clock.monotonic())
        night = (machine.policy.night or False) if night_open is None else night_open
        inbox = scan(machine.stores.main, keep=machine.policy.scan_keep, night=night, dated=set_clock)
        machine.authority.check()
    except ForeignAuthority as error:
        report.problem, report.refused = str(error), "authority"
        return report
    except StoreError as error:
        report.problem = str(error)
        return report
    report.inbox, report.pending, report.paused = inbox, inbox.pending, inbox.paused
    _discard_superseded(machine, report, inbox, busy)
    if not inbox.paused and not machine.stop.is_set():
        # What it dropped is in the next listing.
        report.young += len(machine.recurring.emit_due(machine, inbox, zone=machine.policy.zone))
    if not inbox.paused and capacity > 0 and not machine.stop.is_set() and not _out_of_money(machine, report):
        claim(machine, report, capacity=capacity, busy=busy, at_most=at_most)
        report.folders = look_at_folders(machine, inbox)
        # Frozen just now, or as soon as the next listing agrees: worth another look at once.
        report.young += sum(look in ("soon", "frozen") for look in report.folders.values())
    _tidy(machine, report, inbox, busy)
    return report


def _out_of_money(machine: Machine, report: TickReport) -> bool:
    """Whether the day's budget is used up; then drops wait in the inbox for tomorrow."""
    if not machine.policy.priced or not report.pending:
        return False
    report.over_budget = machine.budget.why_used_up()
    if report.over_budget is None:
        return False
    log.warning("tick.over_budget", why=report.over_budget)
    return True


def _discard_superseded(machine: Machine, report: TickReport, inbox: Inbox, busy: Collection[str]) -> None:
    """Remove versions that newer ones replaced, as far as nobody runs them; the rest is held."""
    share = _Share(machine, report)
    report.unfinished = inbox.more_to_remove
    for drop in inbox.superseded:
        # Its id, a hash, is the last that is asked for: there may be thousands.
        if share.is_used_up or drop.job_id in busy or not _is_discarded(machine, inbox, drop):
            inbox.held.add(drop.key)


def _is_discarded(machine: Machine, inbox: Inbox, drop: Drop) -> bool:
    try:
        return try_discard(machine, drop)
    except StoreError as error:
        inbox.stuck[drop.key] = str(error)
        return False


def _tidy(machine: Machine, report: TickReport, inbox: Inbox, busy: Collection[str]) -> None:
    """Remove what would otherwise lie about: delete markers, stale cancel requests."""
    share = _Share(machine, report)
    for item in inbox.litter:
        if item.key not in inbox.held and not share.is_used_up:
            _quietly(machine, item.key, item.version)
    for job_id, request in inbox.cancels.items():
        stale = inbox.date - request.modified > _STALE_CANCEL
        if stale and job_id not in busy and not inbox.may_be_pending(job_id) and not share.is_used_up:
            _quietly(machine, request.key, request.version)


class _Share:
    """The time that one pass spends on removing: who deletes thousands of drops by name leaves two
    versions of each, and what is due must not wait until they are gone."""

    def __init__(self, machine: Machine, report: TickReport) -> None:
        self._machine = machine
        self._report = report
        self._until = machine.clock.monotonic() + _REMOVING_S

    @property
    def is_used_up(self) -> bool:
        """Whether the rest is left to the next pass, which then comes soon."""
        if not self._machine.stop.is_set() and self._machine.clock.monotonic() < self._until:
            return False
        self._report.unfinished = True
        return True


def _quietly(machine: Machine, key: str, version: str) -> None:
    try:
        version = version or machine.stores.main.stat(key).version
        machine.stores.main.delete(key, version=version)
    except StoreError as error:
        log.debug("inbox.not_tidied", key=key, why=str(error))
