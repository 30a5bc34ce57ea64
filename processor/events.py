"""What happens while the machine works, for whoever watches: the live display, tests.

Events inform; nothing in the protocol depends on anyone listening. Logs are written
separately (`processor.log`), so that a service without a display loses nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from processor.handler import Progress
from processor.records import Manifest, TaskResult


@dataclass(frozen=True, slots=True)
class JobClaimed:
    job_id: str
    key: str


@dataclass(frozen=True, slots=True)
class JobPlanned:
    job_id: str
    tasks: int
    adopted: int
    """Tasks whose results an earlier attempt left."""


@dataclass(frozen=True, slots=True)
class TaskStarted:
    job_id: str
    index: int


@dataclass(frozen=True, slots=True)
class TaskProgress:
    job_id: str
    index: int
    progress: Progress


@dataclass(frozen=True, slots=True)
class TaskFinished:
    job_id: str
    result: TaskResult
    will_retry: bool


@dataclass(frozen=True, slots=True)
class JobSettled:
    """The job's manifest stands and its drop has left the inbox."""

    job_id: str
    manifest: Manifest


@dataclass(frozen=True, slots=True)
class JobReleased:
    """Given back without an outcome: another pass will take it."""

    job_id: str
    why: str


Event = JobClaimed | JobPlanned | TaskStarted | TaskProgress | TaskFinished | JobSettled | JobReleased
Observer = Callable[[Event], None]
"""Called from several threads; must return quickly and must not raise."""


def ignore(_event: Event) -> None:
    """The observer of a service that nobody watches."""
