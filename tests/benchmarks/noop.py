"""A handler that does nothing, named in settings as any other; it tells when a task begins."""

from __future__ import annotations

import time
from collections.abc import Callable

from processor.config import Settings
from processor.errors import ErrorKind
from processor.handler import Stores, TaskContext, TaskOutput, Work
from processor.testing.handler import ScriptedHandler

ENDED = ErrorKind.PREEMPTED

started: list[Callable[[str, float], None]] = []
"""Whoever wants to know: job id, and `time.perf_counter()`."""


class NoopHandler(ScriptedHandler):
    """One no-op task a job, or `overrides["tasks"]`."""

    @classmethod
    def configured(cls, settings: Settings, stores: Stores) -> NoopHandler:
        return cls(_tell)


def _tell(work: Work, _context: TaskContext) -> TaskOutput:
    for hear in started:
        hear(work.job_id, time.perf_counter())
    return TaskOutput(files=[], seconds=0.0)
