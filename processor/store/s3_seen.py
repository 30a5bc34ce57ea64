"""What versions of objects were seen to be: a version never changes, so it may be remembered."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Final, NamedTuple

_KEPT: Final = 8192
"""More than one scan's drops (`Policy.scan_keep`): a few MB at most."""


class Seen(NamedTuple):
    """One version as a GET or HEAD described it."""

    version: str
    size_bytes: int
    etag: str


class SeenVersions:
    """The versions that were looked at last. Thread-safe; bounded."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_version: OrderedDict[tuple[str, str], Seen] = OrderedDict()

    def add(self, key: str, seen: Seen) -> None:
        with self._lock:
            self._by_version[key, seen.version] = seen
            if len(self._by_version) > _KEPT:
                self._by_version.popitem(last=False)

    def get(self, key: str, version: str | None) -> Seen | None:
        """What this very version was, if it is remembered; None for the newest, whichever it is."""
        if version is None:
            return None
        with self._lock:
            return self._by_version.get((key, version))
