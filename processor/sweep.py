"""The sweep: remove what losing attempts left, long after their job's manifest stands.

Only jobs whose manifest has stood 25 hours (no attempt outlives 24), only keys that it
does not name. Where no manifest stands nothing is ever removed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, datetime, timedelta

import structlog

from processor.commit import standing
from processor.errors import NotFound, StoreError, VersionMismatch
from processor.layout import (
    BESIDE,
    DONE,
    FAILED,
    STATE,
    beside_key,
    gallery_key,
    job_prefix,
    manifest_key,
    training_page_key,
)
from processor.machine import Machine
from processor.records import Manifest
from processor.store import read_bytes

log = structlog.get_logger(__name__)

_KEPT_BESIDE = ("attempt.json", "engine.log", "manifest.json")
"""Small files of the committed attempt that its manifest does not list."""
_DAYS_BACK = 7
_MAX_LEFT_OUT = 8
"""Jobs of a day that may be impossible to sweep; at more it is the store that is out of reach."""
_LAST_SWEPT = f"{STATE}swept.txt"


@dataclass(slots=True)
class SweepReport:
    jobs: int = 0
    removed: int = 0


def sweep(machine: Machine) -> SweepReport:
    """Sweep every settled day that is old enough and not swept yet.

    A day is taken up again if it was cut off, by a stop or by a store out of reach; days more
    than a week back are left alone.

    Cost: 2 requests if there is nothing to do; else per job of that day 1 for the
        manifest, 1 per 1,000 of its files, 1 per file removed, and its lease entries.
    """
    report = SweepReport()
    now = machine.clock.now()
    # A job settled at the last second of its day must have stood long enough, too.
    last = (now - timedelta(seconds=machine.policy.sweep_after_s) - timedelta(days=1)).date()
    first = max(_last_swept(machine) + timedelta(days=1), last - timedelta(days=_DAYS_BACK))
    day = first
    while day <= last and _sweep_day(machine, day, now, report):
        machine.stores.main.put(_LAST_SWEPT, day.isoformat().encode(), media_type="text/plain")
        day += timedelta(days=1)
    if report.removed:
        log.info("sweep", jobs=report.jobs, removed=report.removed)
    return report


def _sweep_day(machine: Machine, day: date, now: datetime, report: SweepReport) -> bool:
    """Whether it came to the day's end. A job that can't be swept is left out, and the log names it."""
    left_out = 0
    for job_id in _settled_on(machine, day):
        if machine.stop.is_set():
            return False
        try:
            _sweep_job(machine, job_id, now, report)
        except StoreError as error:
            left_out += 1
            if left_out > _MAX_LEFT_OUT:
                raise
            log.warning("sweep.left_out", job_id=job_id, why=str(error))
    return not machine.stop.is_set()


def _sweep_job(machine: Machine, job_id: str, now: datetime, report: SweepReport) -> None:
    manifest = standing(machine, job_id)
    if manifest is None or (now - manifest.finished_at).total_seconds() < machine.policy.sweep_after_s:
        return
    report.jobs += 1
    named = _named(manifest)
    store = machine.stores.main
    versions = store.capabilities.versions
    for page in store.list(job_prefix(job_id), versions=versions):
        for item in page.objects:
            if item.key in named:
                continue
            if machine.stop.is_set():
                return
            with suppress(NotFound, VersionMismatch):  # another runner sweeps, too
                store.delete(item.key, version=item.version or store.stat(item.key).version)
                report.removed += 1
    machine.leases.forget(job_id)


def _named(manifest: Manifest) -> set[str]:
    """Every key that must stay: what the manifest names, and the records of its attempts."""
    job_id = manifest.job_id
    keys = {manifest_key(job_id), gallery_key(job_id), training_page_key(job_id)}
    keys.update(beside_key(job_id, name) for name in BESIDE)
    attempts = {manifest.attempt, *(attempt.attempt for attempt in manifest.attempts)}
    for attempt in attempts:
        keys.update(f"{job_prefix(job_id)}{attempt}/{name}" for name in _KEPT_BESIDE)
    for result in manifest.tasks:
        keys.update(file.key for file in result.files)
    return keys


def _settled_on(machine: Machine, day: date) -> Iterator[str]:
    """Ids of the jobs that settled on a (UTC) day."""
    for folder in (DONE, FAILED):
        prefix = f"{folder}{day:%Y-%m-%d}/"
        last = ""
        for page in machine.stores.main.list(prefix):
            for item in page.objects:
                job_id = item.key[len(prefix) :].partition("/")[0]
                if job_id != last:
                    last = job_id
                    yield job_id


def _last_swept(machine: Machine) -> date:
    try:
        text = read_bytes(machine.stores.main, _LAST_SWEPT, limit_bytes=64)
        return date.fromisoformat(text.decode())
    except (NotFound, ValueError):
        return date.min
