"""One schedule from its seed to its verdict: chaos, then peace, then the checks, then the sweep."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from processor.datasets import folder_key
from processor.dispatch import process as process_job
from processor.layout import INBOX, RECURRING
from processor.leases.protocol import Record
from processor.nightly import Mornings
from processor.parallel import each
from processor.policy import Policy
from processor.schedule import Night
from processor.sweep import sweep
from processor.tick import tick
from tests.simulation.bucket import Bucket, Dict, SimStore
from tests.simulation.faults import Chance, Faults, Kind
from tests.simulation.fleet import POLICY, Fleet
from tests.simulation.folders import Batch, Says, Uploaded, marker
from tests.simulation.launcher import Labour
from tests.simulation.watch import Upload, Watch
from tests.simulation.world import Process, World

CHAOS_S = 3600.0
"""Faults stop at the latest after so long."""
PEACE_TICKS = 60
"""Within so many ticks of a healthy runner the inbox must be empty."""
_DAY_S = 86_400.0
_SWEPT = b"2025-12-30"
"""The bucket is not new: days before the simulation's first have been swept."""
_FOUNDED_S = 30.0
"""So long after an authority was written nobody founds another upon an older answer."""

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
    due: set[str] = field(default_factory=set)
    """Ids of the jobs that recurring templates owe."""
    rest_s: float = 60.0
    """Between two ticks of the healthy runner."""

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
        store.inner.put("state/swept.txt", _SWEPT)
        leases = Dict(world)
        watch = Watch(world, store, leases)
        store.wrote = watch.wrote
        leases.asked, leases.granted = watch.asked, watch.granted
        fleet = Fleet(world, store, leases, labour, watch.submitted, policy or POLICY, duplicates=duplicates)
        return cls(world, store, leases, fleet, watch)

    def wipe(self) -> None:
        """The lease store is deleted and stands empty; not while somebody may still be founding
        the bucket's authority: see docs/reliability.md."""
        self.user.wait_until(lambda: self.world.now_s > self.watch.founded_at + _FOUNDED_S)
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

    def as_a_lease_is_asked_for(self, action: Callable[[], None], *, chance: float) -> None:
        """Now and then do something just before a lease is granted, with an elected manifest on its way."""
        judge, world = self.leases.asked, self.world

        def asked(process: Process, key: str, value: Record) -> None:
            judge(process, key, value)
            if not key.startswith("lease/") or not world.chaotic or not self._a_manifest_is_on_its_way:
                return
            if world.random.random() < chance:
                world.spawn(Process(world, "user fate"), "fate", action)

        self.leases.asked = asked

    @property
    def _a_manifest_is_on_its_way(self) -> bool:
        elected = (key.removeprefix("commit/") for key in self.leases.records if key.startswith("commit/"))
        return any(job not in self.watch.stood_at for job in elected)

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
        return self.world.now_s > CHAOS_S or self._nothing_waits()

    def _nothing_waits(self) -> bool:
        """Whether the inbox is empty but for recurring templates, which stay."""
        return self.bucket.is_empty(INBOX, but_for=RECURRING)

    def peace(self) -> None:
        """One healthy runner; bounded ticks."""
        fleet, world = self.fleet, self.world
        fleet.closing = False
        process = Process(world, "healer")
        machine = fleet.machine(process, remote=False, leases=self._ruling())

        mornings = Mornings(machine)

        def heal() -> None:
            for _ in range(PEACE_TICKS):
                # Side by side: a lease would run out while another job's long task is worked.
                for _, manifest in each(partial(process_job, machine), tick(machine, capacity=10).claims):
                    mornings.note([manifest] if manifest else [])
                if not self._versions_left():
                    break
                if mornings.due:
                    mornings.look()
                world.pause(self.rest_s)
            self._wait_for_the_morning(machine.policy.night, mornings)

        world.spawn(process, "healer", heal)
        world.run()
        fleet.closing = True

    def _ruling(self) -> Dict:
        """The lease store that rules the bucket, should a foreigner have founded it."""
        foreign = self.fleet.foreign
        return foreign if foreign and foreign.name == self.watch.ruler else self.leases

    def _versions_left(self) -> bool:
        (page,) = self.bucket.inner.list(INBOX, versions=self.bucket.versions)
        return any(not item.key.startswith(RECURRING) for item in page.objects)

    def _wait_for_the_morning(self, night: Night | None, mornings: Mornings) -> None:
        """Where there are nights, the one that is open ends and is told of."""
        if night is not None:
            left = (night.begun(self.world.now).closes - self.world.now).total_seconds()
            self.world.pause(max(0.0, left) + 1.0)
            mornings.look()

    def aftermath(self) -> None:
        """Days later the sweep runs."""
        world = self.world
        process = Process(world, "sweeper")
        machine = self.fleet.machine(process, remote=False, leases=self._ruling())

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
        self._schedule.fleet.tell()
        return upload

    def put(self, key: str, document: dict[str, Any]) -> None:
        """Upload a JSON file that is no drop."""
        self._store.put(key, json.dumps(document).encode())

    def delete(self, key: str) -> None:
        """Delete a drop by name."""
        self._store.hide(key)
        for older in self._schedule.watch.uploads:
            if older.key == key and older.replaced_at is None:
                older.replaced_at = self._schedule.world.now_s

    def cancel(self, upload: Upload) -> None:
        upload.cancelled_at = self._schedule.world.now_s
        self._store.put(f"inbox/control/cancel/{upload.job_id}", b"")

    def upload(self, dataset: str, files: dict[str, bytes], *, says: Says, pause_s: float = 0.0) -> None:
        """Put files into a dataset's folder, one after the other."""
        name, beside = marker(says, files)
        if says == "listed":
            self._store.put(folder_key(dataset) + name, beside)
        batch = Batch(dataset, len(files))
        folders = self._schedule.watch.folders
        folders.batches.append(batch)
        for file, data in files.items():
            key = folder_key(dataset) + file
            info = self._store.put(key, data)
            for older in (old for sent in folders.batches for old in sent.files if old.key == key):
                older.replaced = True
            version = info.version or self._schedule.bucket.inner.stat(key).version
            batch.files.append(Uploaded(key, version, hashlib.sha256(data).hexdigest()))
            self._schedule.world.pause(pause_s * self._schedule.world.random.random())
        if says == "ready":
            self._store.put(folder_key(dataset) + name, beside)

    def wait_until(self, condition: Callable[[], bool], *, at_most_s: float = 1800.0) -> None:
        """Look now and then, as people do."""
        world = self._schedule.world
        until_s = world.now_s + at_most_s
        while not condition() and world.now_s < until_s:
            world.pause(2.0)
