"""The morning report as a page: what failed first, then every job with its pictures."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from processor.gallery import make_page, styles
from processor.records import Outcome
from processor.spelling import duration, money, plural

if TYPE_CHECKING:
    from processor.nightly import NightJob, NightReport

_ROOT = "../../"
"""From a report to `comfy_outputs/`."""


def render_night(report: NightReport) -> str:
    """`comfy_outputs/nightly/<date>/index.html`. Pure."""
    bad = [job for job in report.jobs if job.outcome not in (Outcome.DONE, Outcome.CANCELLED)]
    facts = [
        ("Jobs", f"{len(report.jobs):,}"),
        (
            "Tasks",
            f"{report.tasks - report.failed_tasks:,}"
            + (f" of {report.tasks:,}" if report.failed_tasks else ""),
        ),
        ("Files", f"{report.files:,}"),
        ("Engine time", duration(report.seconds)),
    ]
    if report.cost_usd:
        facts.append(("Cost", money(report.cost_usd)))
    page = {
        "title": f"The night to {report.morning:%A}, {report.morning.day} {report.morning:%B %Y}",
        "span": f"{_clock(report.opened_at)} to {_clock(report.closed_at)} UTC",
        "facts": facts,
        "bad": [_entry(job) for job in bad],
        "jobs": [_entry(job) for job in report.jobs],
        "more": plural(report.more, "further job") if report.more else "",
        "made": f"{report.made_at:%Y-%m-%d %H:%M} UTC",
    }
    return make_page("night.html.j2", styles("base.css", "job.css", "night.css"), page=page)


def _entry(job: NightJob) -> dict[str, Any]:
    folder = f"{_ROOT}{quote(job.job_id)}/"
    facts = [f"{_clock(job.started_at)} to {_clock(job.finished_at)}"]
    if job.tasks:
        facts.append(plural(job.tasks, "task"))
    if job.seconds:
        facts.append(duration(job.seconds))
    if job.cost_usd:
        facts.append(money(job.cost_usd))
    return {
        "job_id": job.job_id,
        "name": job.name,
        "outcome": job.outcome.value,
        # By its file's name: neither a disk nor a bucket has pages for folders.
        "href": folder + "index.html",
        "facts": facts,
        "failed": f"{job.failed:,} of {plural(job.tasks, 'task')} failed" if job.failed and job.tasks else "",
        "error": job.error,
        "pictures": [folder + href.removeprefix("./") for href in job.pictures],
        "rest": max(0, job.files - len(job.pictures)) if job.pictures else 0,
    }


def _clock(moment: datetime) -> str:
    return f"{moment:%H:%M}"
