"""Leases in memory: for simulations, tests and a machine that is one process."""

from __future__ import annotations

import threading

from processor.leases.protocol import Record


class MemoryLeases:
    """A `LeaseStore` that lives as long as its process. Thread-safe.

    Args:
        name: the last part of `backend`.
    """

    def __init__(self, name: str = "leases") -> None:
        self._name = name
        self._lock = threading.Lock()
        self._records: dict[str, Record] = {}

    @property
    def backend(self) -> str:
        return f"memory:{self._name}"

    def create(self, key: str, value: Record) -> Record:
        with self._lock:
            return dict(self._records.setdefault(key, dict(value)))

    def read(self, key: str) -> Record | None:
        with self._lock:
            standing = self._records.get(key)
            return None if standing is None else dict(standing)

    def write(self, key: str, value: Record) -> None:
        with self._lock:
            self._records[key] = dict(value)

    def delete(self, key: str) -> None:
        with self._lock:
            self._records.pop(key, None)

    def wipe(self) -> None:
        """Forget everything, as a lease store does that was deleted or expired."""
        with self._lock:
            self._records.clear()
