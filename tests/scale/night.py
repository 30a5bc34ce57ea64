"""The model: containers, cold starts and inputs as events; expansion and fan-out are the real ones.

Each job's `FanOut` runs in a greenlet of its own; where it would wait for a result, the next
event of the night happens. So what decides the order, the window and the ends is the product's
code, and what takes time is the model's.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Self, cast

from greenlet import getcurrent, greenlet

from processor.clock import StoreClock
from processor.errors import ErrorKind
from processor.execute import Execution
from processor.expand import expand
from processor.fanout import FanOut
from processor.handler import Stores, Work
from processor.keeping import KeptLease
from processor.launch import Launcher
from processor.leases.authority import Authority
from processor.leases.lease import Lease, Leases
from processor.leases.memory import MemoryLeases
from processor.machine import Machine
from processor.models import Matrix, RenderJob, SeedRange
from processor.policy import Policy
from processor.prices import prices
from processor.records import Plan, Task, TaskResult, canonical_hash
from processor.store.memory import MemoryStore
from processor.testing.clock import EPOCH, ManualClock

_GPU = "L40S"


@dataclass(frozen=True)
class Modal:
    """What Modal and an engine are taken to do. Seconds; docs/scale.md says where each is from.

    Args:
        cold_start_s: from asking for a container to its first input, ComfyUI started.
        model_s: loading a group of models that the container does not hold.
        input_s: an input's way there and back, during which its container could compute.
        task_s: the mean of a task's GPU time; lognormal around it.
    """

    gpus: int
    cold_start_s: float = float(prices().cold_start_s)
    model_s: float = 12.0
    input_s: float = 0.25
    task_s: float = 6.0
    spread: float = 0.35


@dataclass(frozen=True)
class Choice:
    """What a deployment may choose.

    Args:
        concurrency: inputs that one container holds; while one computes, the next one arrives.
        chunk: tasks an input, or None for as many as take `chunk_s`, by the tasks so far.
        grouped: tasks that share models run together, as plans order them.
        jobs_at_once: whose tasks share the containers; `jobs_per_dispatch` in [modal].
    """

    name: str
    chunk: int | None = 1
    chunk_s: float = 10.0
    scaledown_s: float = 60.0
    concurrency: int = 3
    grouped: bool = True
    jobs_at_once: int = 8


@dataclass
class Report:
    """What a night came to."""

    tasks: int = 0
    makespan_s: float = 0.0
    computing_s: float = 0.0
    alive_s: float = 0.0
    containers: int = 0
    inputs: int = 0
    loads: int = 0
    store_requests: int = 0

    @property
    def utilisation(self) -> float:
        """GPU seconds that rendered, of those that are billed."""
        return self.computing_s / self.alive_s if self.alive_s else 0.0

    @property
    def cost_usd(self) -> float:
        return self.alive_s * prices().usd_per_s(_GPU)


@dataclass
class _Container:
    begun_s: float
    ready: bool = False
    models: str | None = None
    held: deque[list[tuple[_Run, Work]]] = field(default_factory=deque)
    computing: bool = False
    idle_since: float | None = None


class Night:
    """One night, from its first drop to its last container's end."""

    def __init__(self, modal: Modal, choice: Choice, *, seed: int = 7) -> None:
        self.modal, self.choice = modal, choice
        self.clock = ManualClock()
        self.report = Report()
        self._random = random.Random(seed)  # noqa: S311 - a model, not a secret
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._waiting: deque[tuple[_Run, Work]] = deque()
        self._containers: list[_Container] = []
        self._mean_s = modal.task_s
        self._hub = getcurrent()
        self._machine = self._make_machine()

    def run(self, jobs: list[int]) -> Report:
        """Work all of them; each has as many tasks as it says."""
        todo = deque(enumerate(jobs))
        live: list[greenlet] = []
        while todo or live:
            while todo and len(live) < self.choice.jobs_at_once:
                number, tasks = todo.popleft()
                job = greenlet(self._job)
                live.append(job)
                job.switch(number, tasks)
            live = [job for job in live if not job.dead]
            if live and self._events:
                self._happen()
        self.report.makespan_s = self.clock.monotonic()
        while self._events:
            self._happen()
        return self.report

    def _job(self, number: int, tasks: int) -> None:
        job_id = f"night-{number:016x}"
        plan = _plan(job_id, tasks, grouped=self.choice.grouped)
        job = RenderJob(kind="render", workflow="model")
        lease = Lease(job_id, 1, "n", EPOCH + timedelta(days=30))
        FanOut(self._machine, KeptLease(self._machine, lease), "1-n", job=job, plan=plan).run({})
        self.report.tasks += len(plan.tasks)
        # As tests/unit/test_bounds.py counts them: a job, its pages, and two a task.
        self.report.store_requests += 11 + 2 * len(plan.tasks)

    def _make_machine(self) -> Machine:
        store, leases = MemoryStore(clock=self.clock), MemoryLeases()
        clock = StoreClock(self.clock)
        policy = Policy(renew_s=1e9, cancel_poll_s=1e9, max_job_cost_usd=1e9)
        return Machine(
            stores=Stores.single(store),
            leases=Leases(leases, clock, lease_s=1e9, margin_s=1.0),
            authority=Authority(store, leases, clock, policy, nonce=lambda: "n"),
            clock=clock,
            launcher=cast("Launcher", _Launcher(self)),
            handlers={},
            policy=policy,
        )

    # --- the model of Modal

    def submit(self, run: _Run, work: Work) -> None:
        """A task is fed into its job's map."""
        self._waiting.append((run, work))
        self.after(0.0, self._give_out)

    def after(self, seconds: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.clock.monotonic() + seconds, next(self._order), act))

    def _happen(self) -> None:
        at, _, act = heapq.heappop(self._events)
        self.clock.advance(max(0.0, at - self.clock.monotonic()))
        act()

    def _give_out(self) -> None:
        for container in self._containers:
            while container.ready and self._waiting and len(container.held) < self.choice.concurrency:
                self._send(container)
        room = self.modal.gpus - len(self._containers)
        starting = sum(not container.ready for container in self._containers)
        wanted = -(-len(self._waiting) // self._chunk()) - starting
        for _ in range(max(0, min(room, wanted))):
            self._start()

    def _start(self) -> None:
        container = _Container(self.clock.monotonic())
        self._containers.append(container)
        self.report.containers += 1

        def ready() -> None:
            container.ready = True
            self._rest(container)
            self._give_out()

        self.after(self.modal.cold_start_s * self._random.uniform(0.8, 1.3), ready)

    def _send(self, container: _Container) -> None:
        chunk = [self._waiting.popleft() for _ in range(min(self._chunk(), len(self._waiting)))]
        container.held.append(chunk)
        container.idle_since = None
        self.report.inputs += 1
        self.after(self.modal.input_s, lambda: self._compute(container))

    def _chunk(self) -> int:
        if self.choice.chunk is not None:
            return self.choice.chunk
        # Long tasks alone, many tiny ones together; never so many that a container has none.
        fitting = max(1, int(self.choice.chunk_s / self._mean_s))
        return max(1, min(fitting, len(self._waiting) // max(1, self.modal.gpus)))

    def _compute(self, container: _Container) -> None:
        if container.computing or not container.held:
            return
        container.computing = True
        taken_s = 0.0
        for run, work in container.held[0]:
            if work.task.payload["models"] != container.models:
                container.models = work.task.payload["models"]
                taken_s += self.modal.model_s
                self.report.loads += 1
            task_s = self._random.lognormvariate(0.0, self.modal.spread) * self.modal.task_s
            self.report.computing_s += task_s
            self._mean_s += 0.05 * (task_s - self._mean_s)
            taken_s += task_s
            self.after(taken_s, lambda run=run, work=work, s=task_s: run.end(work, s))  # type: ignore[misc]
        self.after(taken_s, lambda: self._computed(container))

    def _computed(self, container: _Container) -> None:
        container.held.popleft()
        container.computing = False
        if container.held:
            self._compute(container)
        self.after(0.0, self._give_out)
        if not container.held:
            # The next input has yet to come: with room for one alone, the GPU waits its way.
            self._rest(container)

    def _rest(self, container: _Container) -> None:
        since = container.idle_since = self.clock.monotonic()

        def end() -> None:
            if container.idle_since == since and not container.held and container in self._containers:
                self._containers.remove(container)
                self.report.alive_s += self.clock.monotonic() - container.begun_s

        self.after(self.choice.scaledown_s, end)


class _Launcher:
    place = "modal"

    def __init__(self, night: Night) -> None:
        self._night = night

    def open(self, kind: str) -> _Run:
        return _Run(self._night)

    def close(self) -> None: ...


class _Run:
    """A job's map: what FanOut waits for is the next of its tasks to end."""

    def __init__(self, night: Night) -> None:
        self._night = night
        self._finished: deque[Execution] = deque()
        self._asleep: greenlet | None = None
        # As infra's pools have it: twice what runs at once.
        chunk = night.choice.chunk or 16
        self.window = max(2, 2 * night.modal.gpus * night.choice.concurrency * chunk)

    def submit(self, work: Work) -> None:
        self._night.submit(self, work)

    def next(self, timeout_s: float) -> Execution | None:
        if not self._finished:
            self._asleep = getcurrent()
            self._night._hub.switch()
            self._asleep = None
        return self._finished.popleft() if self._finished else None

    def end(self, work: Work, seconds: float) -> None:
        result = TaskResult(
            index=work.task.index,
            hash=work.task.hash,
            status="done",
            attempt=work.attempt,
            execution="x",
            started_at=EPOCH,
            seconds=seconds,
        )
        self._finished.append(Execution(result))
        if self._asleep is not None:
            self._asleep.switch()

    def cancel(self, reason: ErrorKind) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...


def _plan(job_id: str, tasks: int, *, grouped: bool) -> Plan:
    """A matrix over two checkpoints, two samplers' settings and seeds, expanded by the real code."""
    seeds = max(1, tasks // 4)
    matrix = Matrix(product={"cfg": [4.0, 7.0], "checkpoint": ["a", "b"]}) if tasks >= 4 else None
    rows = expand(matrix, None, SeedRange(start=0, count=seeds), draw_key=job_id, max_tasks=10_000)
    ordered = [
        Task(
            index=index,
            hash=canonical_hash(row),
            params=row,
            seed=int(row["seed"]),
            payload={"models": f"checkpoint {row.get('checkpoint', 'a')}"},
            # Fan-out brings equal groups together; ungrouped, tasks run as the axes vary.
            group=f"checkpoint {row.get('checkpoint', 'a')}" if grouped else "",
        )
        for index, row in enumerate(rows)
    ]
    if not grouped:
        ordered.sort(key=lambda task: (task.params["seed"], task.index))
    return Plan(job_id=job_id, kind="render", tasks=ordered)
