"""`dropbatch status`: the bucket at a glance, or one job."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from processor.cli import console
from processor.cli.options import Bucket, Config, EndpointUrl, Json, load_settings, open_main

if TYPE_CHECKING:
    from processor.cli.jobs import Waiting
    from processor.config import Settings
    from processor.inbox import Inbox
    from processor.records import Manifest
    from processor.store import Store


def command(
    job: Annotated[
        str | None, typer.Argument(help="A job id, or the beginning of one.", metavar="JOB")
    ] = None,
    *,
    limit: Annotated[int, typer.Option("-n", "--limit", min=1, max=1000, help="Finished jobs shown.")] = 10,
    days: Annotated[
        int, typer.Option(min=1, max=366, help="How far back finished jobs are looked for.")
    ] = 14,
    as_json: Json = False,
    bucket: Bucket = None,
    endpoint_url: EndpointUrl = None,
    config: Config = None,
) -> None:
    """What waits, runs and has finished; or one job.

    \b
    Example:
      dropbatch status
      dropbatch status portrait-3f9a
      dropbatch status --json -n 100
    """
    from processor.cli.jobs import find_job

    settings = load_settings(config, bucket, endpoint_url)
    store = open_main(settings)
    if job is None:
        _bucket(store, over_budget=_over_budget(settings, store), limit=limit, days=days, as_json=as_json)
    else:
        _job(store, find_job(store, job), as_json=as_json)


def _over_budget(settings: Settings, store: Store) -> str | None:
    """Why what costs money begins no more today, by these settings' cap and day."""
    from processor.assembly import policy_of
    from processor.budget import DayBudget
    from processor.clock import StoreClock, SystemClock

    policy = policy_of(settings)
    budget = DayBudget(store, policy, StoreClock(SystemClock()))
    # A cap of nothing where nothing costs anything stops nobody.
    return budget.why_used_up() if policy.priced or budget.spent_usd() > 0 else None


def _bucket(store: Store, *, over_budget: str | None, limit: int, days: int, as_json: bool) -> None:
    from processor.cli.jobs import MAX_WAITING, recent, waiting
    from processor.inbox import scan

    now = datetime.now(UTC)
    inbox = scan(store, keep=MAX_WAITING)
    pending = waiting(store) if inbox.pending or inbox.nightly else []
    finished = recent(store, limit=limit, now=now, days=days)
    if as_json:
        console.print_json(
            {
                "bucket": store.url,
                "paused": inbox.paused,
                "over_budget": over_budget,
                "waiting": [_waiting_json(item) for item in pending],
                "waiting_total": inbox.pending,
                "held_for_night": inbox.nightly,
                "recurring": [drop.key for drop in inbox.recurring],
                "datasets": sorted(inbox.datasets),
                "ignored": inbox.ignored,
                "finished": [summary(manifest) for manifest in finished],
            }
        )
        return
    if over_budget:
        console.warn(f"{over_budget}; what costs money waits for tomorrow, or a higher max_day_cost_usd")
    _print_inbox(inbox, pending, now)
    if finished:
        rows = [_finished_row(manifest, now) for manifest in finished]
        console.print_notes_below(["finished", "", "tasks", "files", "engine", "cost", ""], rows)
    elif not pending:
        console.note(f"nothing finished in the last {days} days")


def _print_inbox(inbox: Inbox, pending: list[Waiting], now: datetime) -> None:
    if inbox.paused:
        console.warn("this bucket is paused; `dropbatch resume` lets it go on")
    if pending:
        rows = [
            (
                [
                    escape(item.drop.job_id),
                    console.word("running" if item.begun else "waiting"),
                    console.ago(item.drop.modified, now),
                ],
                escape(item.drop.key),
            )
            for item in pending
        ]
        console.print_notes_below(["in the inbox", "", "dropped"], rows)
    more = inbox.pending + inbox.nightly - len(pending)
    notes = [
        f"{more:,} more wait" if more > 0 else "",
        f"{inbox.nightly:,} held for the night" if inbox.nightly else "",
        f"{len(inbox.recurring)} recurring" if inbox.recurring else "",
        f"datasets: {', '.join(sorted(inbox.datasets)[:10])}" if inbox.datasets else "",
        f"{inbox.ignored:,} files ignored, e.g. {inbox.ignored_sample[0]}" if inbox.ignored else "",
    ]
    for text in filter(None, notes):
        console.note(text)
    if not pending and not inbox.paused and not any(notes):
        console.note("the inbox is empty")


def _job(store: Store, job_id: str, *, as_json: bool) -> None:
    from processor.cli.jobs import progress, read_manifest

    manifest = read_manifest(store, job_id)
    if manifest is not None:
        if as_json:
            console.print_json({**summary(manifest), "failed_tasks": _failed(manifest)})
        else:
            _print_manifest(manifest, store.url)
        return
    so_far = progress(store, job_id)
    state = "running" if so_far.begun else "waiting"
    facts: dict[str, Any] = {
        "job_id": job_id,
        "state": state,
        "tasks": so_far.tasks,
        "tasks_finished": len(so_far.finished),
        "files": so_far.files,
        "attempts": [
            {"attempt": a.attempt, "host": a.host, "begun_at": a.begun_at, "ended": a.ended}
            for a in so_far.attempts
        ],
    }
    if as_json:
        console.print_json(facts)
        return
    total = f" of {so_far.tasks:,}" if so_far.tasks else ""
    out = console.out()
    out.print(f"{escape(job_id)}  {console.word(state)}")
    out.print(f"{len(so_far.finished):,}{total} tasks finished, {so_far.files:,} files")
    for attempt in so_far.attempts:
        ended = f", {attempt.ended}" if attempt.ended else ""
        when = console.ago(attempt.begun_at, datetime.now(UTC))
        out.print(escape(f"attempt {attempt.attempt} on {attempt.host}, begun {when}{ended}"))


def _print_manifest(manifest: Manifest, place: str) -> None:
    from processor.layout import gallery_key
    from processor.report import error_line
    from processor.spelling import duration

    out = console.out()
    facts = summary(manifest)
    out.print(f"{escape(manifest.job_id)}  {console.word(manifest.outcome.value)}")
    out.print(
        f"{facts['tasks_done']:,} of {facts['tasks']:,} tasks, {facts['files']:,} files, "
        f"{duration(manifest.seconds)} of engine time, ${manifest.cost_usd:,.2f}, "
        f"finished {manifest.finished_at:%Y-%m-%d %H:%M} UTC"
    )
    if manifest.error:
        out.print(f"[red]{escape(error_line(manifest.error))}[/red]")
        for detail in manifest.error.details:
            out.print(f"  {escape(detail)}")
    failed = _failed(manifest)
    for task in failed[:20]:
        out.print(f"[red]task {task['index']}:[/red] {escape(task['error'])}")
    if len(failed) > 20:
        console.note(f"{len(failed) - 20:,} more failed; --json lists them")
    out.print(escape(f"{place}/{gallery_key(manifest.job_id)}"), style="dim")


def summary(manifest: Manifest) -> dict[str, Any]:
    """A finished job in a few facts, for --json."""
    from processor.gallery import job_name

    return {
        "job_id": manifest.job_id,
        "state": manifest.outcome.value,
        "name": job_name(manifest),
        "drop": manifest.drop.key,
        "tasks": len(manifest.plan.tasks) if manifest.plan else len(manifest.tasks),
        "tasks_done": sum(result.status == "done" for result in manifest.tasks),
        "files": sum(len(result.files) for result in manifest.tasks),
        "seconds": manifest.seconds,
        "cost_usd": manifest.cost_usd,
        "finished_at": manifest.finished_at,
        "error": manifest.error.model_dump(mode="json") if manifest.error else None,
    }


def _failed(manifest: Manifest) -> list[dict[str, Any]]:
    from processor.report import error_line

    return [
        {
            "index": result.index,
            "params": result.params,
            "seed": result.seed,
            "error": error_line(result.error),
        }
        for result in manifest.tasks
        if result.error is not None
    ]


def _waiting_json(item: Waiting) -> dict[str, Any]:
    return {
        "job_id": item.drop.job_id,
        "state": "running" if item.begun else "waiting",
        "drop": item.drop.key,
        "dropped_at": item.drop.modified,
        "size_bytes": item.drop.size_bytes,
    }


def _finished_row(manifest: Manifest, now: datetime) -> tuple[list[str], str]:
    """The row, and the job's error, which has a line of its own."""
    from processor.report import error_line
    from processor.spelling import duration

    facts = summary(manifest)
    done, total = facts["tasks_done"], facts["tasks"]
    row = [
        escape(manifest.job_id),
        console.word(manifest.outcome.value),
        f"{done:,}" if done == total else f"{done:,}/{total:,}",
        f"{facts['files']:,}",
        duration(manifest.seconds),
        f"${manifest.cost_usd:,.2f}" if manifest.cost_usd else "",
        console.ago(manifest.finished_at, now),
    ]
    return row, escape(error_line(manifest.error)[:120]) if manifest.error else ""
