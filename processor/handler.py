"""What the machine asks of a handler: plan a job on a CPU, then run its tasks anywhere.

A handler is found by its job kind through `processor.config`; see docs/handlers.md for
adding one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from processor.errors import ErrorKind, TaskFailed
from processor.models import JobBase, Model, Output, Scalar
from processor.records import InputFile, ModelFile, Plan, Task
from processor.store import Store

if TYPE_CHECKING:
    from processor.config import Settings


class Remedy(StrEnum):
    """What to do before trying a task again, from gentle to drastic."""

    NONE = "none"
    FREE_MEMORY = "free_memory"
    RESTART = "restart"
    """Start the engine afresh."""
    BIGGER_GPU = "bigger_gpu"
    """For the rest of the job; on one machine the same as RESTART."""


@dataclass(frozen=True)
class Stores:
    """The main bucket and, where they have buckets of their own, models and datasets."""

    main: Store
    models: Store
    datasets: Store

    @classmethod
    def single(cls, store: Store) -> Stores:
        return cls(main=store, models=store, datasets=store)


@dataclass(frozen=True)
class PlanContext:
    """What planning may look at. Planning is done once a job, on a CPU, without an engine."""

    job_id: str
    drop_key: str
    stores: Stores
    now: datetime
    max_tasks: int
    limits: dict[str, Scalar] = field(default_factory=dict)
    on_paper: bool = False
    """Only to tell what would happen: it may run on another machine, whose engine has more."""
    bucketless: bool = False
    """The stores stand in for a bucket that is not at hand: what may lie there is not missed."""
    keep_alive: Callable[[], None] = lambda: None
    """To be called now and then by planning that may take minutes, from its own thread: it renews the
    job's lease, and raises where that is lost or the runner is to stop."""


class Work(Model):
    """One task handed to a launcher: all a worker needs, small enough to send anywhere."""

    job_id: str
    attempt: str
    kind: str
    task: Task
    shared: dict[str, Any]
    inputs: list[InputFile] = []
    models: list[ModelFile] = []
    gpu: str | None = None
    timeout_s: float
    max_cost_usd: float | None = None
    """Its even share of what the job may cost, for a handler whose tasks are long enough to stop
    within: the fan-out itself looks only between tasks. None: nobody set a limit."""
    tries: int = 1
    """1 for the first execution of this task under this attempt."""
    remedy: Remedy = Remedy.NONE
    retried: list[str] = []
    """The jobs that ran this very task before and failed, the nearest first: what they left may be
    gone on from, and belongs to them."""
    options: dict[str, Scalar] = {}
    """Job fields that the handler honours while running, e.g. `allow_invalid_outputs`."""
    output: Output | None = None
    """Names and formats that the job wants its files in."""


class Stop:
    """Asks a running task to end, and says why. Thread-safe; set once, the first reason wins."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._lock = threading.Lock()
        self.reason: ErrorKind | None = None

    def set(self, reason: ErrorKind) -> None:
        with self._lock:
            if self.reason is None:
                self.reason = reason
        self._event.set()

    def is_set(self) -> bool:
        return self._event.is_set()

    def wait(self, timeout_s: float) -> bool:
        """True as soon as it is set, False after `timeout_s`."""
        return self._event.wait(timeout_s)

    def check(self) -> None:
        """Raise TaskFailed with the reason if a stop was asked for."""
        if self.reason is not None:
            raise TaskFailed(self.reason, "stopped while it ran")


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a task is: `value` of `total` within `stage` (a node's title, `training`, …)."""

    stage: str
    value: float
    total: float


@dataclass(frozen=True)
class TaskContext:
    """What a handler is given to run one task."""

    workdir: Path
    """An empty private directory, removed after the outputs are uploaded."""
    stores: Stores
    stop: Stop
    deadline: float
    """By `time.monotonic()`, if it starts now. A handler whose tasks share an engine counts from
    the task's turn instead; the executor stops only what overstays that by far."""
    progress: Callable[[Progress], None]
    usd_per_s: float = 0.0
    """What a second of this task costs where it runs; 0 where nobody knows, or nothing is paid."""


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file a task produced, not yet uploaded.

    `name` is what people see; it may have folders (`a/b.png`) but never leaves them.
    """

    path: Path
    name: str
    media_type: str
    node: str | None = None


@dataclass(frozen=True, slots=True)
class TaskOutput:
    """What a finished task hands over."""

    files: list[LocalFile]
    seconds: float
    """Of the engine alone: what a GPU would be billed for."""
    data: dict[str, Any] = field(default_factory=dict)
    """Small JSON: text outputs, final loss, … Secrets already redacted."""
    log: str = ""
    """The engine's log while the task ran, redacted."""
    engine: dict[str, Scalar] = field(default_factory=dict)
    """Names and versions, for the manifest."""


class HandlerFactory(Protocol):
    """What `[handlers]` in dropbatch.toml names: usually the handler's class."""

    def configured(self, settings: Settings, stores: Stores) -> Handler:
        """A handler for this machine. Starts nothing yet."""
        ...


class Handler(Protocol):
    """One kind of work. Thread-safe: `run` is called for several tasks at once, so that the
    next one is prepared and the last one uploaded while an engine works."""

    kind: str
    concurrency: int
    """How many `run` calls at once keep one engine busy."""

    def plan(self, job: JobBase, context: PlanContext) -> Plan:
        """Resolve a job to its tasks, freezing all they depend on.

        Deterministic in the job, the job id and what the stores hold; random draws are
        seeded by the job id.

        Raises:
            JobInvalid: with the field, the value and the nearest valid thing.
            StoreError: the stores could not be read; the attempt is tried again.
        """
        ...

    def run(self, work: Work, context: TaskContext) -> TaskOutput:
        """Run one task to its end.

        Raises:
            TaskFailed: with the kind that decides about a retry.
            StoreError: inputs could not be read.
        """
        ...

    def close(self) -> None:
        """Stop engines and free what `run` started. Idempotent."""
        ...
