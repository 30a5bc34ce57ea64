"""Leases in the bucket itself, on a store that proved put-if-absent."""

from __future__ import annotations

import threading
from collections import defaultdict
from typing import Final

from processor.errors import (
    AlreadyExists,
    ConfigError,
    NotFound,
    StoreUnavailable,
    VersionMismatch,
)
from processor.leases.protocol import Record
from processor.leases.record import MAX_RECORD_BYTES, from_bytes, to_bytes
from processor.store.protocol import Store, read_bytes

LEASES_PREFIX: Final = "state/leases/"
_MEDIA_TYPE: Final = "application/json"
_TRIES: Final = 10


class StoreLeases:
    """A `LeaseStore` of one object a record, under `state/leases/`. Thread-safe.

    `create` is a conditional put, so a store that only seems to have one (it ignores the
    condition, or answers 501 as B2 does) is refused.

    A bucket that keeps versions would keep every beat of every lease. So `write` removes
    the version it wrote before, which only its own process can have written, and `delete`
    removes all there are: 1 more request each, of the kind that B2 doesn't charge for, and
    one listing a deleted key.

    Raises:
        ConfigError: the store has no put-if-absent.
    """

    def __init__(self, store: Store) -> None:
        if not store.capabilities.put_if_absent:
            raise ConfigError(
                "this store can't keep leases: it has no conditional put",
                where=store.url,
                mend="Keep leases in a Modal Dict, or in a local folder if one machine does it all.",
            )
        self._store = store
        self._lock = threading.Lock()
        self._written: defaultdict[str, list[str]] = defaultdict(list)
        """Versions by key that this process wrote and hasn't removed; the newest last."""

    @property
    def backend(self) -> str:
        return f"store:{self._store.url}/{LEASES_PREFIX.rstrip('/')}"

    def create(self, key: str, value: Record) -> Record:
        name, data = LEASES_PREFIX + key, to_bytes(value)
        lost: StoreUnavailable | None = None
        for _ in range(_TRIES):
            try:
                info = self._store.put(name, data, media_type=_MEDIA_TYPE, if_absent=True)
            except AlreadyExists:
                pass
            except StoreUnavailable as error:
                if lost is not None:
                    raise
                lost = error
            else:
                self._remember(key, info.version)
                return dict(value)
            # What stands may be our own: a put whose reply was lost, also inside the adapter.
            if (standing := self.read(key)) is not None:
                return standing
        raise StoreUnavailable(
            "another process keeps creating and removing this record", where=name
        ) from lost

    def read(self, key: str) -> Record | None:
        name = LEASES_PREFIX + key
        try:
            return from_bytes(read_bytes(self._store, name, limit_bytes=MAX_RECORD_BYTES), name)
        except NotFound:
            return None

    def write(self, key: str, value: Record) -> None:
        name = LEASES_PREFIX + key
        info = self._store.put(name, to_bytes(value), media_type=_MEDIA_TYPE)
        if not self._store.capabilities.versions:
            return
        with self._lock:
            older = self._written.pop(key, [])
            self._written[key] = [info.version]
        while older:
            try:
                self._store.delete(name, version=older[0])
            except StoreUnavailable:
                # The write stands. What couldn't be removed now is removed by the next one.
                with self._lock:
                    self._written[key][:0] = older
                return
            older.pop(0)

    def delete(self, key: str) -> None:
        name = LEASES_PREFIX + key
        with self._lock:
            self._written.pop(key, None)
        if self._store.capabilities.versions:
            self._delete_versions(name)
        else:
            self._delete_standing(name)

    def _delete_versions(self, name: str) -> None:
        found: list[str] = []
        for page in self._store.list(name, versions=True):
            same = [info.version for info in page.objects if info.key == name]
            found += same
            if len(same) < len(page.objects):
                break  # the key sorts before all others that it is a prefix of
        # Oldest first: an older value must not stand again, not even for a moment.
        for version in reversed(found):
            self._store.delete(name, version=version)

    def _delete_standing(self, name: str) -> None:
        for _ in range(_TRIES):
            try:
                self._store.delete(name, version=self._store.stat(name).version)
            except NotFound:
                return
            except VersionMismatch:
                continue  # a beat was written in between
            else:
                return
        raise StoreUnavailable("another process keeps writing this record", where=name)

    def _remember(self, key: str, version: str) -> None:
        if self._store.capabilities.versions:
            with self._lock:
                self._written[key].append(version)
