"""Tell people how a job ended: what a notice says, and that each is sent once.

A notice is an effect: it follows from a standing manifest. A marker object names what was
sent where, so that redoing effects after a crash does not send it again. Whatever a notifier
does wrong is logged and costs the job nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote

import structlog

from processor.errors import NotFound, StoreError
from processor.gallery import job_name
from processor.layout import NIGHTS, OUTPUTS, gallery_key, manifest_key, notified_key
from processor.records import Manifest, Outcome
from processor.redact import redact
from processor.report import error_line
from processor.spelling import duration, money, plural

if TYPE_CHECKING:
    from processor.nightly import NightReport
    from processor.store import Store

log = structlog.get_logger(__name__)

NIGHT = "night"
EVENTS = (*(outcome.value for outcome in Outcome), NIGHT)
"""What can be told: how a job ended, or that a night was reported."""
_MARKS = {Outcome.DONE: "✓", Outcome.PARTIAL: "◐", Outcome.CANCELLED: "·"}


@dataclass(frozen=True, slots=True)
class Notice:
    """What is told of one event."""

    event: str
    subject: str
    """The job id, or the morning's date: with the event it names the notice."""
    title: str
    text: str
    at: datetime
    url: str | None = None
    data: dict[str, Any] = field(default_factory=dict)
    """For machines; JSON."""

    @property
    def id(self) -> str:
        """The same however often it is sent, so that a receiver can tell a repetition."""
        return "msg_" + hashlib.sha256(f"{self.subject}\0{self.event}".encode()).hexdigest()[:24]


class Notifier(Protocol):
    """Somewhere to tell. Its `send` may raise anything: it is caught, and logged by type."""

    name: str
    """A short word; part of the marker's key."""

    def send(self, notice: Notice, picture: Callable[[], bytes | None]) -> None:
        """Tell, trying again what may pass. At most a minute.

        Args:
            picture: makes the JPEG that belongs to it, for those who can show one.
        """
        ...


@dataclass(frozen=True, slots=True)
class Notices:
    """Who is told what."""

    notifiers: Sequence[Notifier]
    events: Collection[str]
    page_url: str | None = None
    """Where `comfy_outputs/` can be seen in a browser."""

    def job(self, store: Store, manifest: Manifest) -> None:
        """Tell how a job ended, unless it, or the settings, ask for silence.

        Cost: 2 requests a notifier that is told.
        """
        wanted = manifest.job is None or manifest.job.get("notify", True)
        if wanted and manifest.outcome.value in self.events:
            self._tell(store, job_notice(manifest, self.page_url), lambda: None)

    def night(self, store: Store, report: NightReport, picture: Callable[[], bytes | None]) -> None:
        """Tell of a morning report, with its pictures on one sheet."""
        if NIGHT in self.events:
            self._tell(store, night_notice(report, self.page_url), picture)

    def _tell(self, store: Store, notice: Notice, picture: Callable[[], bytes | None]) -> None:
        for notifier in self.notifiers:
            key = notified_key(notice.subject, notice.event, notifier.name)
            try:
                if not _exists(store, key):
                    notifier.send(notice, picture)
                    store.put(key, b"{}", media_type="application/json")
            except StoreError as error:
                log.warning("notice.not_marked", to=notifier.name, about=notice.subject, why=str(error))
            except Exception as error:  # noqa: BLE001  (a notice that fails must not fail the job)
                why = redact(f"{type(error).__name__}: {error}")[:500]
                log.warning("notice.not_sent", to=notifier.name, about=notice.subject, why=why)


def job_notice(manifest: Manifest, page_url: str | None) -> Notice:
    """What is told of a finished job. Pure."""
    done = sum(result.status == "done" for result in manifest.tasks)
    total = len(manifest.plan.tasks) if manifest.plan else len(manifest.tasks)
    files = sum(len(result.files) for result in manifest.tasks)
    facts = []
    if total:
        facts.append(plural(total, "task") if done == total else f"{done:,} of {plural(total, 'task')}")
        facts.append(plural(files, "file"))
    if manifest.seconds:
        facts.append(duration(manifest.seconds))
    if manifest.cost_usd:
        facts.append(money(manifest.cost_usd))
    error = error_line(manifest.error) if manifest.error else None
    lines = [", ".join(facts)] if facts else []
    name = job_name(manifest)
    return Notice(
        event=manifest.outcome.value,
        subject=manifest.job_id,
        title=redact(f"{_MARKS.get(manifest.outcome, '✗')} {name}: {manifest.outcome.value}"),
        text=redact("\n".join([*lines, *([error] if error else [])])),
        at=manifest.finished_at,
        url=_url(page_url, gallery_key(manifest.job_id)),
        data={
            "job_id": manifest.job_id,
            "name": redact(name),
            "kind": manifest.kind,
            "outcome": manifest.outcome.value,
            "tasks": total,
            "done": done,
            "files": files,
            "seconds": manifest.seconds,
            "cost_usd": manifest.cost_usd,
            "drop": manifest.drop.key,
            "manifest": manifest_key(manifest.job_id),
            "error": error,
        },
    )


def night_notice(report: NightReport, page_url: str | None) -> Notice:
    """What is told of a night. Pure."""
    bad = [job for job in report.jobs if job.outcome not in (Outcome.DONE, Outcome.CANCELLED)]
    facts = [plural(len(report.jobs), "job"), plural(report.tasks, "task"), plural(report.files, "file")]
    facts += [duration(report.seconds)] + ([money(report.cost_usd)] if report.cost_usd else [])
    lines = [", ".join(facts), *(f"✗ {job.name}: {job.error or job.outcome.value}" for job in bad[:10])]
    data = report.model_dump(mode="json", exclude={"jobs"})
    totals = {"jobs": len(report.jobs), "bad_jobs": len(bad), "tasks": report.tasks, "files": report.files}
    return Notice(
        event=NIGHT,
        subject=f"{report.morning:%Y-%m-%d}",
        title=f"The night to {report.morning:%A}, {report.morning.day} {report.morning:%B}",
        text=redact("\n".join(lines)),
        at=report.made_at,
        url=_url(page_url, f"{NIGHTS}{report.morning:%Y-%m-%d}/index.html"),
        data={**data, **totals, "seconds": report.seconds, "cost_usd": report.cost_usd},
    )


def _url(page_url: str | None, key: str) -> str | None:
    return f"{page_url.rstrip('/')}/{quote(key.removeprefix(OUTPUTS))}" if page_url else None


def _exists(store: Store, key: str) -> bool:
    try:
        store.stat(key)
    except NotFound:
        return False
    return True
