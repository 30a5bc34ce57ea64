"""A whole machine in memory, for tests and simulations."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from processor.clock import Clock, StoreClock
from processor.events import Event
from processor.handler import Handler, Stores
from processor.launch import LocalConfig, LocalLauncher
from processor.leases.authority import Authority
from processor.leases.lease import Leases
from processor.leases.memory import MemoryLeases
from processor.leases.protocol import LeaseStore
from processor.machine import Machine
from processor.policy import Policy
from processor.store import Store
from processor.store.memory import MemoryStore
from processor.testing.clock import ManualClock

PATIENT = Policy(retry_delay_s=0.0, founding_grace_s=0.0)
"""The usual policy without its pauses."""


@dataclass
class Bench:
    """A machine with everything at hand that a test looks at."""

    work_dir: Path
    handler: Handler
    clock: ManualClock = field(default_factory=ManualClock)
    store: Store | None = None
    leases: LeaseStore = field(default_factory=MemoryLeases)
    policy: Policy = PATIENT
    events: list[Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.store is None:
            self.store = MemoryStore(clock=self.clock)
        self._nonces = itertools.count(1)

    @property
    def main(self) -> Store:
        if self.store is None:
            raise AssertionError("a bench always has a store")
        return self.store

    def machine(self, *, clock: Clock | None = None, leases: LeaseStore | None = None) -> Machine:
        """One more runner on the same bucket."""
        leases = leases or self.leases
        synced = StoreClock(clock or self.clock)
        stores = Stores.single(self.main)
        handlers = {self.handler.kind: self.handler}

        def nonce() -> str:
            return f"{next(self._nonces):016x}"

        return Machine(
            stores=stores,
            leases=Leases(leases, synced, lease_s=self.policy.lease_s, margin_s=self.policy.margin_s),
            authority=Authority(self.main, leases, synced, self.policy, nonce=nonce),
            clock=synced,
            launcher=LocalLauncher(handlers, stores, LocalConfig(self.work_dir), self.events.append),
            handlers=handlers,
            policy=self.policy,
            observe=self.events.append,
            nonce=nonce,
            host="test",
        )

    def with_policy(self, **changes: Any) -> None:
        self.policy = replace(self.policy, **changes)

    def drop(self, job: Any, key: str = "inbox/jobs/a.json") -> None:
        """Put a job (or raw bytes) in the inbox."""
        self.main.put(key, job if isinstance(job, bytes) else json.dumps(job).encode())

    def keys(self, prefix: str = "") -> list[str]:
        return [item.key for page in self.main.list(prefix) for item in page.objects]

    @property
    def all_keys(self) -> set[str]:
        return set(self.keys())

    def read(self, key: str) -> Any:
        with self.main.get(key) as download:
            return json.loads(download.body.read())

    def manifests(self) -> list[dict[str, Any]]:
        found = [key for key in self.keys("comfy_outputs/") if key.count("/") == 2]
        return [self.read(key) for key in found if key.endswith("/manifest.json")]
