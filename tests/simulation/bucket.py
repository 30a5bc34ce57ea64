"""The bucket and the lease store as one process sees them: shared, slow, lagging, failing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import TypeVar

from processor.errors import AccessDenied, NotFound, StoreUnavailable, VersionMismatch
from processor.leases.protocol import Record
from processor.store import Capabilities, Download, ObjectInfo, Page
from processor.store.memory import MemoryStore
from tests.simulation.world import EPOCH, Actor, Process, World

T = TypeVar("T")

_NOTED = ("inbox/", "comfy_outputs/")
_EXPIRY_S = 7 * 86_400.0
"""A Modal Dict forgets an entry that nobody read or wrote for 7 days."""


class WorldClock:
    """The true time, for the store; a process's wrong wall clock, for the machine."""

    def __init__(self, world: World, process: Process | None = None) -> None:
        self._world = world
        self._process = process
        self._start = EPOCH + timedelta(seconds=process.skew_s if process else 0.0)

    def now(self) -> datetime:
        return self._start + timedelta(seconds=self._world.now_s)

    def monotonic(self) -> float:
        """On Linux it stands still while a laptop sleeps."""
        return self._world.now_s - (self._process.suspended_s if self._process else 0.0)

    def sleep(self, seconds: float) -> None:
        self._world.pause(seconds)


Wrote = Callable[[Actor | None, str, str, bytes], None]
"""Told of every effect: who, the operation, the key, the bytes (of a put)."""


@dataclass
class Bucket:
    """What all processes share of the store.

    Args:
        versions: whether it keeps them, as B2 does.
        atomic_delete: without versions, whether comparing and removing are one step (a folder)
            or two (another S3 server).
        lag_s: how old a listing may be.
        put_if_absent: whether the store has it (B2 doesn't).
    """

    world: World
    versions: bool = True
    atomic_delete: bool = True
    lag_s: float = 0.0
    put_if_absent: bool = False
    missing_is_403: bool = False
    wrote: Wrote = lambda *_: None
    inner: MemoryStore = field(init=False)
    changes: list[tuple[float, str, list[ObjectInfo]]] = field(default_factory=list)
    """When each key changed, and what a listing of it said before."""
    changed: int = 0
    _emptiness: dict[str, bool] = field(default_factory=dict)
    """What `is_empty` found, by prefix, until a key under it changes."""

    def __post_init__(self) -> None:
        self.inner = MemoryStore(
            versions=self.versions, put_if_absent=self.put_if_absent, clock=WorldClock(self.world)
        )

    def before_change(self, key: str) -> None:
        """Remember what a lagging listing will go on showing."""
        self.changed += 1
        for prefix in [prefix for prefix in self._emptiness if key.startswith(prefix)]:
            del self._emptiness[prefix]
        if self.lag_s:
            self.changes.append((self.world.now_s, key, self.versions_of(key)))

    def versions_of(self, key: str) -> list[ObjectInfo]:
        """Every version of one key, newest first."""
        kept = self.inner._kept.get(key)
        return list(self.inner._listed(key, self.versions)) if kept else []

    def keys(self, prefix: str) -> list[str]:
        """What stands, truly, under a prefix."""
        return [item.key for page in self.inner.list(prefix) for item in page.objects]

    def is_empty(self, prefix: str, *, but_for: str) -> bool:
        """Whether nothing stands under a prefix, but for what begins so; asked after every turn, and
        so looked up only after changes."""
        empty = self._emptiness.get(prefix)
        if empty is None:
            empty = all(key.startswith(but_for) for key in self.keys(prefix))
            self._emptiness[prefix] = empty
        return empty

    def read(self, key: str) -> bytes:
        with self.inner.get(key) as download:
            return download.body.read()

    def view(self, prefix: str, versions: bool) -> Page:
        """A listing that may be up to `lag_s` old, key by key a state that once was."""
        (page,) = self.inner.list(prefix, versions=versions)
        if not self.lag_s or self.world.random.random() < 0.5:
            return page
        since = self.world.now_s - self.world.random.random() * self.lag_s
        stale: dict[str, list[ObjectInfo]] = {}
        for at, key, before in reversed(self.changes):
            if at <= since:
                break
            if key.startswith(prefix):
                stale[key] = before
        if not stale:
            return page
        self.world.count("listing that lagged")
        objects = [item for item in page.objects if item.key not in stale]
        for before in stale.values():
            objects += [item for item in before if versions or (item.latest and not item.delete_marker)]
        objects.sort(key=lambda item: item.key)  # stable: newest first within a key
        return Page(objects, page.date)


class SimStore:
    """One process's connection to the bucket."""

    url = "sim://bucket"

    def __init__(self, bucket: Bucket, process: Process) -> None:
        self._bucket = bucket
        self._process = process
        self._world = bucket.world

    @property
    def capabilities(self) -> Capabilities:
        return self._bucket.inner.capabilities

    def list(self, prefix: str, *, versions: bool = False, start_after: str = "") -> Iterator[Page]:
        yield self._call("list", prefix, lambda: self._bucket.view(prefix, versions))

    def stat(self, key: str, *, version: str | None = None) -> ObjectInfo:
        return self._ask("stat", key, lambda: self._bucket.inner.stat(key, version=version))

    def get(self, key: str, *, version: str | None = None) -> Download:
        reader = self._world.current

        def effect() -> Download:
            download = self._bucket.inner.get(key, version=version)
            if key.startswith(_NOTED):
                self._process.reads[key] = self._world.now_s
                if reader is not None:
                    reader.reads[key] = self._world.now_s
            return download

        return self._ask("get", key, effect)

    def put(
        self,
        key: str,
        data: bytes | Path,
        *,
        media_type: str = "application/octet-stream",
        if_absent: bool = False,
    ) -> ObjectInfo:
        content = data.read_bytes() if isinstance(data, Path) else data
        writer = self._world.current

        def effect() -> ObjectInfo:
            self._bucket.before_change(key)
            info = self._bucket.inner.put(key, content, media_type=media_type, if_absent=if_absent)
            self._bucket.wrote(writer, "put", key, content)
            return info

        return self._call("put", key, effect)

    def copy(self, source: str, target: str, *, version: str | None = None) -> ObjectInfo:
        writer = self._world.current

        def effect() -> ObjectInfo:
            self._bucket.before_change(target)
            info = self._bucket.inner.copy(source, target, version=version)
            self._bucket.wrote(writer, "copy", target, b"")
            return info

        return self._call("copy", target, effect)

    def delete(self, key: str, *, version: str) -> None:
        if not self._bucket.versions and not self._bucket.atomic_delete:
            # Another S3 server: compared with what HEAD says, removed by name, with a gap between.
            if self.stat(key).version != version:
                raise VersionMismatch("another version stands there", where=key)
            self._call("delete", key, lambda: self._remove(key, self._standing(key)))
        else:
            self._call("delete", key, lambda: self._remove(key, version))

    def hide(self, key: str) -> None:
        """Delete by name, as people do with other tools."""

        def effect() -> None:
            self._bucket.before_change(key)
            self._bucket.inner.hide(key)

        self._call("hide", key, effect)

    def close(self) -> None: ...

    def _remove(self, key: str, version: str) -> None:
        self._bucket.before_change(key)
        self._bucket.inner.delete(key, version=version)
        self._bucket.wrote(self._world.current, "delete", f"{key}@{version}", b"")

    def _standing(self, key: str) -> str:
        try:
            return self._bucket.inner.stat(key).version
        except NotFound:
            return ""

    def _ask(self, operation: str, key: str, effect: Callable[[], T]) -> T:
        """A read; where a missing key answers 403, the listing tells a cap from absence."""
        if not self._bucket.missing_is_403:
            return self._call(operation, key, effect)
        try:
            return self._call(operation, key, effect)
        except (NotFound, AccessDenied):
            (page,) = self.list(key)
            if any(item.key == key for item in page.objects):
                raise AccessDenied("refused", where=key) from None
            raise NotFound("not listed either", where=key) from None

    def _call(self, operation: str, key: str, effect: Callable[[], T]) -> T:
        return self._world.call(self._process, operation, key, effect)


@dataclass
class Dict:
    """A linearizable dictionary with put-if-absent, as Modal's: what lease records lie in."""

    world: World
    name: str = "modal-dict:leases"
    records: dict[str, Record] = field(default_factory=dict)
    touched: dict[str, float] = field(default_factory=dict)
    written: dict[str, float] = field(default_factory=dict)
    released: set[tuple[str, int]] = field(default_factory=set)
    """Leases that were ever given back: a late renewal may land upon that."""
    doubtful: set[tuple[str, int]] = field(default_factory=set)
    """Leases renewed by a process whose monotonic clock stood still: it thinks that it is earlier."""
    wipes: int = 0
    changed: int = 0
    asked: Callable[[Process, str, Record], None] = lambda *_: None
    """Told of every election and claim as it is sent."""
    granted: Callable[[Process, str, Record], None] = lambda *_: None
    """Told of every one that succeeds, just before."""

    def wipe(self) -> None:
        """Somebody deleted it."""
        self.wipes += 1
        self.records.clear()

    def get(self, key: str) -> Record | None:
        now_s = self.world.now_s
        if now_s - self.touched.get(key, now_s) > _EXPIRY_S:
            self.records.pop(key, None)
        self.touched[key] = now_s
        standing = self.records.get(key)
        return dict(standing) if standing else None

    def put_if_absent(self, process: Process, key: str, value: Record) -> bool:
        if self.get(key) is not None:
            return False
        self.granted(process, key, value)
        self.put(key, value)
        return True

    def put(self, key: str, value: Record) -> None:
        self.records[key] = dict(value)
        self.changed += not key.startswith("beat/")
        if value.get("released"):
            self.changed += 1
            _, job, epoch, _ = key.split("/")
            self.released.add((job, int(epoch)))
        self.touched[key] = self.written[key] = self.world.now_s

    def pop(self, key: str) -> None:
        self.records.pop(key, None)


class SimLeases:
    """One process's `LeaseStore` on the shared dictionary, with an unclear reply read back."""

    def __init__(self, shared: Dict, process: Process) -> None:
        self._dict = shared
        self._process = process
        process.backend = shared.name

    @property
    def backend(self) -> str:
        return self._dict.name

    def create(self, key: str, value: Record) -> Record:
        self._dict.asked(self._process, key, value)
        lost: StoreUnavailable | None = None
        try:
            if self._call("create", key, lambda: self._dict.put_if_absent(self._process, key, value)):
                if key.startswith("lease/"):
                    read = dict(self._process.reads)
                    self._process.leased[key.split("/")[1]] = (self._dict.world.now_s, read)
                return dict(value)
        except StoreUnavailable as error:
            lost = error
        if (standing := self.read(key)) is not None:
            return standing
        raise lost or StoreUnavailable("it was there and is gone", where=key)

    def read(self, key: str) -> Record | None:
        if not key.startswith("lease/"):
            return self._call("read", key, lambda: self._dict.get(key))
        _, job, epoch = key.split("/")
        self._process.in_vain.add(job)
        # In which life it was read; the reply may come in the next.
        wipes, standing = self._call("read", key, lambda: (self._dict.wipes, self._dict.get(key)))
        self._process.in_vain.discard(job)
        if standing is not None:
            self._process.noticed.add((wipes, job, int(epoch)))
        return standing

    def write(self, key: str, value: Record) -> None:
        def land() -> None:
            if self._process.suspended_s:  # maybe only just now, with this very request under way
                _, job, epoch, _ = key.split("/")
                self._dict.doubtful.add((job, int(epoch)))
            self._dict.put(key, value)

        self._call("write", key, land)

    def delete(self, key: str) -> None:
        self._call("forget", key, lambda: self._dict.pop(key))

    def _call(self, operation: str, key: str, effect: Callable[[], T]) -> T:
        return self._dict.world.call(self._process, operation, key, effect)
