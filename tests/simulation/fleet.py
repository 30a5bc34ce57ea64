"""Who works the bucket: desk runners, Modal's crons and dispatchers, and the sweep."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial

from processor.attempt import Claim
from processor.clock import StoreClock
from processor.dispatch import process as process_job
from processor.dispatch import take_over
from processor.errors import DropbatchError, StoreError
from processor.handler import Handler, Stores
from processor.leases.authority import Authority
from processor.leases.lease import Leases
from processor.machine import Machine
from processor.nightly import Mornings
from processor.policy import Policy
from processor.sweep import sweep
from processor.tick import tick
from tests.simulation.bucket import Bucket, Dict, SimLeases, SimStore, WorldClock
from tests.simulation.launcher import Labour, SimLauncher, Submitted, handlers
from tests.simulation.world import Process, World

POLICY = Policy(stop_poll_s=60.0, cancel_poll_s=60.0)
"""Nobody is asked to stop here; looking for that, and for cancels, less often costs no interleaving."""
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
    ticks: int = 0
    handlers: dict[str, Handler] = field(init=False)

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

    # --- a desk: one process that ticks and dispatches, restarted when it dies -------

    def start_desk(self, name: str, *, delay_s: float = 0.0, leases: Dict | None = None) -> None:
        process = self.process(name)
        process.at_death.append(lambda: self._restart_desk(name, leases))
        body = _Desk(self, process, leases).loop
        self.world.spawn(process, name, body, delay_s=delay_s)

    def _restart_desk(self, name: str, leases: Dict | None) -> None:
        if not self.closing:
            self.start_desk(name, delay_s=self.world.random.uniform(5, 120), leases=leases)

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


class _Desk:
    """`processor.run`'s loop, with actors for threads."""

    def __init__(self, fleet: Fleet, process: Process, leases: Dict | None) -> None:
        self._fleet = fleet
        self._process = process
        self._machine = fleet.machine(process, remote=False, leases=leases)
        self._mornings = Mornings(self._machine)
        self._busy: set[str] = set()

    def loop(self) -> None:
        fleet, world = self._fleet, self._fleet.world
        while not fleet.closing:
            fleet.ticks += 1
            before = fleet.state
            report = tick(self._machine, capacity=2 - len(self._busy), busy=frozenset(self._busy))
            for claim in report.claims:
                self._busy.add(claim.lease.job_id)
                world.spawn(self._process, "desk job", partial(self._work, claim))
            if self._mornings.due:
                self._mornings.look()
            fleet.rest(before, fleet.state, (2.0, 60.0, 180.0))

    def _work(self, claim: Claim) -> None:
        try:
            manifest = process_job(self._machine, claim)
            self._mornings.note([manifest] if manifest else [])
        finally:
            self._busy.discard(claim.lease.job_id)
