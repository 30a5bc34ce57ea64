"""Runs tasks on Modal: one `.map()` per job and GPU class, fed while it runs.

The map lives on a thread with an event loop of its own, because the client would block on a
generator that waits. So the dispatcher goes on renewing its lease and looking for a cancel
request, whatever Modal does.
"""

from __future__ import annotations

import asyncio
import queue
import secrets
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from types import TracebackType
from typing import Any, Protocol, Self

import modal
import structlog

from infra.gpus import bigger
from infra.transport import Order, execution_from_json
from processor.errors import DropbatchError, ErrorKind, TaskFailed
from processor.execute import Execution, failed
from processor.handler import Remedy, Work
from processor.launch import Run

log = structlog.get_logger(__name__)

WorkKey = tuple[int, int]
"""A task's index, and which try of it this is."""


class Fleet(Protocol):
    """The pools of workers that an app has."""

    def pool(self, kind: str, gpu: str | None, timeout_s: float) -> modal.Function[..., Any, Any]:
        """The function to map over for tasks of a kind, on that GPU or the kind's own choice,
        that lets each take so long."""
        ...

    def default_gpu(self, kind: str) -> str | None: ...

    def window(self, kind: str) -> int:
        """How many tasks keep the whole pool busy."""
        ...

    def chunk(self, kind: str, waiting: int) -> int:
        """How many of the tasks that wait to send as one input; at least 1."""
        ...


class StopRequests(Protocol):
    """Where workers look whether their run was stopped."""

    def request(self, run_id: str, reason: ErrorKind) -> None: ...


Prepare = Callable[[Sequence[Work]], None]
"""Sees to it that the tasks' models are where workers find them; raises TaskFailed if they can't be."""


class ModalLauncher:
    """See `processor.launch.Launcher`. Holds nothing between runs."""

    place = "modal"

    def __init__(self, fleet: Fleet, stops: StopRequests, prepare: Prepare) -> None:
        self._fleet = fleet
        self._stops = stops
        self._prepare = prepare

    def open(self, kind: str) -> Run:
        return _ModalRun(kind, self._fleet, self._stops, self._prepare)

    def close(self) -> None:
        """Containers end by themselves."""


class _ModalRun:
    def __init__(self, kind: str, fleet: Fleet, stops: StopRequests, prepare: Prepare) -> None:
        self.window = fleet.window(kind)
        self._kind = kind
        self._fleet = fleet
        self._stops = stops
        self._prepare = prepare
        self._id = secrets.token_hex(8)
        self._finished: queue.SimpleQueue[Execution] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._streams: dict[str | None, _Stream] = {}
        self._grown: str | None = None
        self._cancelled: ErrorKind | None = None

    def submit(self, work: Work) -> None:
        with self._lock:
            if self._cancelled is not None:
                self._finished.put(failed(work, TaskFailed(self._cancelled, "stopped before it ran")))
                return
            gpu = self._gpu_for(work)
            stream = self._streams.get(gpu)
            if stream is None or not stream.put(work):
                stream = self._streams[gpu] = self._stream(gpu, work.timeout_s)
                stream.put(work)

    def next(self, timeout_s: float) -> Execution | None:
        try:
            return self._finished.get(timeout=max(0.0, timeout_s))
        except queue.Empty:
            return None

    def cancel(self, reason: ErrorKind) -> None:
        with self._lock:
            if self._cancelled is not None:
                return
            self._cancelled = reason
            streams = list(self._streams.values())
        for stream in streams:
            stream.drop_waiting(reason)
        if streams:
            self._stops.request(self._id, reason)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        busy = any(stream.outstanding for stream in self._streams.values())
        if busy:
            self.cancel(ErrorKind.CANCELLED)
        for stream in self._streams.values():
            stream.close()

    def _gpu_for(self, work: Work) -> str | None:
        """A bigger one, once a task of this job needed it, for all that follow."""
        asked = self._grown or work.gpu
        if work.remedy is Remedy.BIGGER_GPU and (now := asked or self._fleet.default_gpu(self._kind)):
            asked = self._grown = bigger(now)
        return asked

    def _stream(self, gpu: str | None, timeout_s: float) -> _Stream:
        return _Stream(
            self._fleet.pool(self._kind, gpu, timeout_s),
            order=lambda works: Order(self._id, gpu, works),
            chunk=lambda waiting: self._fleet.chunk(self._kind, waiting),
            prepare=self._prepare,
            deliver=self._finished.put,
        )


class _Stream:
    """One `.map()` and what is under way in it.

    With unordered outputs Modal does not tell which input an exception belongs to. So the
    first one closes the stream to further tasks (the run opens another): once all others have
    answered, what is left is what failed.
    """

    def __init__(
        self,
        function: modal.Function[..., Any, Any],
        *,
        order: Callable[[list[Work]], Order],
        chunk: Callable[[int], int],
        prepare: Prepare,
        deliver: Callable[[Execution], None],
    ) -> None:
        self._function = function
        self._order = order
        self._chunk = chunk
        self._prepare = prepare
        self._deliver = deliver
        self._lock = threading.Lock()
        self._open = True
        self._waiting: list[Work] = []
        self._stopped: ErrorKind | None = None
        self._errors: list[BaseException] = []
        self.outstanding: dict[WorkKey, Work] = {}
        self._loop = asyncio.new_event_loop()
        self._wake = asyncio.Event()
        # A daemon: a dispatcher that lost its lease does not wait for what it gave up.
        threading.Thread(target=self._run, name="modal-map", daemon=True).start()

    def put(self, work: Work) -> bool:
        """Queue a task; False if this stream takes no more."""
        with self._lock:
            if not self._open:
                return False
            self.outstanding[_key(work)] = work
            self._waiting.append(work)
        self._notify()
        return True

    def drop_waiting(self, reason: ErrorKind) -> None:
        """Answer for what was not sent yet; what was sent still answers for itself."""
        with self._lock:
            self._open, self._stopped = False, reason
            waiting, self._waiting = self._waiting, []
        for work in waiting:
            self._finish(failed(work, TaskFailed(reason, "stopped before it ran")))
        self._notify()

    def close(self) -> None:
        """Take no more. The thread ends once all has answered."""
        with self._lock:
            self._open = False
        self._notify()

    def _notify(self) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._wake.set)

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._pump())
        except Exception as error:  # noqa: BLE001 - whatever broke the map, its tasks must end
            self._errors.append(error)
        finally:
            with self._lock:
                self._open = False
            self._loop.close()
        self._fail_rest()

    async def _pump(self) -> None:
        outputs = self._function.map.aio(self._feed(), order_outputs=False, return_exceptions=True)
        async for output in outputs:
            if isinstance(output, BaseException):
                self._errors.append(output)
                self.close()
                continue
            for value in output:
                self._finish(execution_from_json(value))

    async def _feed(self) -> AsyncIterator[dict[str, Any]]:
        while True:
            self._wake.clear()
            while works := self._take():
                if await asyncio.to_thread(self._prepared, works):
                    yield self._order(works).to_json()
            with self._lock:
                if not self._open and not self._waiting:
                    return
            await self._wake.wait()

    def _take(self) -> list[Work]:
        with self._lock:
            count = self._chunk(len(self._waiting)) if self._waiting else 0
            taken, self._waiting = self._waiting[:count], self._waiting[count:]
            return taken

    def _prepared(self, works: list[Work]) -> bool:
        try:
            self._prepare(works)
        except Exception as error:  # noqa: BLE001 - becomes the tasks' recorded failure
            for work in works:
                self._finish(failed(work, error))
            return False
        return True

    def _finish(self, execution: Execution) -> None:
        with self._lock:
            known = self.outstanding.pop((execution.result.index, execution.result.tries), None)
        # A preempted input answers once more than it was asked now and then.
        if known is not None:
            self._deliver(execution)

    def _fail_rest(self) -> None:
        with self._lock:
            left = list(self.outstanding.values())
        for number, work in enumerate(left):
            cause = self._errors[min(number, len(self._errors) - 1)] if self._errors else None
            self._finish(failed(work, self._as_failure(cause)))

    def _as_failure(self, cause: BaseException | None) -> DropbatchError:
        if self._stopped is not None:
            return TaskFailed(self._stopped, "stopped while it ran")
        log.warning("worker.failed", why=f"{type(cause).__name__}: {cause}")
        return as_failure(cause)


def as_failure(cause: BaseException | None) -> DropbatchError:
    """What an exception of Modal's own means for the tasks of that input.

    A worker turns whatever a task does into a result, so what arrives here is the
    container's end, not the task's.
    """
    if isinstance(cause, modal.exception.FunctionTimeoutError):
        return TaskFailed(ErrorKind.TIMED_OUT, "the container was over its time")
    if isinstance(cause, DropbatchError):
        return cause
    if isinstance(cause, modal.exception.RemoteError):
        return TaskFailed(ErrorKind.CRASHED, f"the container ended: {str(cause)[:500]}")
    return TaskFailed(ErrorKind.UNAVAILABLE, f"Modal did not answer: {type(cause).__name__}: {cause}"[:500])


def _key(work: Work) -> WorkKey:
    return (work.task.index, work.tries)
