"""`dropbatch costs`: what finished jobs have cost, from their manifests."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, Literal
from zoneinfo import ZoneInfo

import typer
from rich.markup import escape

from processor.cli import console
from processor.cli.exits import UsageError
from processor.cli.options import Bucket, Config, EndpointUrl, Json, load_settings, open_main

if TYPE_CHECKING:
    from processor.records import Manifest

By = Literal["day", "job", "gpu", "workflow"]


def command(
    *,
    since: Annotated[
        str, typer.Option(help="A day like 2026-11-01, or how long ago: 24h, 7d.", metavar="WHEN")
    ] = "7d",
    by: Annotated[str, typer.Option(help="day, job, gpu or workflow.", metavar="WHAT")] = "day",
    as_json: Json = False,
    bucket: Bucket = None,
    endpoint_url: EndpointUrl = None,
    config: Config = None,
) -> None:
    """What finished jobs have cost.

    Summed from their manifests; what failed has cost something, too. Days are those of the
    zone in the settings.

    \b
    Example:
      dropbatch costs --since 30d --by workflow
    """
    from processor.settled import manifests, settled_jobs

    if by not in ("day", "job", "gpu", "workflow"):
        raise UsageError("costs are summed by day, job, gpu or workflow", where=f"--by {by}")
    settings = load_settings(config, bucket, endpoint_url)
    zone, now = ZoneInfo(settings.zone), datetime.now(UTC)
    store, begin = open_main(settings), parse_since(since, now, zone)
    found = [
        m for m in manifests(store, settled_jobs(store, since=begin, until=now)) if m.finished_at >= begin
    ]
    sums = {what: summed(found, what, zone) for what in ("day", "job", "gpu", "workflow")}
    if as_json:
        total = {"jobs": len(found), **_total(sums["job"])}
        console.print_json(
            {"since": begin, "total": total, **{f"by_{what}": rows for what, rows in sums.items()}}
        )
        return
    _print(sums[by], by, len(found))


def parse_since(text: str, now: datetime, zone: ZoneInfo) -> datetime:
    """A day in the zone, or a span before now, as an instant.

    Raises:
        UsageError: neither.
    """
    if match := re.fullmatch(r"(\d{1,4})([hd])", text):
        return now - timedelta(**{"hours" if match[2] == "h" else "days": int(match[1])})
    try:
        return datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=zone).astimezone(UTC)
    except ValueError:
        raise UsageError("write a day like 2026-11-01, or 24h, or 7d", where=f"--since {text}") from None


def summed(manifests: Iterable[Manifest], by: str, zone: ZoneInfo) -> dict[str, dict[str, Any]]:
    """Tasks, engine seconds and cost under each heading, dearest first (days: in order)."""
    rows: dict[str, dict[str, Any]] = {}
    for manifest in manifests:
        for heading, tasks, seconds, usd in _parts(manifest, by, zone):
            row = rows.setdefault(heading, {"tasks": 0, "seconds": 0.0, "cost_usd": 0.0})
            row["tasks"] += tasks
            row["seconds"] = round(row["seconds"] + seconds, 3)
            row["cost_usd"] = round(row["cost_usd"] + usd, 6)
    if by == "day":
        return dict(sorted(rows.items()))
    return dict(sorted(rows.items(), key=lambda item: (-item[1]["cost_usd"], -item[1]["seconds"], item[0])))


def _parts(manifest: Manifest, by: str, zone: ZoneInfo) -> list[tuple[str, int, float, float]]:
    if by == "gpu":
        return [
            (result.gpu or "this machine", 1, result.seconds, result.cost_usd) for result in manifest.tasks
        ]
    heading = {
        "day": f"{manifest.finished_at.astimezone(zone):%Y-%m-%d}",
        "job": manifest.job_id,
        "workflow": _workflow(manifest),
    }[by]
    return [(heading, len(manifest.tasks), manifest.seconds, manifest.cost_usd)]


def _workflow(manifest: Manifest) -> str:
    job = manifest.job or {}
    named = job.get("workflow")
    if isinstance(named, str):
        return named
    if named:
        return "a graph of its own"
    return (
        f"train {job.get('preset') or 'with its own config'}"
        if manifest.kind == "train"
        else str(manifest.kind)
    )


def _total(rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    names = ("tasks", "seconds", "cost_usd")
    return {name: round(sum(row[name] for row in rows.values()), 6) for name in names}


def _print(rows: dict[str, dict[str, Any]], by: str, jobs: int) -> None:
    from processor.spelling import duration, money, plural

    total = _total(rows)
    cells = [
        [escape(heading), f"{row['tasks']:,}", duration(row["seconds"]), money(row["cost_usd"])]
        for heading, row in rows.items()
    ]
    console.print_notes_below([by, "tasks", "engine time", "cost"], [(row, "") for row in cells])
    console.out().print(
        f"[bold]{money(total['cost_usd'])}[/bold]  {plural(jobs, 'job')}, {plural(total['tasks'], 'task')}, "
        f"{duration(total['seconds'])} of engine time"
    )
