"""What lies in the inbox: one flat, streaming listing, sorted into what is to be done.

Cost follows what is pending, never the history; no state is kept per object.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from operator import attrgetter
from typing import TYPE_CHECKING

from processor.layout import (
    CANCEL,
    CONTROL,
    DATASETS_INBOX,
    EMITTED,
    INBOX,
    JOBS,
    NIGHTLY,
    PAUSED,
    RECURRING,
    is_job_id,
    job_id,
)
from processor.store import ObjectInfo, Store

if TYPE_CHECKING:
    from hashlib import _Hash as Hash

    from processor.schedule import Night

_MARKERS = frozenset({".bzEmpty", ".DS_Store", "Thumbs.db", "desktop.ini", "_READY"})
_SAMPLE = 20
_PAGE = 1000
NEWEST = 16
"""Of a longer queue so many are known from its end, too, for what is urgent."""
_MAX_OLD = 5_000
"""Of replaced versions and of delete markers so many are kept: more than one pass removes."""


@dataclass(frozen=True, slots=True)
class Drop:
    """One version of a job file in the inbox."""

    key: str
    version: str
    """"" where the listing does not tell it; `stat` does."""
    size_bytes: int
    modified: datetime
    superseded: bool = False
    """A newer version, or a delete marker, stands above it."""
    hidden: bool = False
    """It is a delete marker that stands above it: its user took it back."""

    @property
    def emitted_id(self) -> str | None:
        """The job id in the name of what the machine itself dropped; None for users' drops."""
        if not self.key.startswith(EMITTED):
            return None
        stem = self.key[len(EMITTED) :].removesuffix(".json")
        return stem if is_job_id(stem) else None

    @property
    def job_id(self) -> str:
        """The job this drop is. Needs `version`."""
        return self.emitted_id or job_id(self.key, self.version)


@dataclass(slots=True)
class DatasetFolder:
    """A dataset folder as far as a listing tells."""

    name: str
    files: int = 0
    size_bytes: int = 0
    ready: bool = False
    listed: bool = False
    """It has a `_manifest.json`."""
    newest: datetime | None = None
    _hash: Hash = field(default_factory=hashlib.sha256)

    @property
    def digest(self) -> str:
        """Of names, sizes and versions of its data files, in the order of the listing."""
        return self._hash.hexdigest()

    def add(self, path: str, item: ObjectInfo) -> None:
        """Count one object of a listing."""
        if path == "_READY":
            self.ready = True
        elif not is_marker(_name(path)):
            self.listed |= path == "_manifest.json"
            self.files += 1
            self.size_bytes += item.size_bytes
            self._hash.update(identity(item))
        if self.newest is None or item.modified > self.newest:
            self.newest = item.modified


@dataclass(slots=True)
class Inbox:
    """One scan's findings; bounded, however full the inbox is."""

    date: datetime
    """The store's clock at the first page."""
    due: list[Drop] = field(default_factory=list)
    """The oldest due job files, oldest first."""
    newest: list[Drop] = field(default_factory=list)
    """Of more than that: those dropped last, oldest first."""
    pending: int = 0
    """How many job files are due in all."""
    nightly: int = 0
    """How many wait for the night."""
    recurring: list[Drop] = field(default_factory=list)
    superseded: list[Drop] = field(default_factory=list)
    litter: list[ObjectInfo] = field(default_factory=list)
    """Delete markers over drops that a user removed by name, old versions of requests."""
    more_to_remove: bool = False
    """There are more of both than are kept; the next scan tells of them."""
    datasets: dict[str, DatasetFolder] = field(default_factory=dict)
    cancels: dict[str, ObjectInfo] = field(default_factory=dict)
    """Job id → the request to cancel it."""
    paused: bool = False
    ignored: int = 0
    ignored_sample: list[str] = field(default_factory=list)
    held: set[str] = field(default_factory=set)
    """Keys of which an older version is still there, since somebody runs it, a store failed or a
    pass does not remove so many.
    What stands above stays until that is gone: settled first, it would uncover the older
    one, which would then run."""
    stuck: dict[str, str] = field(default_factory=dict)
    """Of those held: what a store said that did not let the older version go."""
    top: ObjectInfo | None = None
    """While scanning: what stands at the key that is being listed."""

    def may_be_pending(self, job_id: str) -> bool:
        """Whether a drop of this job may wait here; some listings can't tell all ids."""
        if self.nightly or self.pending > len(self.due) or self.more_to_remove:
            return True
        drops = [*self.due, *self.superseded]
        return any(not (drop.version or drop.emitted_id) or drop.job_id == job_id for drop in drops)

    def add_superseded(self, item: ObjectInfo) -> None:
        """Note a version of a drop that does not stand on top."""
        hidden = self.top is not None and self.top.key == item.key and self.top.delete_marker
        if len(self.superseded) < _MAX_OLD:
            self.superseded.append(replace(_drop(item), superseded=True, hidden=hidden))
            return
        self.more_to_remove = True
        # Under a delete marker that isn't kept it lies as it is. Whatever else is above it must stay.
        if not hidden or (self.litter and self.litter[-1].key == item.key):
            self.held.add(item.key)

    def add_litter(self, item: ObjectInfo) -> None:
        """Note what is to be removed and was never to be run."""
        if len(self.litter) < _MAX_OLD:
            self.litter.append(item)
        else:
            self.more_to_remove = True


def scan(
    store: Store,
    *,
    keep: int,
    night: Night | bool = False,
    dated: Callable[[datetime], None] = lambda _: None,
) -> Inbox:
    """List the inbox once.

    Args:
        keep: how many due drops to keep, the oldest; memory is bounded by it.
        night: whether drops under `inbox/nightly/` are due, too; a window is asked by the store's clock.
        dated: told the store's time as the first page comes; the others may take minutes.
    Cost: 1 request per 1,000 objects in the inbox, at least 1.
    """
    found: Inbox | None = None
    night_open = False
    oldest, newest = _Oldest(keep), _Newest(NEWEST)
    for page in store.list(INBOX, versions=store.capabilities.versions):
        if found is None:
            found = Inbox(page.date)
            dated(page.date)
            night_open = night if isinstance(night, bool) else night.is_open(page.date)
        due = _due(found, page.objects, night_open)
        found.pending += len(due)
        oldest.add(due)
        newest.add(due)
    if found is None:
        raise AssertionError("a store lists at least one page")
    found.due = [_drop(item) for item in oldest.items()]
    if found.pending > len(found.due):
        kept = set(found.due)
        found.newest = [drop for drop in map(_drop, newest.items()) if drop not in kept]
    return found


class _Oldest:
    """The oldest so many of a stream of objects that comes sorted by key; of one age, the first by key."""

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self._items: list[ObjectInfo] = []
        self._newest: datetime | None = None
        """What isn't older need not be gathered any more."""

    def add(self, items: list[ObjectInfo]) -> None:
        newest = self._newest
        self._items += items if newest is None else [item for item in items if item.modified < newest]
        # Sorted as soon as a page more is there: what is kept costs the cache more than sorting costs.
        if len(self._items) >= self._keep + _PAGE:
            self._items = self.items()
            self._newest = self._items[-1].modified if self._items else None

    def items(self) -> list[ObjectInfo]:
        """Oldest first."""
        # By age alone: sorting is stable, and what was added earlier has the smaller key.
        return sorted(self._items, key=attrgetter("modified"))[: self._keep]


class _Newest:
    """The newest so many of the same stream; of one age, the last by key."""

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self._items: list[ObjectInfo] = []

    def add(self, items: list[ObjectInfo]) -> None:
        if len(self._items) == self._keep:
            oldest = self._items[0].modified
            items = [item for item in items if item.modified >= oldest]
        self._items += items
        self._items = self.items()

    def items(self) -> list[ObjectInfo]:
        """Oldest first."""
        return sorted(self._items, key=attrgetter("modified"))[-self._keep :]


def is_marker(name: str) -> bool:
    """Whether a file is an operating system's or tool's litter, or our own marker: never data."""
    return name in _MARKERS or name.startswith("._")


def identity(item: ObjectInfo) -> bytes:
    """What tells one version of an object from all others, as far as a listing knows."""
    mark = item.version or item.modified.isoformat()
    return f"{item.key}\0{item.size_bytes}\0{mark}\n".encode()


def _due(found: Inbox, objects: list[ObjectInfo], night_open: bool) -> list[ObjectInfo]:
    """Sort one page; return the job files that are due now."""
    if _only_jobs(objects):
        found.top = objects[-1]
        return objects
    due: list[ObjectInfo] = []
    for item in objects:
        key = item.key
        if item.latest:
            found.top = item
        nightly = key.startswith(NIGHTLY)
        if not key.endswith(".json") or not (
            nightly or key.startswith(JOBS) or key.find("/", len(INBOX)) < 0
        ):
            _other(found, item)
        elif is_marker(_name(key)):
            _ignore(found, key)
        elif item.delete_marker:
            found.add_litter(item)
        elif not item.latest:
            found.add_superseded(item)
        elif nightly and not night_open:
            found.nightly += 1
        else:
            due.append(item)
    return due


def _only_jobs(objects: list[ObjectInfo]) -> bool:
    """Whether a page is nothing but job files that stand, as nearly all of a full inbox is.

    This runs for each object of an inbox that may hold a million: pages are sorted by key,
    so that two keys tell the folder of all, and the rest is one pass without a call.
    """
    if not objects or not (objects[0].key.startswith(JOBS) and objects[-1].key.startswith(JOBS)):
        return False
    jobs = [
        None
        for item in objects
        if item.latest and not item.delete_marker and (key := item.key)[-5:] == ".json" and "/._" not in key
    ]
    return len(jobs) == len(objects)


def _name(key: str) -> str:
    return key[key.rfind("/") + 1 :]


def _other(found: Inbox, item: ObjectInfo) -> None:
    key = item.key
    if key.startswith(DATASETS_INBOX) and key.count("/") >= 3:
        if item.latest and not item.delete_marker:
            _count(found, item)
    elif item.delete_marker or not item.latest:
        if key.startswith(CONTROL):
            found.add_litter(item)
    elif key.startswith(RECURRING) and key.endswith(".json"):
        found.recurring.append(_drop(item))
    elif key == PAUSED:
        found.paused = True
    elif key.startswith(CANCEL):
        found.cancels[key[len(CANCEL) :]] = item
    else:
        _ignore(found, key)


def _count(found: Inbox, item: ObjectInfo) -> None:
    name, _, path = item.key[len(DATASETS_INBOX) :].partition("/")
    found.datasets.setdefault(name, DatasetFolder(name)).add(path, item)


def _ignore(found: Inbox, key: str) -> None:
    if is_marker(_name(key)):
        return
    found.ignored += 1
    if len(found.ignored_sample) < _SAMPLE:
        found.ignored_sample.append(key)


def _drop(item: ObjectInfo) -> Drop:
    return Drop(item.key, item.version, item.size_bytes, item.modified)
