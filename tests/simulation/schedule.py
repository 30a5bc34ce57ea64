"""One schedule from its seed to its verdict: chaos, then peace, then the checks, then the sweep."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from processor.layout import INBOX
from processor.leases.protocol import Record
from processor.policy import Policy
from processor.sweep import sweep
from processor.tick import tick
from tests.simulation.bucket import Bucket, Dict, SimStore
from tests.simulation.faults import Chance, Faults, Kind
from tests.simulation.fleet import POLICY, Fleet
from tests.simulation.launcher import Labour
from tests.simulation.watch import Upload, Watch
from tests.simulation.world import Process, World

CHAOS_S = 3600.0
"""Faults stop at the latest after so long."""
PEACE_TICKS = 60
"""Within so many ticks of a healthy runner the inbox must be empty."""
_DAY_S = 86_400.0

STORM = {
    Kind.UNAVAILABLE: 3.0,
    Kind.DENIED: 0.5,
    Kind.LOST_REPLY: 3.0,
    Kind.LATE: 2.0,
    Kind.SLEEP: 2.0,
    Kind.SUSPEND: 0.5,
    Kind.SLOW_REPLY: 1.0,
    Kind.CRASH_BEFORE: 2.0,
    Kind.CRASH_AFTER: 3.0,
}


@dataclass
class Schedule:
    """Everything of one run: who takes part, what is watched, and what came of it."""

    world: World
    bucket: Bucket
    leases: Dict
    fleet: Fleet
    watch: Watch
    user: User = field(init=False)
    undisturbed: bool = False
    """Nothing was made to go wrong."""

    def __post_init__(self) -> None:
        self.user = User(self)

    @classmethod
    def build(
        cls,
        seed: int,
        faults: Faults,
        *,
        labour: Labour = Labour(),  # noqa: B008 - frozen
        duplicates: float = 0.0,
        policy: Policy | None = None,
        **bucket: Any,
    ) -> Schedule:
        world = World(seed, faults)
        store = Bucket(world, **bucket)
        leases = Dict(world)
        watch = Watch(world, store, leases)
        store.wrote = watch.wrote
        leases.asked, leases.granted = watch.asked, watch.granted
        fleet = Fleet(world, store, leases, labour, watch.submitted, policy or POLICY, duplicates=duplicates)
        return cls(world, store, leases, fleet, watch)

    def wipe(self) -> None:
        """The lease store is deleted and stands empty."""
        self.world.count("lease store wiped")
        self.leases.wipe()

    def after_an_election(self, action: Callable[[], None], *, chance: float) -> None:
        """Now and then do something shortly after an outcome was elected."""
        judge, world = self.leases.granted, self.world

        def granted(process: Process, key: str, value: Record) -> None:
            judge(process, key, value)
            if key.startswith("commit/") and world.chaotic and world.random.random() < chance:
                fate = Process(world, "user fate")
                world.spawn(fate, "fate", action, delay_s=world.random.uniform(0, 5))

        self.leases.granted = granted

    def other_leases(self) -> Dict:
        return Dict(self.world, name="directory:/elsewhere")

    # --- phases -------------------------------------------------------------------------

    def chaos(self) -> None:
        """Let everybody go on until all drops are settled, or time is up; then let them end."""
        world = self.world
        world.run(until=self._is_over)
        self.fleet.closing = True
        world.chaotic = False
        if isinstance(world.faults, Chance):
            world.faults.on = False
        world.run()

    def _is_over(self) -> bool:
        if self.user.awaits:
            return False
        return self.world.now_s > CHAOS_S or self.bucket.is_empty(INBOX)

    def peace(self) -> None:
        """One healthy runner; bounded ticks."""
        fleet, world = self.fleet, self.world
        fleet.closing = False
        process = Process(world, "healer")
        machine = fleet.machine(process, remote=False)

        def heal() -> None:
            from processor.dispatch import process as process_job

            for _ in range(PEACE_TICKS):
                for claim in tick(machine, capacity=10).claims:
                    process_job(machine, claim)
                if not self.bucket.keys(INBOX) and not self._versions_left():
                    return
                world.pause(60)

        world.spawn(process, "healer", heal)
        world.run()
        fleet.closing = True

    def _versions_left(self) -> bool:
        (page,) = self.bucket.inner.list(INBOX, versions=self.bucket.versions)
        return bool(page.objects)

    def aftermath(self) -> None:
        """Days later the sweep runs."""
        world = self.world
        process = Process(world, "sweeper")
        machine = self.fleet.machine(process, remote=False)

        def clean() -> None:
            world.pause(3 * _DAY_S)
            tick(machine, capacity=0)
            sweep(machine)

        world.spawn(process, "sweeper", clean)
        world.run()


class User:
    """Whoever drops, re-uploads, cancels and deletes; no fault strikes them."""

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule
        self._process = Process(schedule.world, "user")
        self._store = SimStore(schedule.bucket, self._process)
        self.awaits = 0
        """Actions that are still to come."""
        self.done = True

    def at(self, delay_s: float, action: Any) -> None:
        """Do something later."""
        self.awaits += 1

        def act() -> None:
            action()
            self.awaits -= 1

        self._schedule.world.spawn(self._process, "user", act, delay_s=delay_s)

    def drop(self, job: dict[str, Any], key: str = "inbox/jobs/a.json") -> Upload:
        """Upload a job; an older version under the same key is replaced."""
        watch, world = self._schedule.watch, self._schedule.world
        info = self._store.put(key, json.dumps(job).encode())
        for older in watch.uploads:
            if older.key == key and older.replaced_at is None:
                older.replaced_at = world.now_s
        version = info.version or self._schedule.bucket.inner.stat(key).version
        upload = Upload(key, version, world.now_s)
        watch.uploads.append(upload)
        return upload

    def delete(self, key: str) -> None:
        """Delete a drop by name."""
        self._store.hide(key)
        for older in self._schedule.watch.uploads:
            if older.key == key and older.replaced_at is None:
                older.replaced_at = self._schedule.world.now_s

    def cancel(self, upload: Upload) -> None:
        upload.cancelled_at = self._schedule.world.now_s
        self._store.put(f"inbox/control/cancel/{upload.job_id}", b"")
