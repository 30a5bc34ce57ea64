"""Launchers: what runs tasks. This machine's lives here; Modal's in `infra`."""

from __future__ import annotations

import queue
import threading
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import structlog

from processor.errors import ErrorKind
from processor.events import Observer, TaskProgress, TaskStarted
from processor.execute import Execution, Watchdog, execute, failed
from processor.handler import Handler, Progress, Stop, Stores, Work
from processor.scratch import TaskFolders, remove_abandoned

log = structlog.get_logger(__name__)


class Run(Protocol):
    """One job's executions on a launcher. Used by one dispatcher; a context manager.

    Leaving it cancels what still runs; results that arrive later are dropped (their
    files stay under their own keys, named by no manifest).
    """

    @property
    def window(self) -> int:
        """How many executions to keep outstanding now: enough to fill the launcher, few enough
        that a stop wastes little, and no more than its share where others run, too."""
        ...

    def submit(self, work: Work) -> None:
        """Queue one execution."""
        ...

    def next(self, timeout_s: float) -> Execution | None:
        """The next finished execution, in any order; None after `timeout_s`."""
        ...

    def cancel(self, reason: ErrorKind) -> None:
        """Ask everything outstanding to end; each still reports through `next`. Idempotent."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Launcher(Protocol):
    """Runs tasks somewhere. Thread-safe: several dispatchers share one."""

    place: str
    """`local` or `modal`: what a job's `where` is compared with."""

    def open(self, kind: str) -> Run:
        """Start a run of tasks of one kind. Cost: none until the first `submit`."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class LocalConfig:
    """Where and how dear this machine works."""

    work_dir: Path
    gpu: str | None = None
    usd_per_s: float = 0.0
    stop_grace_s: float = 20.0


class LocalLauncher:
    """Runs tasks in threads of this process; the engines they drive are child processes.

    Each handler has as many threads as its `concurrency`, shared by all jobs in order of
    submission, so that one task is prepared and another uploaded while an engine works. Jobs
    that run at once share what may be submitted ahead, so a small one never waits for more
    of a huge one than that.
    """

    place = "local"

    def __init__(
        self, handlers: Mapping[str, Handler], stores: Stores, config: LocalConfig, observe: Observer
    ) -> None:
        self._handlers = handlers
        self._stores = stores
        self._config = config
        self._observe = observe
        self._watchdog = Watchdog()
        self._folders = TaskFolders(config.work_dir)
        self._pools: dict[str, ThreadPoolExecutor] = {}
        self._sharing: Counter[str] = Counter()
        self._lock = threading.Lock()
        remove_abandoned(config.work_dir)

    def open(self, kind: str) -> Run:
        handler = self._handlers[kind]
        with self._lock:
            if kind not in self._pools:
                self._pools[kind] = ThreadPoolExecutor(handler.concurrency, thread_name_prefix=kind)
            self._sharing[kind] += 1
        return _LocalRun(self, handler, self._pools[kind])

    def share(self, kind: str, whole: int) -> int:
        """The part of `whole` that each of the open runs of a kind may have; at least 1."""
        with self._lock:
            return max(1, -(-whole // max(1, self._sharing[kind])))

    def left(self, kind: str) -> None:
        """A run of this kind has ended."""
        with self._lock:
            self._sharing[kind] -= 1

    def close(self) -> None:
        """Wait for threads to end (cancel their runs first), then stop the engines."""
        for pool in self._pools.values():
            pool.shutdown(wait=True, cancel_futures=True)
        for handler in self._handlers.values():
            handler.close()
        self._watchdog.close()
        self._folders.close()

    def run_one(self, handler: Handler, work: Work, stop: Stop) -> Execution:
        self._observe(TaskStarted(work.job_id, work.task.index))

        def progress(step: Progress) -> None:
            self._observe(TaskProgress(work.job_id, work.task.index, step))

        return execute(
            handler,
            work,
            self._stores,
            stop=stop,
            watchdog=self._watchdog,
            progress=progress,
            work_dir=self._config.work_dir,
            gpu=self._config.gpu,
            usd_per_s=self._config.usd_per_s,
            workdir=lambda _parent: self._folders.folder(),
        )


class _LocalRun:
    def __init__(self, launcher: LocalLauncher, handler: Handler, pool: ThreadPoolExecutor) -> None:
        self._launcher = launcher
        self._handler = handler
        self._pool = pool
        self._finished: queue.SimpleQueue[Execution] = queue.SimpleQueue()
        self._stops: dict[tuple[int, int], Stop] = {}
        self._lock = threading.Lock()
        self._cancelled: ErrorKind | None = None

    @property
    def window(self) -> int:
        # Twice the threads: a worker never waits for the dispatcher to submit.
        return self._launcher.share(self._handler.kind, 2 * self._handler.concurrency)

    def submit(self, work: Work) -> None:
        stop = Stop()
        key = (work.task.index, work.tries)
        with self._lock:
            self._stops[key] = stop
            if self._cancelled is not None:
                stop.set(self._cancelled)
        self._pool.submit(self._work, key, work, stop)

    def _work(self, key: tuple[int, int], work: Work, stop: Stop) -> None:
        try:
            execution = self._launcher.run_one(self._handler, work, stop)
        except BaseException as error:  # the pool would keep it, and the job wait for ever
            log.exception("task.defect", job_id=work.job_id, task=work.task.index)
            execution = failed(work, error)
        finally:
            with self._lock:
                del self._stops[key]
        self._finished.put(execution)

    def next(self, timeout_s: float) -> Execution | None:
        try:
            return self._finished.get(timeout=max(0.0, timeout_s))
        except queue.Empty:
            return None

    def cancel(self, reason: ErrorKind) -> None:
        with self._lock:
            self._cancelled = reason
            stops = list(self._stops.values())
        for stop in stops:
            stop.set(reason)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._launcher.left(self._handler.kind)
        self.cancel(ErrorKind.CANCELLED)
