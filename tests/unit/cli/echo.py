"""A handler for tests of the command line: real work of a known kind, without an engine.

Each task writes one picture of its seed's colour. A graph that has a node `fail` fails.
"""

from __future__ import annotations

from typing import Any

from PIL import Image

from processor.errors import ErrorKind, TaskFailed
from processor.handler import LocalFile, PlanContext, Progress, Stores, TaskContext, TaskOutput, Work
from processor.models import JobBase, RenderJob
from processor.records import Plan, Task, canonical_hash


class EchoHandler:
    """Plans one task a seed, and paints it."""

    kind = "render"
    concurrency = 2

    @classmethod
    def configured(cls, _settings: Any, _stores: Stores) -> EchoHandler:
        return cls()

    def plan(self, job: JobBase, context: PlanContext) -> Plan:
        assert isinstance(job, RenderJob)
        assert isinstance(job.workflow, dict)
        seeds = job.seeds if isinstance(job.seeds, list) else [1]
        tasks = [
            Task(
                index=n,
                hash=canonical_hash([job.workflow, seed]),
                params={"colour": f"shade {seed}"},
                seed=seed,
            )
            for n, seed in enumerate(seeds)
        ]
        return Plan(job_id=context.job_id, kind="render", shared={"workflow": job.workflow}, tasks=tasks)

    def run(self, work: Work, context: TaskContext) -> TaskOutput:
        if "fail" in work.shared["workflow"] and work.task.index == 0:
            raise TaskFailed(ErrorKind.NODE_FAILED, "this one always fails", where="node fail")
        context.progress(Progress("painting", 1, 2))
        path = context.workdir / "picture.png"
        Image.new("RGB", (48, 32), (work.task.seed or 0, 90, 160)).save(path)
        return TaskOutput([LocalFile(path, "picture.png", "image/png")], seconds=0.5, log="painted it\n")

    def close(self) -> None:
        return


class BrokenHandler(EchoHandler):
    """Can't be made: a defect that nobody translated."""

    @classmethod
    def configured(cls, _settings: Any, _stores: Stores) -> EchoHandler:
        raise RuntimeError("boom")
