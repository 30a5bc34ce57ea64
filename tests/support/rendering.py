"""A render handler with a store, as a launcher would use it: for tests of all engines."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from handlers.render import RenderHandler, RenderSettings
from handlers.render.graph import Graph
from processor.clock import SystemClock
from processor.handler import PlanContext, Progress, Remedy, Stop, Stores, TaskContext, TaskOutput, Work
from processor.models import RenderJob
from processor.records import Plan, Task
from processor.store.memory import MemoryStore

DROP_KEY = "inbox/jobs/job.json"


def builtin_settings(root: Path) -> RenderSettings:
    return RenderSettings(work_dir=root / "work", models_dir=root / "models")


def real_settings(root: Path) -> RenderSettings:
    """A ComfyUI started from `COMFYUI_DIR`, or the one at `COMFYUI_URL`."""
    directory, python = os.environ.get("COMFYUI_DIR"), os.environ.get("COMFYUI_PYTHON")
    return replace(
        builtin_settings(root),
        comfyui_url=os.environ.get("COMFYUI_URL"),
        comfyui_dir=Path(directory) if directory else None,
        comfyui_python=Path(python) if python else None,
    )


def image_graph(**changes: Any) -> Graph:
    """EmptyImage → ImageScale → SaveImage; `changes` are EmptyImage's inputs, or `prefix`."""
    prefix = changes.pop("prefix", "pictures/red")
    return {
        "1": {
            "class_type": "EmptyImage",
            "inputs": {"width": 64, "height": 48, "batch_size": 1, "color": 0xFF0000} | changes,
            "_meta": {"title": "Canvas"},
        },
        "2": {
            "class_type": "ImageScale",
            "inputs": {
                "image": ["1", 0],
                "upscale_method": "bilinear",
                "width": 32,
                "height": 24,
                "crop": "disabled",
            },
        },
        "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": prefix}},
    }


def slow_graph(nodes: int = 80, size: int = 1024) -> Graph:
    """A chain of blurs: seconds of work, interruptible between any two nodes."""
    graph: Graph = {
        "0": {
            "class_type": "EmptyImage",
            "inputs": {"width": size, "height": size, "batch_size": 1, "color": next(_colors)},
        }
    }
    for number in range(1, nodes + 1):
        graph[str(number)] = {
            "class_type": "ImageBlur",
            "inputs": {"image": [str(number - 1), 0], "blur_radius": 15, "sigma": 3.0},
        }
    graph["save"] = {
        "class_type": "SaveImage",
        "inputs": {"images": [str(nodes), 0], "filename_prefix": "slow"},
    }
    return graph


_colors = itertools.count(1)


@dataclass
class Bench:
    """Plans jobs and runs their tasks on one handler."""

    handler: RenderHandler
    settings: RenderSettings
    root: Path
    store: MemoryStore = field(default_factory=MemoryStore)
    _runs: itertools.count[int] = field(default_factory=itertools.count)

    @classmethod
    def open(cls, settings: RenderSettings, root: Path) -> Bench:
        return cls(RenderHandler(settings, SystemClock()), settings, root)

    @property
    def stores(self) -> Stores:
        return Stores.single(self.store)

    def plan(
        self, workflow: Any, *, max_tasks: int = 1000, job_id: str = "job-0123456789abcdef", **job: Any
    ) -> Plan:
        context = PlanContext(job_id, DROP_KEY, self.stores, datetime.now(UTC), max_tasks)
        return self.handler.plan(RenderJob(kind="render", workflow=workflow, **job), context)

    def run_task(
        self,
        plan: Plan,
        index: int = 0,
        *,
        stop: Stop | None = None,
        progress: Callable[[Progress], None] = lambda _: None,
        timeout_s: float = 120.0,
        remedy: Remedy = Remedy.NONE,
    ) -> TaskOutput:
        workdir = self.root / f"task-{next(self._runs)}"
        workdir.mkdir(parents=True)
        work = Work(
            job_id=plan.job_id,
            attempt="1-test",
            kind="render",
            task=plan.tasks[index],
            shared=plan.shared,
            inputs=plan.inputs,
            models=plan.models,
            timeout_s=timeout_s,
            remedy=remedy,
        )
        context = TaskContext(workdir, self.stores, stop or Stop(), time.monotonic() + timeout_s, progress)
        return self.handler.run(work, context)

    def run(self, workflow: Any, **job: Any) -> TaskOutput:
        """Plan a job and run its first task."""
        return self.run_task(self.plan(workflow, **job))

    def run_raw(self, graph: Graph, *, allow_invalid_outputs: bool = False, **options: Any) -> TaskOutput:
        """Run a graph unplanned, so that nothing but the engine has checked it."""
        task = Task(index=0, hash="0" * 64)
        shared = {"workflow": graph, "allow_invalid_outputs": allow_invalid_outputs}
        plan = Plan(job_id="job-0123456789abcdef", kind="render", shared=shared, tasks=[task])
        return self.run_task(plan, **options)

    def server_pid(self) -> int | None:
        engine = self.handler._engines.current
        return None if engine is None or engine.server is None else engine.server.pid

    def drop_socket(self) -> None:
        engine = self.handler._engines.current
        assert engine is not None
        engine.client.listener.drop()


class Once:
    """A progress callback that acts once, when the named stage is reached."""

    def __init__(self, stage: str, act: Callable[[], None]) -> None:
        self._stage = stage
        self._act = act
        self.happened = threading.Event()
        self.seen: list[Progress] = []

    def __call__(self, progress: Progress) -> None:
        self.seen.append(progress)
        if progress.stage == self._stage and not self.happened.is_set():
            self.happened.set()
            self._act()
