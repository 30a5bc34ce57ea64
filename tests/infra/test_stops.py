"""A container's watch for stop requests outlasts Modal's bad moments."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from grpclib.exceptions import StreamTerminatedError

from infra.leases import ModalDictLeases
from infra.stops import StopNotes, StopWatch
from infra.transport import Order
from processor.errors import ErrorKind, StoreUnavailable
from processor.handler import Work
from processor.leases.memory import MemoryLeases
from processor.records import Task


class Trouble(dict[str, Any]):
    """A Dict that answers its next call with an error."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error: Exception | None = None
        self.cost = error
        self.struck = threading.Event()

    def strike(self) -> None:
        self.error = self.cost

    def get(self, key: str, default: Any = None) -> Any:
        self._maybe_raise()
        return super().get(key, default)

    def put(self, key: str, value: Any, **_: Any) -> bool:
        self._maybe_raise()
        self[key] = value
        return True

    def _maybe_raise(self) -> None:
        if self.error is not None:
            error, self.error = self.error, None
            self.struck.set()
            raise error


def order() -> Order:
    task = Task(index=0, hash="0" * 64)
    work = Work(job_id="j", attempt="1-a", kind="render", task=task, shared={}, timeout_s=10)
    return Order("run", None, [work])


@pytest.mark.parametrize("error", [StreamTerminatedError("Connection lost"), ValueError("our own defect")])
def test_a_look_that_fails_does_not_end_the_watch(error: Exception) -> None:
    """Else the container's tasks could be stopped by nobody for the rest of its life."""
    notes = Trouble(error)
    watch = StopWatch(StopNotes(notes), MemoryLeases(), poll_s=0.02)  # type: ignore[arg-type]  # as far as used
    with watch.watching(order()) as (stop,):
        notes.strike()
        assert notes.struck.wait(10)
        notes["stop/run"] = ErrorKind.CANCELLED.value
        assert stop.wait(10)
    assert stop.reason is ErrorKind.CANCELLED
    watch.stop_all(ErrorKind.PREEMPTED)


def test_a_first_look_that_fails_does_not_fail_the_order() -> None:
    """It is looked again, a moment later."""
    notes = Trouble(StreamTerminatedError("Connection lost"))
    notes.strike()
    watch = StopWatch(StopNotes(notes), MemoryLeases(), poll_s=0.02)  # type: ignore[arg-type]
    with watch.watching(order()) as (stop,):
        assert not stop.is_set()
    watch.stop_all(ErrorKind.PREEMPTED)


def test_a_lost_stream_is_a_store_out_of_reach() -> None:
    """To requests for a stop as well: the run ends with its lease then."""
    notes = Trouble(StreamTerminatedError("Connection lost"))
    leases = ModalDictLeases(notes, "leases")  # type: ignore[arg-type]
    notes.strike()
    with pytest.raises(StoreUnavailable, match="Connection lost"):
        leases.read("lease/j/1")
    notes.strike()
    StopNotes(notes).request("run", ErrorKind.CANCELLED)  # type: ignore[arg-type]
    assert not notes
