"""A store in memory: the fast one that simulations and unit tests run on."""

from __future__ import annotations

import io
import threading
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final, NamedTuple

from processor.clock import Clock, SystemClock
from processor.errors import AlreadyExists, NotFound, VersionMismatch
from processor.store.protocol import (
    Capabilities,
    Download,
    ObjectInfo,
    Page,
    check_key,
    require_put_if_absent,
)

_FEW: Final = 16
"""Up to here new keys are inserted one by one; above, one sort of the whole is cheaper."""


class _Version(NamedTuple):
    info: ObjectInfo
    data: bytes


class MemoryStore:
    """A `Store` that lives as long as its process. Thread-safe; every call is atomic.

    Versions are deterministic (`v000001`, `v000002`, … in the order of the writes), so
    that a simulation with one seed repeats itself to the byte.

    Args:
        versions: keep every version, as B2 does; else a put replaces.
        put_if_absent: whether it is promised (B2 doesn't).
        clock: the store's own clock, which dates objects and pages.
        page_size: objects a page of a listing.
        name: the last part of `url`.
    """

    def __init__(
        self,
        *,
        versions: bool = True,
        put_if_absent: bool = True,
        clock: Clock | None = None,
        page_size: int = 1000,
        name: str = "bucket",
    ) -> None:
        self._capabilities = Capabilities(versions=versions, put_if_absent=put_if_absent)
        self._clock = clock or SystemClock()
        self._page_size = page_size
        self._url = f"memory://{name}"
        self._lock = threading.RLock()
        self._writes = 0
        self._keys = _SortedKeys()
        self._kept: dict[str, list[_Version]] = {}
        """Versions by key, newest last; never empty."""

    def __repr__(self) -> str:
        return f"MemoryStore({self._url!r})"

    @property
    def url(self) -> str:
        return self._url

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    def list(self, prefix: str, *, versions: bool = False, start_after: str = "") -> Iterator[Page]:
        """As `Store.list`. Each page sees the store as it is when the page is asked for."""
        after, started = start_after, False
        while True:
            with self._lock:
                keys = self._keys.range(prefix, after, self._page_size + 1)
                page, more = keys[: self._page_size], len(keys) > self._page_size
                objects = [info for key in page for info in self._listed(key, versions)]
            # A page of delete markers alone lists nothing; only the first may be empty.
            if objects or not started:
                started = True
                yield Page(objects, self._clock.now())
            if not more:
                return
            after = page[-1]

    def stat(self, key: str, *, version: str | None = None) -> ObjectInfo:
        return self._find(key, version).info

    def get(self, key: str, *, version: str | None = None) -> Download:
        found = self._find(key, version)
        return Download(found.info, io.BytesIO(found.data))

    def put(
        self,
        key: str,
        data: bytes | Path,
        *,
        media_type: str = "application/octet-stream",  # noqa: ARG002 - nothing reads it back
        if_absent: bool = False,
    ) -> ObjectInfo:
        check_key(key)
        if if_absent:
            require_put_if_absent(self)
        content = data.read_bytes() if isinstance(data, Path) else bytes(data)
        with self._lock:
            if if_absent and key in self._kept and not self._kept[key][-1].info.delete_marker:
                raise AlreadyExists("something stands there", where=key)
            return self._reply(self._add(key, content))

    def copy(self, source: str, target: str, *, version: str | None = None) -> ObjectInfo:
        check_key(target)
        with self._lock:
            return self._reply(self._add(target, self._find(source, version).data))

    def delete(self, key: str, *, version: str) -> None:
        check_key(key)
        with self._lock:
            kept = self._kept.get(key, [])
            left = [each for each in kept if each.info.version != version]
            if kept and not self._capabilities.versions and left:
                raise VersionMismatch("another version stands there", where=key)
            if left:
                self._kept[key] = left
            elif kept:
                self._forget(key)

    def hide(self, key: str) -> None:
        """Delete by name alone, as a plain S3 delete does: with versions, a delete marker."""
        check_key(key)
        with self._lock:
            if self._capabilities.versions:
                self._add(key, b"", delete_marker=True)
            elif key in self._kept:
                self._forget(key)

    def close(self) -> None:
        """Nothing to close; the objects stay."""

    def _find(self, key: str, version: str | None) -> _Version:
        with self._lock:
            kept = self._kept.get(key)
            if kept is None:
                check_key(key)
                raise NotFound("there is no such object", where=key)
            found = kept[-1]
            if version is not None and found.info.version != version:
                older = [each for each in kept if each.info.version == version]
                if not older:
                    raise NotFound(f"version {version} is not there", where=key)
                found = _Version(replace(older[0].info, latest=False), older[0].data)
        if found.info.delete_marker:
            raise NotFound("hidden by a delete marker", where=key)
        return found

    def _add(self, key: str, data: bytes, *, delete_marker: bool = False) -> ObjectInfo:
        self._writes += 1
        info = ObjectInfo(
            key, len(data), f"v{self._writes:06d}", self._clock.now(), delete_marker=delete_marker
        )
        if key not in self._kept:
            self._keys.add(key)
        if self._capabilities.versions:
            self._kept.setdefault(key, []).append(_Version(info, data))
        else:
            self._kept[key] = [_Version(info, data)]
        return info

    def _forget(self, key: str) -> None:
        del self._kept[key]
        self._keys.discard(key)

    def _reply(self, info: ObjectInfo) -> ObjectInfo:
        # An S3 server without versions doesn't tell in its reply what HEAD would; nor do we.
        return info if self._capabilities.versions else replace(info, version="")

    def _listed(self, key: str, versions: bool) -> Iterator[ObjectInfo]:
        kept = self._kept[key]
        newest = kept[-1].info
        if not self._capabilities.versions:
            yield replace(newest, version="")
        elif versions:
            yield newest
            for each in reversed(kept[:-1]):
                yield replace(each.info, latest=False)
        elif not newest.delete_marker:
            yield newest


class _SortedKeys:
    """Keys in order, sorted only when a listing asks. Not thread-safe.

    Code points sort as their UTF-8 bytes do, so Python's order of `str` is S3's. A key
    that is discarded stays in the list until the dead outnumber the living.
    """

    def __init__(self) -> None:
        self._sorted: list[str] = []
        self._new: list[str] = []
        self._dead: set[str] = set()

    def add(self, key: str) -> None:
        """Add a key that is not there."""
        if key in self._dead:
            self._dead.remove(key)
        else:
            self._new.append(key)

    def discard(self, key: str) -> None:
        """Remove a key that is there."""
        self._dead.add(key)

    def range(self, prefix: str, after: str, limit: int) -> list[str]:
        """Up to `limit` keys that start with `prefix` and come after `after`."""
        self._settle()
        at = max(bisect_left(self._sorted, prefix), bisect_right(self._sorted, after))
        found: list[str] = []
        while at < len(self._sorted) and len(found) < limit and self._sorted[at].startswith(prefix):
            if self._sorted[at] not in self._dead:
                found.append(self._sorted[at])
            at += 1
        return found

    def _settle(self) -> None:
        if len(self._new) > _FEW:
            self._sorted += self._new
            self._sorted.sort()
        else:
            for key in self._new:
                insort(self._sorted, key)
        self._new.clear()
        if len(self._dead) > _FEW + len(self._sorted) // 2:
            self._sorted = [key for key in self._sorted if key not in self._dead]
            self._dead.clear()
