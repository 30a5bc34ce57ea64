"""How a dispatcher tells workers to stop: a note in a Dict, looked at while a task runs.

A worker also stops once a newer epoch of the job's lease stands: its dispatcher is gone or was
taken over, and nobody will use what it makes. Both notes are looked at from one thread per
container, so the cost does not grow with the tasks in it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import modal
import structlog

from infra.transport import Order
from infra.unanswered import NO_ANSWER
from processor.errors import ErrorKind, StoreError
from processor.handler import Stop, Work
from processor.leases.protocol import LeaseStore

log = structlog.get_logger(__name__)

POLL_S: Final = 4.0


class StopNotes:
    """Stop requests in the app's Dict of notes, by run. They expire with the Dict's entries."""

    def __init__(self, notes: modal.Dict) -> None:
        self._notes = notes

    def request(self, run_id: str, reason: ErrorKind) -> None:
        """Ask a run's workers to end. One that can't be reached ends with its dispatcher's lease."""
        try:
            self._notes.put(f"stop/{run_id}", reason.value)
        except NO_ANSWER as error:
            log.warning("stop.not_requested", run=run_id, why=str(error))

    def reason(self, run_id: str) -> ErrorKind | None:
        """Why a run was asked to stop; None if it wasn't, or if nothing answers."""
        try:
            found = self._notes.get(f"stop/{run_id}")
        except NO_ANSWER as error:
            log.warning("stop.not_read", run=run_id, why=str(error))
            return None
        return ErrorKind(found) if found else None


class StopWatch:
    """Sets the stops of a container's running tasks when their run was stopped."""

    def __init__(self, notes: StopNotes, leases: LeaseStore, *, poll_s: float = POLL_S) -> None:
        self._notes = notes
        self._leases = leases
        self._poll_s = poll_s
        self._changed = threading.Condition()
        self._running: dict[int, tuple[Order, list[Stop]]] = {}
        self._closed = False
        self._thread: threading.Thread | None = None

    @contextmanager
    def watching(self, order: Order) -> Iterator[list[Stop]]:
        """A stop for each task of an order, already set if its run is stopped by now."""
        stops = [Stop() for _ in order.works]
        self._look(order, stops)
        with self._changed:
            self._running[id(stops)] = (order, stops)
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="stops", daemon=True)
                self._thread.start()
            self._changed.notify()
        try:
            yield stops
        finally:
            with self._changed:
                del self._running[id(stops)]
                self._changed.notify_all()

    def stop_all(self, reason: ErrorKind) -> None:
        """End everything: this container is being taken away."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            running = list(self._running.values())
        for stop in (each for _, stops in running for each in stops):
            stop.set(reason)

    def wait_idle(self, timeout_s: float) -> bool:
        """Wait until nothing runs any more; False if something still does."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._running, timeout_s)

    def _watch(self) -> None:
        while True:
            with self._changed:
                while not self._running and not self._closed:
                    self._changed.wait()
                if self._closed:
                    return
                by_run: dict[str, tuple[Order, list[Stop]]] = {}
                for order, stops in self._running.values():
                    by_run.setdefault(order.run_id, (order, []))[1].extend(stops)
            for order, stops in by_run.values():
                self._look(order, stops)
            with self._changed:
                self._changed.wait_for(lambda: self._closed, self._poll_s)

    def _look(self, order: Order, stops: list[Stop]) -> None:
        try:
            reason = self._notes.reason(order.run_id)
            if reason is None and self._is_superseded(order.works[0]):
                reason = ErrorKind.PREEMPTED
        except Exception:
            # The one thread that looks goes on: without it nothing here could be stopped any more.
            log.exception("stop.not_looked", run=order.run_id)
            return
        if reason is not None:
            for stop in stops:
                stop.set(reason)

    def _is_superseded(self, work: Work) -> bool:
        epoch, _, _ = work.attempt.partition("-")
        if not epoch.isdecimal():
            return False  # not under a lease: the API's own
        try:
            return self._leases.read(f"lease/{work.job_id}/{int(epoch) + 1}") is not None
        except StoreError:
            return False
