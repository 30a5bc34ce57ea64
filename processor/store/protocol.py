"""The store protocol: what every implementation promises, and its contract suite checks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Protocol, Self

from processor.errors import InvalidKey, StoreError, TooLarge

MAX_KEY_BYTES = 1024
"""B2's limit on a name, UTF-8 (facts: Backblaze's S3 compatibility page)."""

# Each operation of each simulation checks its key: two searches, not a loop in Python.
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_NO_COMPONENT = re.compile(r"(?:\A|/)\.{0,2}(?:/|\Z)")


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a store was found to do, by probing where it can't be known beforehand."""

    versions: bool
    """Every put makes a new version; `delete` of one leaves the others."""
    put_if_absent: bool
    """`put(if_absent=True)` is atomic. B2 answers 501; some servers ignore the header."""
    atomic_put: bool = True
    """An object appears whole. False for a folder, where other programs write in place."""
    missing_is_403: bool = False
    """A missing key is answered with 403 (an application key without `listBuckets`)."""


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One object, or one version of it.

    `version` is the VersionId where the store has versions, else a token of what GET
    and HEAD answer; it is "" in listings of stores without versions, because LIST's
    time differs in precision from HEAD's.
    """

    key: str
    size_bytes: int
    version: str
    modified: datetime
    latest: bool = True
    delete_marker: bool = False


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a listing, sorted by key; `date` is the store's clock when it answered."""

    objects: list[ObjectInfo]
    date: datetime


class Download:
    """An open object: its `info` and a binary `body` to read. Close it, or use `with`."""

    def __init__(self, info: ObjectInfo, body: BinaryIO) -> None:
        self.info = info
        self.body = body

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.body.close()


class Store(Protocol):
    """A bucket (or a prefix of one). Thread-safe. Raises only `processor.errors.StoreError`s.

    Every call may raise `StoreUnavailable` (after the adapter's own retries) and
    `AccessDenied`. A write whose reply was lost may have taken effect.
    """

    @property
    def url(self) -> str:
        """Where this is, without credentials: `file:///…`, `b2://bucket/prefix`, …"""
        ...

    @property
    def capabilities(self) -> Capabilities:
        """As probed once (S3: up to 5 requests under `state/probe/`), then remembered."""
        ...

    def list(self, prefix: str, *, versions: bool = False, start_after: str = "") -> Iterator[Page]:
        """Stream the objects under a key prefix, sorted by key (UTF-8 bytes).

        Always yields at least one page, so that its date is known. Any page may be empty, where
        what it would hold is hidden; the end is where no other follows. With `versions` every
        version and delete marker is listed, newest first within a key; a store without versions
        lists what stands. Listings may lag behind writes. What other programs put under a name
        that `check_key` refuses is not listed.

        Cost: 1 request per 1,000 objects; with versions, per 1,000 versions.
        """
        ...

    def stat(self, key: str, *, version: str | None = None) -> ObjectInfo:
        """Describe the newest version, or the one named.

        Raises:
            NotFound: it is not there, or hidden by a delete marker.
        Cost: 1 request.
        """
        ...

    def get(self, key: str, *, version: str | None = None) -> Download:
        """Open the newest version, or the one named, for streaming.

        On a store without versions a named version that is not what stands raises NotFound.

        Raises:
            NotFound: as in `stat`.
        Cost: 1 request.
        """
        ...

    def put(
        self,
        key: str,
        data: bytes | Path,
        *,
        media_type: str = "application/octet-stream",
        if_absent: bool = False,
    ) -> ObjectInfo:
        """Write an object whole: readers see the old one or the new one, never a part.

        Args:
            data: bytes, or a file to stream; large files go up in parts.
            if_absent: only where `capabilities.put_if_absent`.
        Returns:
            What was written. Where there are no versions its `version` may be "": an S3
            server doesn't tell in its reply what `stat` would.
        Raises:
            AlreadyExists: `if_absent` and something stands.
            StoreError: `if_absent` where it isn't promised; nothing is written.
        Cost: 1 request; files above 64 MiB one per 64 MiB part, and two more.
        """
        ...

    def copy(self, source: str, target: str, *, version: str | None = None) -> ObjectInfo:
        """Copy inside the store; returns the new object. Only small bytes may pass here.

        Raises:
            NotFound: that version of the source is not there.
        Cost: 1 request for a version that this store has read before, else 2; above 512 MiB one
            per part, and four.
        """
        ...

    def delete(self, key: str, *, version: str) -> None:
        """Remove one version for good. Removing what is not there is no error.

        Without versions: only if that version is what stands, else VersionMismatch and
        nothing is changed (a directory renames aside, compares, links back; elsewhere
        there is a window between the comparison and the removal).
        Cost: 1 request; 2 without versions.
        """
        ...

    def close(self) -> None: ...


def check_key(key: str) -> str:
    """Return `key` if every store can hold it, else raise InvalidKey.

    B2's rules: at most 1,024 bytes of UTF-8, no control characters, no leading or
    trailing `/`, no `//`; and `.` or `..` as a component would leave a directory.
    """
    try:
        size_bytes = len(key.encode("utf-8"))
    except UnicodeEncodeError:
        raise InvalidKey("not valid Unicode", where=repr(key)) from None
    if not 0 < size_bytes <= MAX_KEY_BYTES:
        raise InvalidKey(f"a key has 1 to {MAX_KEY_BYTES} bytes, this one {size_bytes}", where=key[:80])
    if _CONTROL.search(key):
        raise InvalidKey("control characters are not allowed in keys", where=repr(key))
    if _NO_COMPONENT.search(key):
        raise InvalidKey("empty, '.' and '..' components are not allowed in keys", where=repr(key))
    return key


def require_put_if_absent(store: Store) -> None:
    """Raise StoreError unless a conditional put means something on this store."""
    if not store.capabilities.put_if_absent:
        raise StoreError("this store has no put-if-absent", where=store.url)


def read_bytes(store: Store, key: str, *, version: str | None = None, limit_bytes: int) -> bytes:
    """Read a whole small object.

    Raises:
        TooLarge: it has more than `limit_bytes`; not more than that is read.
    Cost: 1 request.
    """
    with store.get(key, version=version) as download:
        if download.info.size_bytes > limit_bytes:
            raise TooLarge(f"{download.info.size_bytes:,} bytes, at most {limit_bytes:,} are read", where=key)
        # Not the whole limit: a buffered file allocates as much as it is asked for.
        data = download.body.read(download.info.size_bytes + 1)
    if len(data) > limit_bytes:
        raise TooLarge(f"more than {limit_bytes:,} bytes", where=key)
    return data
