"""Finding jobs in a bucket: by the beginning of an id, waiting, running, or lately finished."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import PurePosixPath
from typing import TypeVar

from pydantic import ValidationError

from processor.cli.exits import NoSuchJob
from processor.errors import NotFound, StoreError
from processor.inbox import Drop, scan
from processor.layout import (
    DONE,
    FAILED,
    INBOX,
    OUTPUTS,
    attempt_key,
    is_job_id,
    job_prefix,
    manifest_key,
    slug,
)
from processor.records import Attempt, Manifest
from processor.store import Store, read_bytes

MAX_MANIFEST_BYTES = 256 * 1024 * 1024
MAX_WAITING = 200
"""Drops whose ids are worked out; more are only counted."""

_THREADS = 16
_RESULT = re.compile(r"[^/]+/(?P<index>\d{5,})-[^/]+/result\.json")
_T = TypeVar("_T")
_R = TypeVar("_R")


@dataclass(frozen=True, slots=True)
class Waiting:
    """A drop in the inbox, and how far an attempt has come with it."""

    drop: Drop
    begun: bool
    """The newest attempt has not said that it ended; whether it still runs only the lease store knows."""


@dataclass(slots=True)
class Progress:
    """What a job without a manifest has produced so far."""

    attempts: list[Attempt] = field(default_factory=list)
    finished: set[int] = field(default_factory=set)
    """Indices of tasks with a result, good or bad."""
    files: int = 0

    @property
    def tasks(self) -> int | None:
        """Of the newest plan, once there is one."""
        plans = [attempt.plan for attempt in self.attempts if attempt.plan]
        return len(plans[-1].tasks) if plans else None

    @property
    def begun(self) -> bool:
        """As of a `Waiting`."""
        return bool(self.attempts) and not self.attempts[-1].is_over


def in_threads(work: Callable[[_T], _R], items: Iterable[_T]) -> list[_R]:
    """`work` of each item, in order, several requests at a time."""
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(work, items))


def find_job(store: Store, reference: str) -> str:
    """The one job id that begins with `reference`, of those that have begun and those that wait.

    Raises:
        NoSuchJob: none does, or several do.
    Cost: 2 requests for a full id; for a beginning of one, or where it only waits, those of a scan, too.
    """
    found = []
    for job in job_ids(store, reference):
        if job == reference:
            return job
        found.append(job)
        if len(found) > 5:
            break
    if is_job_id(reference) and _waits(store, reference):
        return reference
    if len(found) < 2:
        ids = (item.drop.job_id for item in waiting(store))
        found += [job for job in ids if job.startswith(reference) and job not in found]
    if len(found) == 1:
        return found[0]
    if found:
        raise NoSuchJob(f"several jobs begin like this: {', '.join(found[:5])}", where=reference)
    raise NoSuchJob("there is no job with this id", where=reference, mend="`dropbatch status` lists them")


def _waits(store: Store, job: str) -> bool:
    """Whether a drop of exactly this id is in the inbox, behind however many others.

    Cost: those of a scan; without versions in listings 1 more per drop of the same name.
    """
    for page in store.list(INBOX, versions=store.capabilities.versions):
        for item in page.objects:
            listed = Drop(item.key, item.version, item.size_bytes, item.modified)
            same_name = slug(PurePosixPath(item.key).stem) == job.rpartition("-")[0]
            drop = _told_apart(store, listed) if same_name else listed
            if drop is not None and drop.job_id == job and not item.delete_marker:
                return True
    return False


def job_ids(store: Store, beginning: str = "") -> Iterator[str]:
    """Ids of jobs that have written anything, in order, skipping over their files.

    Cost: 1 request per job with many files, per 1,000 files otherwise.
    """
    return filter(is_job_id, _folders(store, OUTPUTS, beginning))


def _folders(store: Store, prefix: str, beginning: str = "") -> Iterator[str]:
    """Names of what lies under a prefix with files of its own, in order, skipping over those."""
    start_after = ""
    while True:
        pages = store.list(prefix + beginning, start_after=start_after)
        objects = next((page.objects for page in pages if page.objects), None)
        if objects is None:
            return
        for item in objects:
            name, slash, _ = item.key[len(prefix) :].partition("/")
            if slash and item.key > start_after:
                start_after = f"{prefix}{name}0"  # "0" follows "/": behind all files of this folder
                yield name
        start_after = max(start_after, objects[-1].key)


def waiting(store: Store) -> list[Waiting]:
    """Drops in the inbox, oldest first, at most `MAX_WAITING`.

    Cost: those of a scan, and 1 or 2 per drop; for one that an attempt has begun about 2 more.
    """
    inbox = scan(store, keep=MAX_WAITING, night=True)
    return [item for item in in_threads(lambda drop: _look(store, drop), inbox.due) if item]


def _look(store: Store, drop: Drop) -> Waiting | None:
    told_apart = _told_apart(store, drop)
    return Waiting(told_apart, begun=_has_begun(store, told_apart.job_id)) if told_apart else None


def _told_apart(store: Store, drop: Drop) -> Drop | None:
    """The drop with its version, which an id is made of; None if it was settled since it was listed."""
    if drop.version or drop.emitted_id is not None:
        return drop
    try:
        info = store.stat(drop.key)
    except NotFound:
        return None
    return Drop(drop.key, info.version, info.size_bytes, info.modified)


def _has_begun(store: Store, job: str) -> bool:
    newest = max(_folders(store, job_prefix(job)), key=_epoch, default=None)
    if newest is None or _epoch(newest) == 0:
        return False
    try:
        return not _attempt(store, attempt_key(job, newest)).is_over
    except (NotFound, ValidationError):  # a lagging listing, or of a newer version of ours
        return True


def _epoch(attempt: str) -> int:
    epoch = attempt.partition("-")[0]
    return int(epoch) if epoch.isdecimal() else 0


def recent(store: Store, *, limit: int, now: datetime, days: int) -> list[Manifest]:
    """Manifests of the jobs settled last, newest first.

    Cost: 2 requests a day looked back, and 1 per job returned.
    """
    found: list[tuple[datetime, str]] = []
    for back in range(days):
        day = f"{now - timedelta(days=back):%Y-%m-%d}/"
        for top in (DONE, FAILED):
            found += _settled_on(store, top + day)
        if len(found) >= limit:
            break
    newest = [job for _, job in sorted(found, reverse=True)[:limit]]
    manifests = [manifest for manifest in in_threads(lambda job: _read(store, job), newest) if manifest]
    return sorted(manifests, key=lambda manifest: manifest.finished_at, reverse=True)


def _settled_on(store: Store, prefix: str) -> Iterator[tuple[datetime, str]]:
    newest: dict[str, datetime] = {}
    for page in store.list(prefix):
        for item in page.objects:
            job = item.key[len(prefix) :].partition("/")[0]
            newest[job] = max(item.modified, newest.get(job, item.modified))
    return ((modified, job) for job, modified in newest.items())


def read_manifest(store: Store, job: str) -> Manifest | None:
    """A job's manifest, None if none stands. Never reads absence from a refusal. Cost: 2 requests."""
    page = next(iter(store.list(manifest_key(job))))
    return _read(store, job) if any(item.key == manifest_key(job) for item in page.objects) else None


def _read(store: Store, job: str) -> Manifest | None:
    try:
        data = read_bytes(store, manifest_key(job), limit_bytes=MAX_MANIFEST_BYTES)
    except NotFound:
        return None
    try:
        return Manifest.model_validate_json(data)
    except ValidationError as error:
        raise StoreError(
            f"not a manifest that this version reads ({error.error_count()} faults)",
            where=manifest_key(job),
            mend="It may be of a newer Dropbatch: update this one",
        ) from None


def progress(store: Store, job: str) -> Progress:
    """How far a job without a manifest is. Cost: 1 request per 1,000 files and 1 per attempt."""
    so_far = Progress()
    prefix = job_prefix(job)
    for page in store.list(prefix):
        for item in page.objects:
            name = item.key[len(prefix) :]
            if match := _RESULT.fullmatch(name):
                so_far.finished.add(int(match["index"]))
            elif name.endswith("/attempt.json"):
                so_far.attempts.append(_attempt(store, item.key))
            else:
                so_far.files += 1
    so_far.attempts.sort(key=lambda attempt: attempt.begun_at)
    return so_far


def _attempt(store: Store, key: str) -> Attempt:
    return Attempt.model_validate_json(read_bytes(store, key, limit_bytes=MAX_MANIFEST_BYTES))
