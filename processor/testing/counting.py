"""Counting requests, so that what an operation costs is asserted, not believed."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from processor.leases.protocol import LeaseStore, Record
from processor.store.protocol import Capabilities, Download, ObjectInfo, Page, Store


class CountingStore:
    """A `Store` that counts the calls to another by operation; a listing, by its pages.

    `counts` is a Counter of "list", "stat", "get", "put", "copy" and "delete". It counts
    what was asked, which is what B2 bills: an S3 `copy` of what was never read and an
    unversioned `delete` ask once more for each than is counted here.
    """

    def __init__(self, inner: Store) -> None:
        self.inner = inner
        self.counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    @property
    def total(self) -> int:
        """Requests of all kinds."""
        return self.counts.total()

    def reset(self) -> Counter[str]:
        """Start again from zero; returns what was counted until now."""
        with self._lock:
            counted, self.counts = self.counts, Counter()
        return counted

    @property
    def url(self) -> str:
        return self.inner.url

    @property
    def capabilities(self) -> Capabilities:
        return self.inner.capabilities

    def list(self, prefix: str, *, versions: bool = False, start_after: str = "") -> Iterator[Page]:
        for page in self.inner.list(prefix, versions=versions, start_after=start_after):
            self._count("list")
            yield page

    def stat(self, key: str, *, version: str | None = None) -> ObjectInfo:
        self._count("stat")
        return self.inner.stat(key, version=version)

    def get(self, key: str, *, version: str | None = None) -> Download:
        self._count("get")
        return self.inner.get(key, version=version)

    def put(
        self,
        key: str,
        data: bytes | Path,
        *,
        media_type: str = "application/octet-stream",
        if_absent: bool = False,
    ) -> ObjectInfo:
        self._count("put")
        return self.inner.put(key, data, media_type=media_type, if_absent=if_absent)

    def copy(self, source: str, target: str, *, version: str | None = None) -> ObjectInfo:
        self._count("copy")
        return self.inner.copy(source, target, version=version)

    def delete(self, key: str, *, version: str) -> None:
        self._count("delete")
        self.inner.delete(key, version=version)

    def close(self) -> None:
        self.inner.close()

    def _count(self, operation: str) -> None:
        with self._lock:
            self.counts[operation] += 1


class CountingLeases:
    """A `LeaseStore` that counts the calls to another: "create", "read", "write", "delete"."""

    def __init__(self, inner: LeaseStore) -> None:
        self.inner = inner
        self.counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    @property
    def total(self) -> int:
        """Requests of all kinds."""
        return self.counts.total()

    def reset(self) -> Counter[str]:
        """Start again from zero; returns what was counted until now."""
        with self._lock:
            counted, self.counts = self.counts, Counter()
        return counted

    @property
    def backend(self) -> str:
        return self.inner.backend

    def create(self, key: str, value: Record) -> Record:
        self._count("create")
        return self.inner.create(key, value)

    def read(self, key: str) -> Record | None:
        self._count("read")
        return self.inner.read(key)

    def write(self, key: str, value: Record) -> None:
        self._count("write")
        self.inner.write(key, value)

    def delete(self, key: str) -> None:
        self._count("delete")
        self.inner.delete(key)

    def _count(self, operation: str) -> None:
        with self._lock:
            self.counts[operation] += 1
