"""Claim what is due: look at drops, oldest first, and take the leases of those that are ready."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from functools import partial

import structlog

from processor.attempt import Claim
from processor.discard import try_discard
from processor.errors import AccessDenied, ForeignAuthority, StoreError
from processor.events import JobClaimed
from processor.inbox import NEWEST, Drop, Inbox
from processor.leases.lease import Lease
from processor.machine import Machine
from processor.parallel import each_of
from processor.peek import Peeked, peek
from processor.tick_report import Glance, TickReport

log = structlog.get_logger(__name__)

_LOOKAHEAD = 4
"""Drops peeked at per job that could be claimed: among them priority decides, then age."""
_AT_ONCE = 32
"""Drops peeked at side by side: a cloud's tick looks at a hundred, each a round trip away."""
_PASSED_OVER = 1000
"""Drops of a kind of which enough is in hand that are looked past, for what is dropped behind them."""


def claim(
    machine: Machine,
    report: TickReport,
    *,
    capacity: int,
    busy: Collection[str],
    at_most: Mapping[str, int] | None = None,
) -> list[Claim]:
    """Claim up to `capacity` jobs that are free, however much of the inbox others have in hand.

    Higher priority goes first, then age: among the next few drops, and what was dropped last.

    Args:
        at_most: of a kind, how many jobs may be in anybody's hands; those beyond stay in the inbox.
    Returns:
        The new claims, which the report has, too.
    Cost: 1 request and 1 of the lease store per job claimed, and 1 of the latter for all of them;
        1 and 3 for each that another runner has.
    """
    if report.inbox is None:
        return []
    before, wanted = len(report.claims), capacity * _LOOKAHEAD
    places = _Places(at_most or {})
    if report.looked == 0:
        _put_urgent_ones_first(machine, report, report.inbox, wanted, busy)
    while len(report.claims) < before + capacity and not machine.stop.is_set() and not report.out_of_reach:
        if places.passed_over >= _PASSED_OVER:
            break
        if not report.ready:
            _look_further(machine, report, report.inbox, wanted, busy)
        if not report.ready:
            break
        peeked = report.ready.pop(0)
        if not places.take(peeked):
            report.later += 1
        elif peeked.drop.job_id not in busy:
            _take(machine, report, report.inbox, peeked)
    claims = report.claims[before:]
    _vouch(machine, claims)
    return claims


def claim_more(
    machine: Machine, report: TickReport, *, capacity: int, busy: Collection[str] = ()
) -> list[Claim]:
    """Claim further jobs of those that a tick found, without looking at the inbox again.

    A re-upload since that tick is as one that arrives while the job runs, and a pause or a
    cancel request is noticed later by as much: only for reports that are seconds old.

    Returns:
        The new claims. A problem is noted in the report, as `tick` does.
    Cost: as `claim`, and for the authority 1 request of each where its last check is older than a
        commit would take.
    """
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
    return claim(machine, report, capacity=capacity, busy=busy)


class _Places:
    """Of some kinds, how many jobs may be in anybody's hands; of the others as many as there are."""

    def __init__(self, at_most: Mapping[str, int]) -> None:
        self._left = dict(at_most)
        self.passed_over = 0

    def take(self, peeked: Peeked) -> bool:
        """Whether there is one for this drop, which another may have in hand: it counts as well."""
        kind = peeked.job.kind if peeked.job else None
        if kind not in self._left:
            return True
        if self._left[kind] <= 0:
            self.passed_over += 1
            return False
        self._left[kind] -= 1
        return True


def _take(machine: Machine, report: TickReport, inbox: Inbox, peeked: Peeked) -> None:
    lease = _acquire(machine, peeked.drop, report)
    if lease is None:
        return
    machine.observe(JobClaimed(lease.job_id, peeked.drop.key))
    report.claims.append(
        Claim(peeked.drop, lease, inbox.cancels.get(lease.job_id), _still_true(peeked, lease))
    )


def _put_urgent_ones_first(
    machine: Machine, report: TickReport, inbox: Inbox, wanted: int, busy: Collection[str]
) -> None:
    """Look behind a long queue: who drops something urgent has just done so.

    Cost: 1 request for each of the last few drops, which is not made again when their turn comes.
    """
    behind = _unknown([*inbox.due[wanted:], *inbox.newest][-NEWEST:], inbox, busy)
    report.glanced = dict(_peek_all(machine, behind))
    urgent = [
        drop
        for drop, peeked in report.glanced.items()
        if isinstance(peeked, Peeked) and peeked.state == "ready" and peeked.priority > 0
    ]
    if urgent:
        first = set(urgent)
        inbox.due = [*urgent, *(drop for drop in inbox.due if drop not in first)]


def _look_further(
    machine: Machine, report: TickReport, inbox: Inbox, wanted: int, busy: Collection[str]
) -> None:
    """Look at the next drops, oldest first, until so many are ready or none is left."""
    while report.looked < len(inbox.due) and len(report.ready) < wanted and not report.out_of_reach:
        end = report.looked + min(wanted - len(report.ready), _AT_ONCE)
        drops = inbox.due[report.looked : end]
        report.looked += len(drops)
        _count_held(drops, inbox, report)
        unknown = _unknown(drops, inbox, busy)
        seen = report.glanced | dict(
            _peek_all(machine, [drop for drop in unknown if drop not in report.glanced])
        )
        for drop in unknown:
            _note(machine, drop, seen[drop], report)
    report.ready.sort(key=lambda peeked: -peeked.priority)  # stable: equal ones stay in order of age


def _count_held(drops: list[Drop], inbox: Inbox, report: TickReport) -> None:
    for drop in drops:
        if drop.key in inbox.stuck:
            report.stuck += 1
            report.why_not = inbox.stuck[drop.key]
        elif drop.key in inbox.held:
            report.leased += 1


def _unknown(drops: list[Drop], inbox: Inbox, busy: Collection[str]) -> list[Drop]:
    """Those that neither wait for an older version of theirs nor are worked on here."""
    return [
        drop for drop in drops if drop.key not in inbox.held and not (drop.version and drop.job_id in busy)
    ]


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


def _peek_all(machine: Machine, drops: list[Drop]) -> Iterable[tuple[Drop, Glance]]:
    return each_of(partial(_peek, machine), drops)


def _note(machine: Machine, drop: Drop, peeked: Glance, report: TickReport) -> None:
    if isinstance(peeked, AccessDenied):
        report.refused_keys.append(drop.key)
        return
    if isinstance(peeked, StoreError):
        _fail(report, peeked)
        return
    match peeked.state:
        case "ready":
            report.ready.append(peeked)
        case "superseded":
            with suppress(StoreError):  # the next listing has it still
                try_discard(machine, drop)
        case "young":
            report.young += 1
        case "later" | "elsewhere":
            report.later += 1
        case "withdrawn":
            pass  # nothing is inferred from one answer; the next listing tells


def _peek(machine: Machine, drop: Drop) -> Glance:
    now = machine.clock.now()
    try:
        return peek(machine.stores.main, drop, policy=machine.policy, place=machine.launcher.place, now=now)
    except AccessDenied as error:  # of this file, it may be; the others are looked at all the same
        log.warning("drop.refused", key=drop.key, why=str(error))
        return error
    except StoreError as error:
        log.warning("drop.not_read", key=drop.key, why=str(error))
        return error


def _acquire(machine: Machine, drop: Drop, report: TickReport) -> Lease | None:
    try:
        lease = machine.leases.acquire(drop.job_id, nonce=machine.nonce())
    except StoreError as error:
        log.warning("lease.not_acquired", key=drop.key, why=str(error))
        _fail(report, error)
        return None
    report.leased += lease is None
    return lease


def _fail(report: TickReport, error: StoreError) -> None:
    report.failures += 1
    report.why_not = str(error)
