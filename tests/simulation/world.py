"""Virtual time and the scheduler: greenlets that give way at every call they make.

An actor runs until it asks the outside for something (the store, the lease store, the
launcher, sleep). Then it gives way, and whoever is due next by virtual time goes on. All
that varies is drawn from one seeded source, so a seed is a schedule.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
import random
import traceback
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from greenlet import getcurrent, greenlet

from tests.simulation.faults import Faults, Kind

T = TypeVar("T")

EPOCH = datetime(2026, 1, 1, 12, tzinfo=UTC)


_LIVELOCK = 5000
"""So many turns without time passing, and somebody spins."""


_GRAIN_S = 1e-6
"""Time passes with every turn: a wait shorter than a float can tell would never end."""


class Killed(BaseException):
    """The process died here. Nothing of it runs on, not even its clean-up's calls."""


class Process:
    """What dies together: a cron's tick, a dispatcher, a worker, or a whole desk runner."""

    def __init__(self, world: World, name: str, *, skew_s: float = 0.0) -> None:
        self.world = world
        self.name = name
        self.skew_s = skew_s
        """How far its wall clock is off."""
        self.alive = True
        self.suspended_s = 0.0
        """How long it has slept with its lid closed, unnoticed by its monotonic clock."""
        self.backend = ""
        """Which lease store it is configured with."""
        self.reads: dict[str, float] = {}
        """When it last read each drop; some invariants ask."""
        self.noticed: set[tuple[int, str, int]] = set()
        """Epochs of jobs' leases that it has seen standing, and in which life of the lease store."""
        self.in_vain: set[str] = set()
        """Jobs of which it asked who has them and got no answer."""
        self.leased: dict[str, tuple[float, dict[str, float]]] = {}
        """When it last took each job's lease, and what it had read by then."""
        self.at_death: list[Callable[[], None]] = []

    def kill(self) -> None:
        """Stop all of it, here and now."""
        self.alive = False
        self.world.count("process killed")
        for tell in self.at_death:
            tell()


class Actor:
    """One thread of control within a process."""

    fiber: greenlet

    def __init__(self, process: Process, name: str, serial: int) -> None:
        self.process = process
        self.name = name
        self.serial = serial
        self.reads: dict[str, float] = {}
        self.sent_s = 0.0
        """When it made the call that it is in."""
        self.turn = 0
        """Which of its entries in the queue is the valid one: a wake-up overtakes a sleep."""


class World:
    """One schedule: its time, its chance, who runs in it, and what they did.

    Args:
        seed: decides everything.
        faults: asked at every call what goes wrong with it.
    """

    def __init__(self, seed: int, faults: Faults) -> None:
        self.seed = seed
        self.random = random.Random(seed)  # noqa: S311 - chance, not secrecy
        self.faults = faults
        self.now_s = 0.0
        self.calls = 0
        self.counts: dict[str, int] = {}
        self.trace: list[tuple[float, str, str, str, str]] = []
        self.chaotic = True
        """Until the scenario's peace begins."""
        self.defects: list[str] = []
        """Tracebacks of whatever escaped an actor: always a violation."""
        self.current: Actor | None = None
        self._queue: list[tuple[float, int, int, Actor]] = []
        self._order = itertools.count()
        self._living: dict[int, Actor] = {}
        self._hub = getcurrent()

    # --- actors --------------------------------------------------------------------

    def spawn(self, process: Process, name: str, body: Callable[[], None], *, delay_s: float = 0.0) -> Actor:
        """Start another actor of a process, `delay_s` from now."""
        actor = Actor(process, name, next(self._order))
        actor.fiber = greenlet(lambda: self._live(actor, body), self._hub)
        self._living[id(actor)] = actor
        self._wake_at(actor, self.now_s + delay_s)
        return actor

    def _live(self, actor: Actor, body: Callable[[], None]) -> None:
        try:
            body()
        except Killed:
            pass
        except Exception:  # noqa: BLE001 - reported as a violation, with the schedule's seed
            self.defects.append(f"{actor.name}: {traceback.format_exc()}")
        finally:
            self._living.pop(id(actor), None)

    @property
    def busy(self) -> int:
        """How many actors have not ended."""
        return len(self._living)

    def run(self, until: Callable[[], bool] = lambda: False) -> None:
        """Let actors go on until none is left or, asked between two turns, `until` says so."""
        turns, since = 0, self.now_s
        while self._queue and not until():
            turns += 1
            if self.now_s > since:
                turns, since = 0, self.now_s
            elif turns > _LIVELOCK:
                self.defects.append(f"livelock: {self.current and self.current.name} spins at {since:.1f} s")
                return
            at, _, turn, actor = heapq.heappop(self._queue)
            if turn != actor.turn or actor.fiber.dead:
                continue
            self.now_s = max(self.now_s, at)
            self.current = actor
            if actor.process.alive:
                actor.fiber.switch()
            else:
                self._bury(actor)
        self.current = None

    def close(self) -> None:
        """End whoever is left, so that no fibre outlives its schedule."""
        for actor in list(self._living.values()):
            actor.process.alive = False
            self._bury(actor)
        self._queue.clear()

    def _bury(self, actor: Actor) -> None:
        self._living.pop(id(actor), None)
        if actor.fiber:  # one that never ran has nothing to unwind
            actor.fiber.throw(Killed)

    # --- time ----------------------------------------------------------------------

    @property
    def now(self) -> datetime:
        """The store's clock, which is the true one."""
        return EPOCH + timedelta(seconds=self.now_s)

    def pause(self, seconds: float) -> None:
        """Give way; the actor that calls goes on `seconds` later, or when it is woken."""
        actor = self.current
        if actor is None:  # the scenario itself, outside any actor
            self.now_s += seconds
            return
        if not actor.process.alive:
            raise Killed
        at = self.now_s + max(seconds, _GRAIN_S)
        if self._queue and at < self._queue[0][0]:
            self.now_s = at  # nobody is due before: as if it had given way
            return
        self._wake_at(actor, at)
        self._hub.switch()

    def wake(self, actor: Actor) -> None:
        """End an actor's pause now."""
        if not actor.fiber.dead:
            self._wake_at(actor, self.now_s)

    def _wake_at(self, actor: Actor, at: float) -> None:
        actor.turn += 1
        heapq.heappush(self._queue, (at, next(self._order), actor.turn, actor))

    def later(self, delay_s: float, effect: Callable[[], Any]) -> None:
        """Let a request that its sender has given up land after all."""
        self.spawn(Process(self, "network"), "late", lambda: self._land(effect), delay_s=delay_s)

    @staticmethod
    def _land(effect: Callable[[], Any]) -> None:
        try:
            effect()
        except Exception:  # noqa: BLE001 - an answer that nobody hears
            return

    # --- calls ---------------------------------------------------------------------

    def call(self, process: Process, operation: str, key: str, effect: Callable[[], T]) -> T:
        """Carry out one request of a process: others run meanwhile, and it may go wrong."""
        if not process.alive:
            raise Killed
        self.calls += 1
        kind = self.faults.draw(self, process, operation, key)
        actor = self.current
        if actor is not None:
            actor.sent_s = self.now_s
        self.trace.append((self.now_s, actor.name if actor else "-", operation, key, kind or ""))
        self.pause(self.random.random() ** 3 * 2)
        if kind is None:
            return effect()
        self.count(kind)
        return self._go_wrong(process, kind, effect)

    def _go_wrong(self, process: Process, kind: Kind, effect: Callable[[], T]) -> T:
        match kind:
            case Kind.CRASH_BEFORE:
                self.kill(process)
            case Kind.SLEEP:
                self.pause(self.faults.long_s(self))
            case Kind.SUSPEND:
                seconds = self.faults.long_s(self)
                process.suspended_s += seconds
                self.pause(seconds)
            case Kind.SLOW_REPLY:
                result = effect()
                self.pause(self.faults.long_s(self))
                return result
            case Kind.LATE:
                self.later(self.random.uniform(1, 50), effect)
                raise self.faults.error(kind)
            case Kind.LOST_REPLY:
                effect()
                raise self.faults.error(kind)
            case Kind.CRASH_AFTER:
                effect()
                self.kill(process)
            case _:
                raise self.faults.error(kind)
        return effect()

    def kill(self, process: Process) -> None:
        """End the process of the actor that calls."""
        process.kill()
        raise Killed

    # --- the record ----------------------------------------------------------------

    def count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1

    def token(self) -> str:
        """16 hex digits that no other caller gets."""
        return f"{self.random.getrandbits(64):016x}"

    @property
    def trace_hash(self) -> str:
        """What every call of every actor was, in one word."""
        return hashlib.sha256(repr(self.trace).encode()).hexdigest()[:16]
