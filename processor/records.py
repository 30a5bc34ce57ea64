"""What the machine writes down: plans, task results, attempts, manifests.

Every record is one JSON object in the store (or part of one) and carries only what a
reader needs to act on it. All keys are relative to the store's root prefix.
"""

from __future__ import annotations

import hashlib
import json
from enum import StrEnum
from typing import Any, Final, Literal

from pydantic import AwareDatetime, Field

from processor.errors import ErrorKind
from processor.models import JobId, JobKind, Model, Scalar

SCHEMA_VERSION: Final = 1


class Outcome(StrEnum):
    """How a job ended. The only words for it, in every record and page."""

    DONE = "done"
    PARTIAL = "partial"
    """Some tasks failed."""
    FAILED = "failed"
    CANCELLED = "cancelled"
    INVALID = "invalid"
    """The drop could not become a job."""
    DEAD = "dead"
    """Attempts exhausted."""

    @property
    def settles_in(self) -> Literal["done", "failed"]:
        """The top-level folder the drop moves to."""
        return "done" if self in (Outcome.DONE, Outcome.PARTIAL, Outcome.CANCELLED) else "failed"


class ErrorReport(Model):
    """An error as people see it."""

    kind: ErrorKind
    what: str
    where: str | None = None
    mend: str | None = None
    details: list[str] = []


class DropRef(Model):
    """The drop a job came from. A manifest whose key or version differs is refused."""

    key: str
    version: str
    size_bytes: int = 0
    modified: AwareDatetime | None = None


class InputFile(Model):
    """A file that tasks read, frozen when the job was planned."""

    name: str
    source: str
    """A store key, or an http(s) URL."""
    version: str | None = None
    sha256: str | None = None


class ModelFile(Model):
    """A model that the graph names: `comfy_models/<folder>/<name>`."""

    folder: str
    name: str


class Task(Model):
    """One unit of fan-out. Task k of a job is the same for ever, whoever plans it."""

    index: int = Field(ge=0)
    hash: str
    """Of all that decides the result: graph, parameters, input digests."""
    params: dict[str, Scalar] = {}
    """What distinguishes this task, for people: axis or parameter → value."""
    seed: int | None = None
    payload: dict[str, Any] = {}
    """The handler's own: what it adds to the plan's shared part."""
    group: str = ""
    """Tasks that share models; equal groups run together."""
    weight: float = 1.0
    """How much work it is beside others of the same shape; for estimates only."""


class Plan(Model):
    """A job resolved to tasks, with everything they depend on frozen."""

    job_id: str
    kind: JobKind
    shared: dict[str, Any] = {}
    """The handler's own: for renders the base graph."""
    tasks: list[Task]
    inputs: list[InputFile] = []
    models: list[ModelFile] = []
    gpu: str | None = None
    shape: str = ""
    """Equal for jobs whose tasks take alike; for estimates only."""
    typical_seconds: float | None = None
    """Of one task, where the workflow or the preset says so; their mean where it says so of each."""
    retried: list[JobId] = []
    """The jobs whose failed tasks this plan runs again, the nearest first."""
    warnings: list[str] = []


class OutputFile(Model):
    """A file that a task produced, as it stands in the store."""

    key: str
    name: str
    size_bytes: int
    sha256: str
    media_type: str
    node: str | None = None
    width: int | None = None
    height: int | None = None


class TaskResult(Model):
    """How one execution of a task ended; written once, under a key no other execution has."""

    index: int
    hash: str
    status: Literal["done", "failed"]
    files: list[OutputFile] = []
    params: dict[str, Scalar] = {}
    seed: int | None = None
    error: ErrorReport | None = None
    attempt: str
    execution: str
    tries: int = 1
    started_at: AwareDatetime
    seconds: float
    """Of the engine, for the last try."""
    gpu: str | None = None
    cost_usd: float = 0.0
    """Of all tries."""
    data: dict[str, Any] = {}
    """The handler's own: text outputs, final loss, …"""
    reused_from: str | None = None
    """The job whose result was copied."""


class Attempt(Model):
    """`attempt.json`: one process's execution of a job under a lease."""

    attempt: str
    job_id: str
    host: str
    version: str
    """Of Dropbatch."""
    begun_at: AwareDatetime
    released_at: AwareDatetime | None = None
    """Set when it was given up on purpose (a clean stop); such an attempt does not count."""
    ended: str | None = None
    """Why it ended, where it could still say so."""
    plan: Plan | None = None
    """The plan this attempt proposed or uses."""

    @property
    def is_over(self) -> bool:
        """Whether it has said so; one that died had no chance to."""
        return self.released_at is not None or self.ended is not None


class AttemptSummary(Model):
    """An attempt as a manifest names it."""

    attempt: str
    begun_at: AwareDatetime
    host: str
    ended: str | None = None


class Manifest(Model):
    """The commit marker: states the outcome and what was produced.

    With `workflow` (in `plan.shared`), `plan.inputs` and one task's payload it has all
    that is needed to run any one picture again.
    """

    schema_version: Literal[1]
    job_id: str
    kind: JobKind | None
    """None where the drop could not be read as any kind."""
    outcome: Outcome
    drop: DropRef
    job: dict[str, Any] | None = None
    """As validated, with defaults left out."""
    plan: Plan | None = None
    tasks: list[TaskResult] = []
    error: ErrorReport | None = None
    attempt: str
    attempts: list[AttemptSummary] = []
    started_at: AwareDatetime
    finished_at: AwareDatetime
    seconds: float = 0.0
    """Sum of the tasks' engine seconds."""
    cost_usd: float = 0.0
    engine: dict[str, Scalar] = {}


def dump(record: Model) -> bytes:
    """A record as JSON bytes, defaults left out: the same record always gives the same bytes."""
    return record.model_dump_json(exclude_defaults=True).encode()


def canonical_hash(value: Any) -> str:
    """SHA-256 of a JSON value, independent of key order and spelling of whitespace."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
