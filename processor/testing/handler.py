"""A handler without an engine: for tests of the machine, and for measuring it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from processor.errors import JobInvalid
from processor.handler import LocalFile, PlanContext, TaskContext, TaskOutput, Work
from processor.models import JobBase, RenderJob
from processor.records import Plan, Task, canonical_hash

Script = Callable[[Work, TaskContext], TaskOutput]


class ScriptedHandler:
    """Plans `overrides["tasks"]` tasks (1 if absent) and runs each by calling a script.

    Args:
        script: what a task does; by default it writes nothing and succeeds at once.
    """

    kind = "render"

    def __init__(self, script: Script | None = None, *, concurrency: int = 3) -> None:
        self.concurrency = concurrency
        self.closed = False
        self._script = script or (lambda _work, _context: TaskOutput(files=[], seconds=0.0))

    def plan(self, job: JobBase, context: PlanContext) -> Plan:
        assert isinstance(job, RenderJob)  # noqa: S101  (narrows the type)
        wanted = job.overrides.get("tasks", 1)
        if not isinstance(wanted, int) or not 0 < wanted <= context.max_tasks:
            raise JobInvalid(
                f"{wanted!r} tasks; 1 to {context.max_tasks} are allowed", where="overrides.tasks"
            )
        tasks = [
            Task(index=k, hash=canonical_hash([job.workflow, k]), params={"k": k}) for k in range(wanted)
        ]
        return Plan(job_id=context.job_id, kind="render", tasks=tasks)

    def run(self, work: Work, context: TaskContext) -> TaskOutput:
        return self._script(work, context)

    def close(self) -> None:
        self.closed = True


def write_text_file(work: Work, context: TaskContext) -> TaskOutput:
    """A script: one small file per task."""
    path = Path(context.workdir) / "out.txt"
    path.write_text(f"{work.job_id} {work.task.index}")
    return TaskOutput([LocalFile(path, f"{work.task.index}.txt", "text/plain")], seconds=0.0)
