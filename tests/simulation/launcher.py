"""The simulated launcher: workers are actors that run the real `execute`, and fail by chance."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from handlers.ingest.handler import IngestHandler
from processor.errors import ErrorKind, JobInvalid, TaskFailed
from processor.execute import Execution, execute
from processor.handler import Handler, LocalFile, PlanContext, Stop, Stores, TaskContext, TaskOutput, Work
from processor.launch import Run
from processor.models import JobBase, RenderJob
from processor.records import Plan, Task, canonical_hash
from tests.simulation.bucket import Bucket, SimStore, WorldClock
from tests.simulation.trainer import SimTrainer
from tests.simulation.world import Actor, Process, World

_MEMORY = Path("/dev/shm")  # noqa: S108 - a folder of our own is made in it
_FILES = Path(tempfile.mkdtemp(prefix="dropbatch-simulation-", dir=_MEMORY if _MEMORY.is_dir() else None))
atexit.register(shutil.rmtree, _FILES, ignore_errors=True)
_PICTURE = _FILES / "picture.txt"
_PICTURE.write_text("a picture")


@dataclass(frozen=True)
class Labour:
    """How tasks go.

    Args:
        transient: chance that one execution crashes its engine.
        permanent: chance that a task fails for good (of the task, not of an execution).
        preempted: chance that the container goes away and the input starts anew elsewhere.
        long: chance that a task outlasts a renewal, or a lease.
    """

    transient: float = 0.0
    permanent: float = 0.0
    preempted: float = 0.0
    long: float = 0.0
    poisonous: bool = False
    """While faults strike, planning kills its process."""


class SimHandler:
    """Plans `overrides["tasks"]` tasks of one file each."""

    kind = "render"
    concurrency = 2

    def __init__(self, world: World, labour: Labour) -> None:
        self._world = world
        self._labour = labour

    def plan(self, job: JobBase, context: PlanContext) -> Plan:
        assert isinstance(job, RenderJob)
        wanted = job.overrides.get("tasks", 1)
        if not isinstance(wanted, int) or wanted < 1:
            raise JobInvalid("no tasks", where="overrides.tasks")
        if self._labour.poisonous and self._world.chaotic and self._world.current:
            self._world.kill(self._world.current.process)
        # What a plan freezes (drawn seeds, input versions) differs each time one is made.
        draw = self._world.token()
        tasks = [
            Task(index=k, hash=canonical_hash([context.job_id, draw, k]), params={"k": k})
            for k in range(wanted)
        ]
        return Plan(job_id=context.job_id, kind="render", tasks=tasks)

    def run(self, work: Work, context: TaskContext) -> TaskOutput:
        chance = self._world.random.random
        seconds = self._world.random.uniform(200, 900) if chance() < self._labour.long else 4 * chance()
        for _ in range(4):
            self._world.pause(seconds / 4)
            context.stop.check()
        if chance() < self._labour.transient:
            raise TaskFailed(ErrorKind.CRASHED, "the engine died")
        if int(work.task.hash[:8], 16) / 16**8 < self._labour.permanent:
            raise TaskFailed(ErrorKind.BAD_INPUT, "no such picture")
        return TaskOutput([LocalFile(_PICTURE, f"{work.task.index}.txt", "text/plain")], seconds)

    def close(self) -> None: ...


def handlers(world: World, labour: Labour) -> dict[str, Handler]:
    """One of each kind, for all machines of a fleet: they keep nothing."""
    return {"render": SimHandler(world, labour), "ingest": IngestHandler(), "train": SimTrainer(world)}


Submitted = Callable[[Process, Work], None]


class SimLauncher:
    """Runs tasks as actors.

    Args:
        owner: the dispatcher's process.
        handlers: the fleet's.
        remote: workers are processes of their own (Modal), which outlive their dispatcher.
    """

    def __init__(
        self,
        world: World,
        owner: Process,
        bucket: Bucket,
        labour: Labour,
        handlers: Mapping[str, Handler],
        *,
        remote: bool,
        submitted: Submitted,
    ) -> None:
        self.place = "modal" if remote else "local"
        self.world = world
        self.owner = owner
        self.bucket = bucket
        self.labour = labour
        self.remote = remote
        self.submitted = submitted
        self.handlers = handlers

    def open(self, kind: str) -> Run:
        return _SimRun(self)

    def close(self) -> None: ...


@contextmanager
def _folder(parent: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=parent) as name:
        yield Path(name)


class _NoLimits:
    @contextmanager
    def limit(self, stop: Stop, timeout_s: float) -> Iterator[None]:
        yield


@dataclass
class _Input:
    """One submission, however many executions it takes: the first to end answers it."""

    work: Work
    answered: bool = False


class _SimRun:
    window = 3

    def __init__(self, launcher: SimLauncher) -> None:
        self._launcher = launcher
        self._world = launcher.world
        self._finished: list[Execution] = []
        self._waiting: Actor | None = None
        self._stops: list[Stop] = []
        self._cancelled: ErrorKind | None = None

    def submit(self, work: Work) -> None:
        launcher = self._launcher
        launcher.submitted(launcher.owner, work)
        given = _Input(work)
        self._start(given, self._world.random.random() * 2)
        if self._world.random.random() < launcher.labour.preempted:
            # The same input begins again elsewhere, while the first container may still work.
            self._world.count("input preempted")
            self._start(given, self._world.random.random() * 9)

    def _start(self, given: _Input, delay_s: float) -> None:
        launcher = self._launcher
        name = f"worker {given.work.task.index}"
        process = Process(self._world, name) if launcher.remote else launcher.owner
        if launcher.remote:
            process.at_death.append(lambda: self._start(given, 10.0))
        stop = Stop()
        if self._cancelled is not None:
            stop.set(self._cancelled)
        self._stops.append(stop)
        self._world.spawn(process, name, lambda: self._work(process, given, stop), delay_s=delay_s)

    def _work(self, process: Process, given: _Input, stop: Stop) -> None:
        world = self._world
        done = execute(
            self._launcher.handlers[given.work.kind],
            given.work,
            Stores.single(SimStore(self._launcher.bucket, process)),
            stop=stop,
            watchdog=_NoLimits(),
            progress=lambda _: None,
            work_dir=_FILES,
            gpu=None,
            usd_per_s=0.0,
            clock=WorldClock(world),
            tag=lambda: world.token()[:8],
            workdir=nullcontext if given.work.kind == "render" else _folder,
        )
        if given.answered:
            return
        given.answered = True
        self._finished.append(done)
        if self._waiting is not None:
            world.wake(self._waiting)

    def next(self, timeout_s: float) -> Execution | None:
        if not self._finished:
            self._waiting = self._world.current
            self._world.pause(timeout_s)
            self._waiting = None
        return self._finished.pop(0) if self._finished else None

    def cancel(self, reason: ErrorKind) -> None:
        self._cancelled = reason
        for stop in self._stops:
            stop.set(reason)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._launcher.owner.alive:
            self.cancel(ErrorKind.CANCELLED)
