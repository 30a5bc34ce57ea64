"""The morning report: what a night did, as one page and one JSON, made once the night is over.

A job belongs to the night in which it began; one of `inbox/nightly/` that was begun by hand, to
the night before. A job that ends after its night has closed makes the report anew, unless its
runner dies right then.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING
from urllib.parse import unquote

import structlog
from pydantic import AwareDatetime

from processor.errors import NotFound, StoreError
from processor.gallery import file_href, job_name, shown_as_of
from processor.layout import NIGHTLY, job_prefix, night_page_key, night_report_key, quiet_night_key
from processor.machine import Machine
from processor.models import Model
from processor.night_page import render_night
from processor.parallel import each
from processor.records import Manifest, Outcome, dump
from processor.report import error_line
from processor.schedule import Night, Window
from processor.settled import manifests, settled_jobs
from processor.store import Store

if TYPE_CHECKING:
    from PIL import Image

log = structlog.get_logger(__name__)

MAX_JOBS = 2_000
"""A report shows the newest; its totals are of those, and it says so."""
MAX_PICTURES = 24
"""Of one job, spread evenly over the gallery's order."""
MAX_SHEET = 60
"""Pictures on the sheet that Slack is shown."""
_AGAIN_S = 600.0


class NightJob(Model):
    """A job as a report names it."""

    job_id: str
    name: str
    outcome: Outcome
    drop: str
    started_at: AwareDatetime
    finished_at: AwareDatetime
    tasks: int = 0
    failed: int = 0
    """Tasks without a result."""
    files: int = 0
    seconds: float = 0.0
    cost_usd: float = 0.0
    pictures: list[str] = []
    """Relative to the job's folder, ready to be linked."""
    error: str | None = None


class NightReport(Model):
    """`comfy_outputs/nightly/<date>/report.json`."""

    morning: date
    opened_at: AwareDatetime
    closed_at: AwareDatetime
    made_at: AwareDatetime
    jobs: list[NightJob]
    more: int = 0
    """Jobs beyond `MAX_JOBS`, of which nothing is told."""

    @property
    def tasks(self) -> int:
        return sum(job.tasks for job in self.jobs)

    @property
    def failed_tasks(self) -> int:
        return sum(job.failed for job in self.jobs)

    @property
    def files(self) -> int:
        return sum(job.files for job in self.jobs)

    @property
    def seconds(self) -> float:
        return sum(job.seconds for job in self.jobs)

    @property
    def cost_usd(self) -> float:
        return sum(job.cost_usd for job in self.jobs)


def night_of(night: Night, manifest: Manifest) -> Window | None:
    """The night that a job belongs to, None for one of the day."""
    window = night.begun(manifest.started_at)
    held = manifest.drop.key.startswith(NIGHTLY)
    return window if held or manifest.started_at in window else None


def make_report(machine: Machine, window: Window) -> NightReport | None:
    """Write a night's page and JSON; None, and nothing written, if no job ran.

    Cost: 2 requests a day the night touches, 1 a job settled since it opened, and 2.
    """
    night, store, now = machine.policy.night, machine.stores.main, machine.clock.now()
    if night is None:
        return None
    settled = settled_jobs(store, since=window.opens, until=min(now, window.closes + timedelta(days=1)))
    kept = settled[-MAX_JOBS:]
    jobs = [summarise(manifest) for manifest in manifests(store, kept) if night_of(night, manifest) == window]
    if not jobs:
        return None
    report = NightReport(
        morning=window.morning,
        opened_at=window.opens,
        closed_at=window.closes,
        made_at=now,
        jobs=sorted(jobs, key=lambda job: (job.started_at, job.job_id)),
        more=len(settled) - len(kept),
    )
    store.put(night_report_key(window.morning), dump(report), media_type="application/json")
    page = render_night(report).encode()
    store.put(night_page_key(window.morning), page, media_type="text/html; charset=utf-8")
    log.info("night.reported", morning=window.morning.isoformat(), jobs=len(jobs))
    return report


def summarise(manifest: Manifest) -> NightJob:
    """A manifest as a report shows it. Pure."""
    hrefs = [
        href
        for result in sorted(manifest.tasks, key=lambda result: result.index)
        for file in result.files
        if shown_as_of(file) == "image" and (href := file_href(manifest.job_id, file.key))
    ]
    done = sum(result.status == "done" for result in manifest.tasks)
    total = len(manifest.plan.tasks) if manifest.plan else len(manifest.tasks)
    return NightJob(
        job_id=manifest.job_id,
        name=job_name(manifest),
        outcome=manifest.outcome,
        drop=manifest.drop.key,
        started_at=manifest.started_at,
        finished_at=manifest.finished_at,
        tasks=total,
        failed=total - done,
        files=sum(len(result.files) for result in manifest.tasks),
        seconds=manifest.seconds,
        cost_usd=manifest.cost_usd,
        pictures=spread(hrefs, MAX_PICTURES),
        error=error_line(manifest.error) if manifest.error else None,
    )


def spread(items: list[str], count: int) -> list[str]:
    """At most `count` of them, evenly spaced, in their order; the first is always one."""
    if len(items) <= count:
        return items
    return [items[place * len(items) // count] for place in range(count)]


def announcing(machine: Machine) -> Callable[[NightReport], None] | None:
    """How this machine tells of a report; None if it tells nobody."""
    notices, store = machine.notices, machine.stores.main
    if notices is None:
        return None
    return lambda report: notices.night(store, report, lambda: night_sheet(store, report))


def night_sheet(store: Store, report: NightReport) -> bytes | None:
    """A night's pictures on one, each job's first ones. Cost: 1 request a picture, at most 60."""
    from processor.contact_sheet import CELL, READERS, contact_sheet, stored_thumbnail  # late: Pillow

    shown = [job for job in report.jobs if job.pictures][:MAX_SHEET]
    share = max(1, MAX_SHEET // max(1, len(shown)))
    wanted = [
        (job.name, f"{job_prefix(job.job_id)}{unquote(href.removeprefix('./'))}")
        for job in shown
        for href in spread(job.pictures, share)
    ]

    def read(named: tuple[str, str]) -> Image.Image | None:
        return stored_thumbnail(store, named[1], CELL)

    return contact_sheet((name, small) for (name, _), small in each(read, wanted, threads=READERS))


class Mornings:
    """Sees to it that each night is reported once it is over. One a process; thread-safe."""

    def __init__(self, machine: Machine, *, announce: Callable[[NightReport], None] | None = None) -> None:
        self._machine = machine
        self._announce = announce
        self._lock = threading.Lock()
        self._made: set[date] = set()
        self._late: dict[date, Window] = {}
        self._again_at = machine.clock.monotonic()

    def note(self, ended: Iterable[Manifest]) -> None:
        """Take notice of jobs that have just ended: if their night is over, its report is stale."""
        night, now = self._machine.policy.night, self._machine.clock.now()
        for manifest in ended if night else ():
            window = night_of(night, manifest) if night else None
            if window is not None and window.closes <= now:
                with self._lock:
                    self._late[window.morning] = window

    @property
    def due(self) -> bool:
        """Whether `look` has something to do. Cost: none."""
        night = self._machine.policy.night
        if night is None:
            return False
        with self._lock:
            stale = bool(self._late) and self._machine.clock.monotonic() >= self._again_at
            return stale or night.closed(self._machine.clock.now()).morning not in self._made

    def look(self) -> None:
        """Report the last night if nobody has, and nights whose last jobs have ended since.

        A store out of reach is tried again by the next call. Cost: 1 request once a night and
        process if there is nothing to do, 2 after a night without jobs; else see `make_report`.
        """
        night = self._machine.policy.night
        if night is None:
            return
        try:
            self._first(night.closed(self._machine.clock.now()))
            self.retell()
        except StoreError as error:
            log.warning("night.not_reported", why=str(error))

    def _first(self, window: Window) -> None:
        with self._lock:
            if window.morning in self._made:
                return
        if not self._reported(window):
            self._report(window)
            with self._lock:
                self._late.pop(window.morning, None)
        with self._lock:
            self._made.add(window.morning)

    def _report(self, window: Window) -> None:
        report = make_report(self._machine, window)
        if report is None:
            # Else every process would read the manifests of a whole day to find none of that night.
            self._machine.stores.main.put(quiet_night_key(window.morning), b"", media_type="text/plain")
        elif self._announce is not None:
            self._announce(report)

    def retell(self) -> None:
        """Make the reports anew that `note` found stale.

        Raises:
            StoreError: out of reach; what was not made is stale still.
        Cost: none, or for each night see `make_report`.
        """
        with self._lock:
            late = list(self._late.items())
            self._again_at = self._machine.clock.monotonic() + _AGAIN_S
        for morning, window in late:
            make_report(self._machine, window)
            with self._lock:
                self._late.pop(morning, None)

    def tell_early(self) -> None:
        """Report the night that is open as far as it has come; its morning makes that anew.

        Cost: none by day, else see `make_report`.
        """
        night, now = self._machine.policy.night, self._machine.clock.now()
        if night is None or now not in (window := night.begun(now)):
            return
        try:
            make_report(self._machine, window)
        except StoreError as error:
            log.warning("night.not_reported", why=str(error))

    def _reported(self, window: Window) -> bool:
        """Whether it was looked at once it was over, and no job of it has ended since a quiet one was."""
        if self._stands_since(window.closes, night_report_key(window.morning)):
            return True
        with self._lock:
            if window.morning in self._late:
                return False
        return self._stands_since(window.closes, quiet_night_key(window.morning))

    def _stands_since(self, moment: datetime, key: str) -> bool:
        try:
            return self._machine.stores.main.stat(key).modified >= moment
        except NotFound:
            return False
