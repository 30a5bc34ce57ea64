"""What a dispatcher does: take claims over, run their jobs side by side, wind down in time."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, Final

import structlog

from infra.handover import from_json
from processor.dispatch import process, take_over
from processor.errors import ErrorKind, StoreError
from processor.log import unit_of_work
from processor.machine import Machine
from processor.nightly import Mornings
from processor.records import Manifest

log = structlog.get_logger(__name__)

WIND_DOWN_S: Final = 10 * 60
"""This long before Modal's limit a dispatcher gives its jobs back, for a next one to go on with."""
EXIT_GRACE_S: Final = 25.0
"""Modal kills a preempted container 30 s after its SIGINT."""


def run_claims(
    machine: Machine, values: Sequence[dict[str, Any]], *, limit_s: float
) -> dict[str, str | None]:
    """Take every claim over and run its job to the end.

    A duplicate of this call, or the restart after a preemption, gets only the claims that
    nobody holds: what its predecessor gave back it goes on with, what it still held is found
    again by a tick once the lease has run out.

    Args:
        limit_s: when to wind down; the jobs are given back then.
    Returns:
        Outcome by job id; None for a job that somebody else has, or that was given back.
    """
    with unit_of_work("dispatch", jobs=len(values)) as line:
        claims = [taken for value in values if (taken := take_over(machine, from_json(value)))]
        line.add(taken=len(claims))
        outcomes: dict[str, str | None] = {from_json(value).lease.job_id: None for value in values}
        timer = threading.Timer(limit_s, machine.stop.set, [ErrorKind.PREEMPTED])
        timer.daemon = True
        timer.start()
        try:
            outcomes |= _run_all(machine, claims)
        finally:
            timer.cancel()
        line.add(outcomes=sorted(outcome or "given back" for outcome in outcomes.values()))
        return outcomes


def _run_all(machine: Machine, claims: Sequence[Any]) -> dict[str, str | None]:
    if not claims:
        return {}
    with ThreadPoolExecutor(len(claims), thread_name_prefix="dispatch") as pool:
        futures = {claim.lease.job_id: pool.submit(process, machine, claim) for claim in claims}
        try:
            wait(futures.values())
        except BaseException:
            # A preemption (SIGINT) or a cancelled call: leases go back, so that others go on at once.
            machine.stop.set(ErrorKind.PREEMPTED)
            wait(futures.values(), timeout=EXIT_GRACE_S)
            raise
    ended = {job_id: future.result() for job_id, future in futures.items()}
    _retell(machine, [manifest for manifest in ended.values() if manifest])
    return {job_id: manifest.outcome.value if manifest else None for job_id, manifest in ended.items()}


def _retell(machine: Machine, ended: Sequence[Manifest]) -> None:
    """Jobs that outlasted their night: its report was made without them."""
    mornings = Mornings(machine)
    mornings.note(ended)
    try:
        mornings.retell()
    except StoreError as error:
        log.warning("night.not_reported", why=str(error))
