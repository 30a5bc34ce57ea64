"""What the cron does: one tick, and its claims handed to dispatchers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import structlog

from infra.handover import to_json
from infra.settings import Deployment
from processor.attempt import Claim
from processor.errors import StoreError
from processor.log import unit_of_work
from processor.machine import Machine
from processor.nightly import Mornings, announcing
from processor.sweep import sweep
from processor.tick import tick

log = structlog.get_logger(__name__)

Spawn = Callable[[list[dict[str, Any]]], object]
"""Starts a dispatcher for a group of claims."""


def tick_once(
    machine: Machine,
    deployed: Deployment,
    *,
    spawn: Spawn,
    backlog: Callable[[], int],
) -> dict[str, Any]:
    """Scan, claim, hand over. Seconds long; two at a time are harmless.

    While groups of claims still wait for a dispatcher nothing more is claimed: a job in the
    inbox keeps its place in the order, one in a queue would only let its lease run out.

    Returns:
        A summary, for the log and for whoever called by hand.
    """
    with unit_of_work("tick") as line:
        waiting = backlog()
        capacity = 0 if waiting else deployed.modal.claims_per_tick
        report = tick(machine, capacity=capacity)
        groups = list(grouped(report.claims, deployed.modal.jobs_per_dispatch))
        started = [group for group in groups if _hand_over(machine, group, spawn)]
        if len(started) < len(groups):
            report.problem = report.problem or "Modal started no dispatcher; the claims were given back"
        summary: dict[str, Any] = {
            "claimed": sum(map(len, started)),
            "dispatches": len(started),
            "pending": report.pending,
            "leased": report.leased,
            "young": report.young,
            "waiting": waiting,
            "paused": report.paused,
            "over_budget": report.over_budget,
            "tells": [notifier.name for notifier in machine.notices.notifiers] if machine.notices else [],
            "problem": report.problem,
        }
        line.add(**summary)
        if report.problem:
            log.error("tick.problem", why=report.problem, refused=report.refused)
        return summary


def _hand_over(machine: Machine, group: Sequence[Claim], spawn: Spawn) -> bool:
    """Give a group of claims to a dispatcher; back to the inbox if there is none to be had.

    An unclear reply may have started one. It finds the leases released, and is one taker among others.
    """
    try:
        spawn([to_json(claim) for claim in group])
    except Exception as error:  # noqa: BLE001 - whatever Modal says, the leases must not wait it out
        log.error("dispatch.not_started", claims=len(group), why=f"{type(error).__name__}: {error}")  # noqa: TRY400
        for claim in group:
            with suppress(StoreError):
                machine.leases.release(claim.lease)
        return False
    return True


def morning_once(machine: Machine) -> dict[str, Any]:
    """Report the night that has just closed and tell of it, and remove what losing attempts left.

    What can't be swept today is swept tomorrow.
    """
    try:
        machine.set_clock()
        Mornings(machine, announce=announcing(machine)).look()
        report = sweep(machine)
    except StoreError as error:
        log.warning("sweep.not_finished", why=str(error))
        return {"swept": None}
    return {"swept": report.jobs, "removed": report.removed}


def grouped(claims: Sequence[Claim], size: int) -> Iterator[Sequence[Claim]]:
    """The claims in groups of at most `size`, spread evenly, in their order."""
    count = -(-len(claims) // size) if claims else 0
    for number in range(count):
        yield claims[number::count]
