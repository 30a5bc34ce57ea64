"""The live display of `run`: a line per job in work, a line left behind for each that ended."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TaskID, TextColumn
from rich.text import Text

from processor.cli.console import STYLES, SafeConsole
from processor.events import (
    Event,
    JobClaimed,
    JobPlanned,
    JobReleased,
    JobSettled,
    TaskFinished,
    TaskProgress,
    TaskStarted,
)
from processor.records import Manifest
from processor.report import error_line
from processor.spelling import duration, plural

_MARKS = {"done": "✓", "partial": "◐", "cancelled": "■"}


@dataclass(slots=True)
class _Job:
    row: TaskID
    tasks: int = 0
    finished: int = 0
    under_way: dict[int, float] = field(default_factory=dict)
    """Task index → how much of it is done, 0 to 1."""
    stage: str = ""


class _Counted(ProgressColumn):
    """`3/12` of a job with several tasks."""

    def render(self, task: Task) -> Text:
        total = task.fields["tasks"]
        return Text(f"{task.fields['finished']:,}/{total:,}" if total > 1 else "", style="dim")


class Display:
    """An `Observer` that shows what it is told. Thread-safe; call it inside `shown`."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or SafeConsole(stderr=True, highlight=False)
        self._lock = threading.Lock()
        self._jobs: dict[str, _Job] = {}
        self._progress = Progress(
            SpinnerColumn(finished_text=" "),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            _Counted(),
            TextColumn("[dim]{task.fields[stage]}"),
            console=self._console,
            transient=True,
        )

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Take the terminal's last lines while inside. Log lines appear above them."""
        with self._progress:
            yield

    def __call__(self, event: Event) -> None:
        with self._lock:
            match event:
                case JobClaimed(job_id=job_id):
                    self._jobs[job_id] = _Job(self._row(job_id))
                case JobSettled(job_id=job_id, manifest=manifest):
                    self._end(job_id)
                    self._console.print(_settled(manifest), soft_wrap=True)
                case JobReleased(job_id=job_id, why=why):
                    self._end(job_id)
                    self._console.print(f"[dim]↺ {escape(job_id)}  given back: {escape(why)}[/dim]")
                case _:
                    if job := self._jobs.get(event.job_id):
                        self._advance(job, event)

    def _row(self, job_id: str) -> TaskID:
        name = escape(job_id if len(job_id) <= 40 else job_id[:39] + "…")
        return self._progress.add_task(name, total=None, stage="reading", tasks=0, finished=0)

    def _end(self, job_id: str) -> None:
        if job := self._jobs.pop(job_id, None):
            self._progress.remove_task(job.row)

    def _advance(self, job: _Job, event: Event) -> None:
        match event:
            case JobPlanned(tasks=tasks, adopted=adopted):
                job.tasks, job.finished, job.stage = tasks, adopted, ""
            case TaskStarted(index=index):
                job.under_way[index] = 0.0
            case TaskProgress(index=index, progress=progress):
                job.stage = progress.stage
                job.under_way[index] = min(progress.value / progress.total, 1) if progress.total else 0.0
            case TaskFinished(result=result, will_retry=will_retry):
                job.under_way.pop(result.index, None)
                job.finished += not will_retry
                if will_retry:
                    job.stage = f"task {result.index} is tried again"
        self._progress.update(
            job.row,
            total=job.tasks or None,
            completed=job.finished + sum(job.under_way.values()),
            stage=escape(job.stage[:48]),
            tasks=job.tasks,
            finished=job.finished,
        )


def _settled(manifest: Manifest) -> str:
    outcome = manifest.outcome.value
    style, mark = STYLES.get(outcome, ""), _MARKS.get(outcome, "✗")
    facts = []
    if manifest.tasks:
        done = sum(result.status == "done" for result in manifest.tasks)
        total = len(manifest.plan.tasks) if manifest.plan else len(manifest.tasks)
        facts.append(plural(total, "task") if done == total else f"{done:,} of {plural(total, 'task')}")
        facts.append(duration(manifest.seconds))
    error = manifest.error or next((result.error for result in manifest.tasks if result.error), None)
    if error:
        facts.append(escape(error_line(error)))
    said = "" if outcome == "done" else f"  [{style}]{outcome}[/{style}]"
    return f"[{style}]{mark}[/{style}] {escape(manifest.job_id)}{said}  [dim]{', '.join(facts)}[/dim]"
