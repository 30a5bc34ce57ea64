"""What the cron does: one tick, and its claims handed to dispatchers."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

import structlog

from infra.handover import to_json
from infra.settings import Deployment, ModalSettings
from processor.attempt import Claim
from processor.errors import StoreError
from processor.log import unit_of_work
from processor.machine import Machine
from processor.nightly import Mornings, announcing
from processor.sweep import sweep
from processor.tick import tick

log = structlog.get_logger(__name__)

Spawn = Callable[[list[dict[str, Any]]], object]
"""Hands claims to a dispatcher."""


class Load(NamedTuple):
    """What the dispatchers have to do, as far as Modal says."""

    running: int = 0
    waiting: int = 0
    """Calls that no container has taken yet."""


def tick_once(
    machine: Machine,
    deployed: Deployment,
    *,
    spawn: Spawn,
    load: Callable[[], Load],
) -> dict[str, Any]:
    """Scan, claim, hand over. Seconds long; two at a time are harmless.

    No more is claimed than dispatchers have room for, and nothing while a claim still waits for
    one: a job in the inbox keeps its place in the order, one in a queue would only let its lease
    run out. Each job is a call of its own, so that none waits for another's end.

    Returns:
        A summary, for the log and for whoever called by hand.
    """
    with unit_of_work("tick") as line:
        now = load()
        at_most = {"train": _most_trainings(deployed.modal)}
        report = tick(machine, capacity=_capacity(deployed.modal, now), at_most=at_most)
        started = [claim for claim in report.claims if _hand_over(machine, claim, spawn)]
        if len(started) < len(report.claims):
            report.problem = report.problem or "Modal started no dispatcher; the claims were given back"
        summary: dict[str, Any] = {
            "claimed": len(started),
            "pending": report.pending,
            "leased": report.leased,
            "young": report.young,
            "running": now.running,
            "waiting": now.waiting,
            "paused": report.paused,
            "over_budget": report.over_budget,
            "tells": [notifier.name for notifier in machine.notices.notifiers] if machine.notices else [],
            "problem": report.problem,
        }
        line.add(**summary)
        if report.problem:
            log.error("tick.problem", why=report.problem, refused=report.refused)
        return summary


def _capacity(options: ModalSettings, load: Load) -> int:
    if load.waiting:
        return 0
    return max(0, min(options.claims_per_tick, _slots(options) - load.running))


def _slots(options: ModalSettings) -> int:
    return options.dispatch_containers * options.jobs_per_dispatch


def _most_trainings(options: ModalSettings) -> int:
    """Three quarters of what may be in work: a training takes hours, and as long again while it waits for
    its GPU, and renders must not wait behind a row of those."""
    return max(1, _slots(options) * 3 // 4)


def _hand_over(machine: Machine, claim: Claim, spawn: Spawn) -> bool:
    """Give a claim to a dispatcher; back to the inbox if there is none to be had.

    An unclear reply may have started one. It finds the lease released, and is one taker among others.
    """
    try:
        spawn([to_json(claim)])
    except Exception as error:  # noqa: BLE001 - whatever Modal says, the lease must not wait it out
        why = f"{type(error).__name__}: {error}"
        log.error("dispatch.not_started", job_id=claim.lease.job_id, why=why)  # noqa: TRY400
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
