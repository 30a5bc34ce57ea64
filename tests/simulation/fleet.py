"""Who works the bucket: desk runners, Modal's crons and dispatchers, and the sweep."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial

from processor.attempt import Claim
from processor.clock import StoreClock
from processor.dispatch import process as process_job
from processor.dispatch import take_over
from processor.errors import DropbatchError, ErrorKind, StoreError
from processor.handler import Handler, Stop, Stores
from processor.leases.authority import Authority
from processor.leases.lease import Leases
from processor.machine import Machine
from processor.nightly import Mornings
from processor.policy import Policy
from processor.run import Wake, run
from processor.sweep import sweep
from processor.tick import tick
from tests.simulation.bucket import Bucket, Dict, SimLeases, SimStore, WorldClock
from tests.simulation.launcher import Labour, SimLauncher, Submitted, handlers
from tests.simulation.world import Actor, Process, World

POLICY = Policy(stop_poll_s=60.0, cancel_poll_s=60.0, rest_s=0.1)
"""Nobody is asked to stop here; looking for that, and for cancels, less often costs no interleaving.
What was given back is soon tried again: more happens in a schedule."""
_MAX_SKEW_S = 300.0
_IDLE_S = (180.0, 400.0)

State = tuple[int, int]


@dataclass
class Fleet:
    """All runners of one bucket.

    Args:
        leases: the lease store that the bucket's own runners are configured with.
        foreign: another one, which a second desk wrongly uses; None without such a desk.
        duplicates: chance that an invocation of the dispatcher is delivered twice.
    """

    world: World
    bucket: Bucket
    leases: Dict
    labour: Labour
    submitted: Submitted
    policy: Policy
    foreign: Dict | None = None
    duplicates: float = 0.0
    closing: bool = False
    """Nobody starts anything new; what runs, ends."""
    hands_over: bool = False
    """Whoever claims a job leaves it to another process."""
    ticks: int = 0
    handlers: dict[str, Handler] = field(init=False)
    _wakes: dict[Process, _Wake] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.handlers = handlers(self.world, self.labour)

    def process(self, name: str) -> Process:
        """A new process on a host whose clock is off by up to five minutes."""
        skew_s = self.world.random.uniform(-_MAX_SKEW_S, _MAX_SKEW_S)
        return Process(self.world, name, skew_s=skew_s)

    def machine(self, process: Process, *, remote: bool, leases: Dict | None = None) -> Machine:
        """The real core in one process."""
        world = self.world
        store, shared = SimStore(self.bucket, process), SimLeases(leases or self.leases, process)
        clock = StoreClock(WorldClock(world, process))
        launcher = SimLauncher(
            world,
            process,
            self.bucket,
            self.labour,
            self.handlers,
            remote=remote,
            submitted=self.submitted,
        )
        return Machine(
            stores=Stores.single(store),
            leases=Leases(shared, clock, lease_s=self.policy.lease_s, margin_s=self.policy.margin_s),
            authority=Authority(store, shared, clock, self.policy, nonce=world.token),
            clock=clock,
            launcher=launcher,
            handlers=self.handlers,
            policy=self.policy,
            nonce=world.token,
            host=process.name,
        )

    @property
    def state(self) -> State:
        """Differs whenever the bucket or the lease store was changed."""
        return self.bucket.changed, self.leases.changed

    def rest(self, before: State | None, now: State, periods_s: Sequence[float]) -> None:
        """Wait for the next tick; long where nothing changed, and it would see what the last one saw."""
        self.world.pause(self.world.random.choice(_IDLE_S if now == before else periods_s))

    def tell(self) -> None:
        """Something was dropped, which about half of the desks see at once, as they do in a folder."""
        for process, wake in self._wakes.items():
            if process.alive and self.world.random.random() < 0.5:
                wake.set()

    # --- a desk: one process that ticks and dispatches, restarted when it dies -------

    def start_desk(
        self, name: str, *, delay_s: float = 0.0, leases: Dict | None = None, stopped: float = 0.0
    ) -> None:
        """`stopped`: chance that it is asked to end while it waits; then it is started again, too."""
        process = self.process(name)
        desk = partial(self.start_desk, name, leases=leases, stopped=stopped)
        process.at_death.append(lambda: self._restart(desk))
        self.world.spawn(process, name, partial(self._desk, process, desk, leases, stopped), delay_s=delay_s)

    def _desk(self, process: Process, desk: Callable[..., None], leases: Dict | None, stopped: float) -> None:
        machine = self.machine(process, remote=False, leases=leases)
        self._wakes[process] = wake = _Wake(self, machine.stop, stopped)
        run(machine, concurrency=2, wake=wake)
        self._restart(desk)

    def _restart(self, desk: Callable[..., None]) -> None:
        if not self.closing:
            desk(delay_s=self.world.random.uniform(5, 120))

    # --- the sweep ------------------------------------------------------------------

    def start_sweeper(self, name: str) -> None:
        self.world.spawn(Process(self.world, name), name, lambda: self._sweeping(name))

    def _sweeping(self, name: str) -> None:
        while not self.closing:
            process = self.process(f"{name}.sweep")
            self.world.spawn(process, process.name, partial(self._sweep, process))
            self.world.pause(self.world.random.uniform(200, 900))

    def _sweep(self, process: Process) -> None:
        machine = self.machine(process, remote=True)
        if tick(machine, capacity=0).problem is None:
            with suppress(DropbatchError):
                sweep(machine)

    # --- the morning ----------------------------------------------------------------

    def start_mornings(self, *, after_s: float) -> None:
        """A cron at the end of the night."""
        process = self.process("morning")
        self.world.spawn(process, process.name, partial(self._morning, process), delay_s=after_s)

    def _morning(self, process: Process) -> None:
        machine = self.machine(process, remote=True)
        if tick(machine, capacity=0).problem is None:
            Mornings(machine).look()

    # --- Modal: every tick and every dispatcher is a process of its own ---------------

    def start_cron(self, name: str, *, delay_s: float = 0.0) -> None:
        self.hands_over = True
        self.world.spawn(Process(self.world, name), name, lambda: self._cron(name), delay_s=delay_s)

    def _cron(self, name: str) -> None:
        before = None
        while not self.closing:
            process = self.process(f"{name}.tick")
            now = self.state
            self.world.spawn(process, process.name, partial(self._tick, process))
            self.rest(before, now, (20.0, 60.0, 180.0))
            before = now

    def _tick(self, process: Process) -> None:
        self.ticks += 1
        for claim in tick(self.machine(process, remote=True), capacity=3).claims:
            self._invoke(claim)
            if self.world.random.random() < self.duplicates:
                self.world.count("invocation delivered twice")
                self._invoke(claim, delay_s=self.world.random.uniform(0, 30))

    def _invoke(self, claim: Claim, *, delay_s: float = 0.1) -> None:
        process = self.process("dispatch")
        handed = replace(claim, peeked=None)
        if self.world.random.random() < 0.7:
            # A container that dies has its input begun anew on another.
            process.at_death.append(lambda: None if self.closing else self._invoke(handed, delay_s=10.0))
        self.world.spawn(process, "dispatch", lambda: self._dispatch(process, handed), delay_s=delay_s)

    def _dispatch(self, process: Process, handed: Claim) -> None:
        machine = self.machine(process, remote=True)
        claim = take_over(machine, handed)
        if claim is not None:
            manifest = process_job(machine, claim)
            mornings = Mornings(machine)
            mornings.note([manifest] if manifest else [])
            with suppress(StoreError):
                mornings.retell()


class _Wake(Wake):
    """Waits as an actor, until a drop is seen, a job ends, or time is up."""

    def __init__(self, fleet: Fleet, stop: Stop, stopped: float) -> None:
        super().__init__()
        self._stopped = stopped
        self._fleet = fleet
        self._stop = stop
        self._waiting: Actor | None = None
        self._nudged = False
        self._before: State | None = None

    def set(self) -> None:
        super().set()
        self.nudge()

    def nudge(self) -> None:
        self._nudged = True
        if self._waiting is not None:
            self._fleet.world.wake(self._waiting)

    def wait(self, timeout_s: float) -> None:
        fleet = self._fleet
        fleet.ticks += 1
        before, self._before = self._before, fleet.state
        if not self._nudged:
            self._waiting = fleet.world.current
            fleet.rest(before, self._before, (2.0, 60.0, 180.0))
            self._waiting = None
        self._nudged = False
        if fleet.closing or fleet.world.random.random() < self._stopped:
            self._stop.set(ErrorKind.PREEMPTED)
