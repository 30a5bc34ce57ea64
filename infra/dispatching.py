"""What a dispatcher does: take claims over, run their jobs side by side, wind down in time."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Final

import structlog

from infra.handover import from_json
from processor.attempt import Claim
from processor.dispatch import process, take_over
from processor.errors import ErrorKind, StoreError
from processor.handler import Stop
from processor.log import unit_of_work
from processor.machine import Machine
from processor.nightly import Mornings
from processor.records import Manifest

log = structlog.get_logger(__name__)

WIND_DOWN_S: Final = 10 * 60
"""This long before Modal's limit a call gives its jobs back, for a next one to go on with."""
EXIT_GRACE_S: Final = 25.0
"""Modal kills a preempted container 30 s after its SIGINT."""


class Dispatcher:
    """A container's share of the jobs in work. Thread-safe: each of them is a call of its own.

    Args:
        machine: what all calls share; each has a stop of its own.
        limit_s: when a call winds down; its jobs are given back then.
    """

    def __init__(self, machine: Machine, *, limit_s: float) -> None:
        self._machine = machine
        self._limit_s = limit_s
        self._changed = threading.Condition()
        self._running: set[Stop] = set()
        self._leaving = False

    def run(self, values: Sequence[dict[str, Any]]) -> dict[str, str | None]:
        """See `run_claims`. Does not return once the container is being taken away: an input that was
        never answered is what Modal starts again elsewhere, with the same claims."""
        # On a thread: a container that takes one call at a time runs it on its main thread, where a
        # preemption's SIGINT would cut it off before it has given anything back.
        with ThreadPoolExecutor(1, thread_name_prefix="call") as pool:
            future = pool.submit(self._run, values)
            try:
                outcomes = future.result()
            except KeyboardInterrupt:
                self._wind_down()
                raise
        if self._leaving:
            threading.Event().wait()  # on a daemon thread, which ends with the process
        return outcomes

    def close(self) -> None:
        """Give back the leases of whatever runs, so that others go on at once."""
        self._wind_down()
        self._machine.close()

    def _run(self, values: Sequence[dict[str, Any]]) -> dict[str, str | None]:
        with self._stoppable() as stop:
            return run_claims(self._machine.with_stop(stop), values, limit_s=self._limit_s)

    def _wind_down(self) -> None:
        with self._changed:
            self._leaving = True
            for stop in self._running:
                stop.set(ErrorKind.PREEMPTED)
            if not self._changed.wait_for(lambda: not self._running, EXIT_GRACE_S):
                log.warning("dispatch.left_jobs", calls=len(self._running))

    @contextmanager
    def _stoppable(self) -> Iterator[Stop]:
        stop = Stop()
        with self._changed:
            self._running.add(stop)
            if self._leaving:
                stop.set(ErrorKind.PREEMPTED)
        try:
            yield stop
        finally:
            with self._changed:
                self._running.discard(stop)
                self._changed.notify_all()


def run_claims(
    machine: Machine, values: Sequence[dict[str, Any]], *, limit_s: float
) -> dict[str, str | None]:
    """Take every claim over and run its job to the end, or until the machine's stop is set.

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


def _run_all(machine: Machine, claims: Sequence[Claim]) -> dict[str, str | None]:
    if not claims:
        return {}
    with ThreadPoolExecutor(len(claims), thread_name_prefix="dispatch") as pool:
        futures = {claim.lease.job_id: pool.submit(process, machine, claim) for claim in claims}
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
