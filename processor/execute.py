"""One execution of one task, wherever it runs: run it, upload what it made, say how it went.

This is the one place that turns an exception of a task into a recorded result.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import structlog

from processor.clock import Clock, SystemClock
from processor.errors import AccessDenied, ErrorKind, StoreError, StoreUnavailable, TaskFailed
from processor.handler import Handler, LocalFile, Progress, Stop, Stores, TaskContext, Work
from processor.layout import execution_prefix, result_key
from processor.models import Scalar
from processor.records import OutputFile, TaskResult, dump
from processor.report import error_report
from processor.scratch import scratch_folder
from processor.shaping import shaped
from processor.store import Store

log = structlog.get_logger(__name__)

_T = TypeVar("_T")

_SYSTEM_CLOCK = SystemClock()
_BACKSTOP_S = 600.0
"""Tasks that share an engine wait for their turn and for its start: a handler counts a task's own
time, and only one that does not gets stopped from here."""
_STORE_PAUSES_S = (1.0, 2.0, 4.0, 8.0, 8.0, 8.0)
"""How long a finished task waits for a store that is away. Each pause is shorter than the grace that
a stop gives."""
_FEW = 16
_SMALL_BYTES = 8 * 1024 * 1024
"""Files up to this size are read once, for hash and upload alike; larger ones are streamed."""


@dataclass(frozen=True, slots=True)
class Execution:
    """A finished execution, as it travels back to the dispatcher."""

    result: TaskResult
    log: str = ""
    engine: dict[str, Scalar] = field(default_factory=dict)


class Limits(Protocol):
    """Sets a stop when a deadline passes: `Watchdog`, or a simulation's."""

    def limit(self, stop: Stop, timeout_s: float) -> AbstractContextManager[None]: ...


def backstop_s(timeout_s: float, sharing: int) -> float:
    """When a task is stopped that its handler did not stop: after all that may have gone before it.

    Args:
        timeout_s: a task's own limit.
        sharing: tasks at once on one engine, this one included.
    """
    return timeout_s * sharing + _BACKSTOP_S


def new_tag() -> str:
    """Names one execution, so that no two of a task share a key."""
    return secrets.token_hex(4)


Workdir = Callable[[Path], AbstractContextManager[Path]]
"""Makes an execution's own directory under the one given, for as long as it runs."""


def execute(
    handler: Handler,
    work: Work,
    stores: Stores,
    *,
    stop: Stop,
    watchdog: Limits,
    progress: Callable[[Progress], None],
    work_dir: Path,
    gpu: str | None,
    usd_per_s: float,
    sharing: int = 1,
    abreast: int = 1,
    clock: Clock = _SYSTEM_CLOCK,
    tag: Callable[[], str] = new_tag,
    workdir: Workdir = scratch_folder,
) -> Execution:
    """Run one task to a result. Never raises: a failure is a result, too.

    Files go up first, `result.json` last, all under a tag of this execution's own, so
    that a duplicate of it (a preempted input that runs twice) shares no key with it. A store
    that is away is waited for, half a minute a write, while what was made is still there.

    Args:
        sharing: tasks that run at once on this handler's engine, where that may be more than its
            `concurrency`: each waits for the others.
        abreast: tasks on this engine as this one begins. A success is charged the seconds that the engine
            itself worked at it, of which no two tasks have the same; a failure a share of its time here.
    Cost: 1 request per file and 1; a transient failure writes nothing.
    """
    execution = tag()
    started_at, began = clock.now(), clock.monotonic()

    def ended(seconds: float, price_usd_per_s: float, **how: Any) -> TaskResult:
        return _result(
            work,
            execution=execution,
            started_at=started_at,
            seconds=round(seconds, 3),
            gpu=gpu or work.gpu,  # what it ran on may be bigger than what was asked for
            cost_usd=round(seconds * price_usd_per_s, 6),
            **how,
        )

    try:
        with workdir(work_dir) as directory:
            with watchdog.limit(stop, backstop_s(work.timeout_s, max(sharing, handler.concurrency))):
                stop.check()
                deadline = time.monotonic() + work.timeout_s
                context = TaskContext(directory, stores, stop, deadline, progress, usd_per_s)
                output = handler.run(work, context)
            prefix = execution_prefix(work.job_id, work.attempt, work.task.index, execution)
            made = shaped(output.files, work.task, work.output, directory)
            insist = partial(_insist, stop, clock)
            files = [insist(partial(upload, stores.main, prefix, file)) for file in made]
            result = ended(output.seconds, usd_per_s, status="done", files=files, data=output.data)
            insist(partial(record, stores.main, work.job_id, result))
    # A library's sys.exit must not end a worker's thread, whose dispatcher would wait for ever.
    except (Exception, SystemExit) as failure:
        error = error_report(failure)
        if error.kind is ErrorKind.INTERNAL:
            log.exception("task.defect", job_id=work.job_id, task=work.task.index)
        result = ended(clock.monotonic() - began, usd_per_s / abreast, status="failed", error=error)
        _record_failure(stores.main, work.job_id, result)
        return Execution(result, getattr(failure, "log", ""))
    return Execution(result, output.log, output.engine)


def failed(work: Work, error: BaseException) -> Execution:
    """The execution of a task that never came to a worker, or never came back."""
    return Execution(
        _result(
            work,
            status="failed",
            error=error_report(error),
            execution="",
            started_at=datetime.now(UTC),
            seconds=0.0,
            gpu=work.gpu,
        )
    )


def _result(work: Work, **how: Any) -> TaskResult:
    """What became of a task: what it was, and how it went."""
    task = work.task
    return TaskResult(
        index=task.index,
        hash=task.hash,
        params=task.params,
        seed=task.seed,
        attempt=work.attempt,
        tries=work.tries,
        **how,
    )


def upload(store: Store, prefix: str, file: LocalFile) -> OutputFile:
    """Put one output under its execution's prefix. Cost: 1 request."""
    size_bytes = file.path.stat().st_size
    if size_bytes <= _SMALL_BYTES:
        data: bytes | Path = file.path.read_bytes()
        sha256 = hashlib.sha256(data).hexdigest() if isinstance(data, bytes) else ""
    else:
        data = file.path
        with file.path.open("rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    key = prefix + file.name
    store.put(key, data, media_type=file.media_type)
    width, height = _dimensions(file)
    return OutputFile(
        key=key,
        name=file.name,
        size_bytes=size_bytes,
        sha256=sha256,
        media_type=file.media_type,
        node=file.node,
        width=width,
        height=height,
    )


def record(store: Store, job_id: str, result: TaskResult) -> None:
    """Write a task's result, its files being there, where a later attempt may adopt it. Cost: 1 request."""
    key = result_key(job_id, result.attempt, result.index, result.execution)
    store.put(key, dump(result), media_type="application/json")


class Watchdog:
    """Sets the stop of whatever runs past its deadline. One thread for all."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Stop]] = []
        self._order = itertools.count()
        self._ended: set[int] = set()
        """What is over but still in the heap, by its number."""
        self._changed = threading.Condition()
        self._closed = False
        self._thread: threading.Thread | None = None

    @contextmanager
    def limit(self, stop: Stop, timeout_s: float) -> Iterator[None]:
        """While inside, `stop` is set with TIMED_OUT after `timeout_s`."""
        entry = (time.monotonic() + timeout_s, next(self._order), stop)
        with self._changed:
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
                self._thread.start()
            heapq.heappush(self._heap, entry)
            if self._heap[0] is entry:
                self._changed.notify()
        try:
            yield
        finally:
            with self._changed:
                self._ended.add(entry[1])
                self._forget_ended()

    def _forget_ended(self) -> None:
        """Take the ended off the top; all of them once they are the most."""
        if 2 * len(self._ended) > len(self._heap) + _FEW:
            self._heap = [entry for entry in self._heap if entry[1] not in self._ended]
            heapq.heapify(self._heap)
            self._ended.clear()
        while self._heap and self._heap[0][1] in self._ended:
            self._ended.discard(heapq.heappop(self._heap)[1])

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()

    def _watch(self) -> None:
        with self._changed:
            while not self._closed:
                if not self._heap:
                    self._changed.wait()
                    continue
                deadline, _, stop = self._heap[0]
                left_s = deadline - time.monotonic()
                if left_s > 0:
                    self._changed.wait(left_s)
                    continue
                stop.set(ErrorKind.TIMED_OUT)
                # The entry is removed by its owner; until then look again only now and then.
                self._changed.wait(1.0)


def _insist(stop: Stop, clock: Clock, write: Callable[[], _T]) -> _T:
    """Write what a task made, with more patience than an adapter has: it may have taken a GPU hours.

    Raises:
        TaskFailed: NO_STORE; the store stayed away, or it refuses.
    """
    pauses_s = iter(_STORE_PAUSES_S)
    while True:
        try:
            return write()
        except (StoreUnavailable, AccessDenied) as error:
            pause_s = next(pauses_s, None)
            # What is refused (a cap, a key) stays so for longer than a GPU should wait.
            if pause_s is None or stop.is_set() or isinstance(error, AccessDenied):
                what, where, mend = error.what, error.where, error.mend
                raise TaskFailed(ErrorKind.NO_STORE, what, where=where, mend=mend) from error
            clock.sleep(pause_s)


def _record_failure(store: Store, job_id: str, result: TaskResult) -> None:
    """Write a failure that is final where a later attempt may adopt it; if it can't be, that one runs
    into it anew."""
    if result.error is None or result.error.kind in _NOT_WORTH_KEEPING:
        return
    try:
        record(store, job_id, result)
    except StoreError as error:
        log.warning("failure.not_recorded", job_id=job_id, task=result.index, why=str(error))


_NOT_WORTH_KEEPING = frozenset(
    {
        ErrorKind.OUT_OF_MEMORY,
        ErrorKind.CRASHED,
        ErrorKind.TIMED_OUT,
        ErrorKind.UNAVAILABLE,
        ErrorKind.NO_ENGINE,
        ErrorKind.NO_STORE,
        ErrorKind.PREEMPTED,
        ErrorKind.INTERNAL,
        ErrorKind.CANCELLED,
    }
)
"""Results that no later attempt adopts."""


def _dimensions(file: LocalFile) -> tuple[int | None, int | None]:
    if not file.media_type.startswith("image/") or file.media_type == "image/svg+xml":
        return None, None
    from processor.pictures import open_picture  # late: only workers that make pictures need it

    try:
        with open_picture(file.path) as image:
            return image.size
    except Exception:  # noqa: BLE001 - a picture's maker chose every byte; its size is only shown
        return None, None
