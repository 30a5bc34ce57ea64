"""Stores and lease stores that fail on demand, before an effect or after it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from processor.errors import DropbatchError, StoreUnavailable
from processor.leases.protocol import LeaseStore, Record
from processor.store.protocol import Capabilities, Download, ObjectInfo, Page, Store

T = TypeVar("T")


class When(StrEnum):
    """Which side of the effect a fault is on."""

    BEFORE = "before"
    """The request never arrived: nothing changed."""
    AFTER = "after"
    """The reply was lost: the effect stands."""


@dataclass
class Fault:
    """What is to go wrong, once or more.

    Args:
        operation: e.g. "put"; "*" for any.
        when: before the effect, or after it.
        key: part of the key that is hit; "" hits all.
        times: how many calls fail; then the fault is spent.
        after: how many matching calls go well first.
        error: makes what is raised.
    """

    operation: str
    when: When = When.BEFORE
    key: str = ""
    times: int = 1
    after: int = 0
    error: Callable[[], DropbatchError] = field(default=lambda: StoreUnavailable("an injected fault"))

    def hits(self, operation: str, key: str) -> bool:
        """Whether this call fails; counts it."""
        if self.operation not in ("*", operation) or self.key not in key or self.times == 0:
            return False
        if self.after:
            self.after -= 1
            return False
        self.times -= 1
        return True


class FaultPlan:
    """Faults to come, shared by the wrappers that consult it. Thread-safe.

    `decide`, if given, is asked about each call that no planned fault hits, so that a
    seeded simulation can draw its faults: it returns when to fail, or None.
    """

    def __init__(self, *faults: Fault, decide: Callable[[str, str], When | None] | None = None) -> None:
        self._faults = list(faults)
        self._decide = decide
        self._lock = threading.Lock()
        self.struck: list[tuple[str, str]] = []
        """Operation and key of each call that failed so far."""

    def add(self, fault: Fault) -> None:
        """Plan another."""
        with self._lock:
            self._faults.append(fault)

    def run(self, operation: str, key: str, effect: Callable[[], T]) -> T:
        """Carry out a call, or fail before or after it."""
        with self._lock:
            fault = next((each for each in self._faults if each.hits(operation, key)), None)
            if fault is None and self._decide and (when := self._decide(operation, key)):
                fault = Fault(operation, when)
            if fault is not None:
                self.struck.append((operation, key))
        if fault is None:
            return effect()
        if fault.when is When.AFTER:
            effect()
        raise fault.error()


class FaultyStore:
    """A `Store` that fails as its plan says. Operations: "list" (a page), "stat", "get",
    "put", "copy", "delete"; the key of a copy is its target."""

    def __init__(self, inner: Store, plan: FaultPlan) -> None:
        self.inner = inner
        self.plan = plan

    @property
    def url(self) -> str:
        return self.inner.url

    @property
    def capabilities(self) -> Capabilities:
        return self.inner.capabilities

    def list(self, prefix: str, *, versions: bool = False, start_after: str = "") -> Iterator[Page]:
        pages = self.inner.list(prefix, versions=versions, start_after=start_after)
        while (page := self.plan.run("list", prefix, lambda: next(pages, None))) is not None:
            yield page

    def stat(self, key: str, *, version: str | None = None) -> ObjectInfo:
        return self.plan.run("stat", key, lambda: self.inner.stat(key, version=version))

    def get(self, key: str, *, version: str | None = None) -> Download:
        return self.plan.run("get", key, lambda: self.inner.get(key, version=version))

    def put(
        self,
        key: str,
        data: bytes | Path,
        *,
        media_type: str = "application/octet-stream",
        if_absent: bool = False,
    ) -> ObjectInfo:
        return self.plan.run(
            "put", key, lambda: self.inner.put(key, data, media_type=media_type, if_absent=if_absent)
        )

    def copy(self, source: str, target: str, *, version: str | None = None) -> ObjectInfo:
        return self.plan.run("copy", target, lambda: self.inner.copy(source, target, version=version))

    def delete(self, key: str, *, version: str) -> None:
        self.plan.run("delete", key, lambda: self.inner.delete(key, version=version))

    def close(self) -> None:
        self.inner.close()


class FaultyLeases:
    """A `LeaseStore` that fails as its plan says: "create", "read", "write", "delete"."""

    def __init__(self, inner: LeaseStore, plan: FaultPlan) -> None:
        self.inner = inner
        self.plan = plan

    @property
    def backend(self) -> str:
        return self.inner.backend

    def create(self, key: str, value: Record) -> Record:
        return self.plan.run("create", key, lambda: self.inner.create(key, value))

    def read(self, key: str) -> Record | None:
        return self.plan.run("read", key, lambda: self.inner.read(key))

    def write(self, key: str, value: Record) -> None:
        self.plan.run("write", key, lambda: self.inner.write(key, value))

    def delete(self, key: str) -> None:
        self.plan.run("delete", key, lambda: self.inner.delete(key))
