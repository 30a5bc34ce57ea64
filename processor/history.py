"""What earlier attempts of a job left behind: how many there were, and results to adopt."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeVar

from pydantic import ValidationError

from processor.errors import NotFound
from processor.layout import attempt_key, attempt_prefix, job_prefix
from processor.models import Model
from processor.parallel import each_of
from processor.records import Attempt, AttemptSummary, Plan, TaskResult
from processor.retry import PERMANENT
from processor.store import Store, read_bytes

_Record = TypeVar("_Record", bound=Model)
_ATTEMPT = re.compile(r"^(\d+-[0-9a-f]+)/attempt\.json$")
_RESULT = re.compile(r"^(\d+-[0-9a-f]+)/\d{5,}-[0-9a-f]+/result\.json$")


@dataclass(slots=True)
class History:
    """A job's past, as one listing of its output prefix shows it."""

    attempts: list[Attempt] = field(default_factory=list)
    """Those that count: begun, and not given back on purpose. Oldest first."""
    since: datetime | None = None
    """When the first attempt began, of all that ever did."""
    result_keys: list[str] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)

    @property
    def summaries(self) -> list[AttemptSummary]:
        return [
            AttemptSummary(attempt=a.attempt, begun_at=a.begun_at, host=a.host, ended=a.ended)
            for a in self.attempts
        ]


def read_history(store: Store, job_id: str, *, limit_bytes: int) -> History:
    """List a job's outputs and read what its attempts say of themselves.

    Cost: 1 request per 1,000 files, and 1 per attempt.
    """
    history = History()
    prefix = job_prefix(job_id)
    for page in store.list(prefix):
        for item in page.objects:
            name = item.key[len(prefix) :]
            history.sizes[item.key] = item.size_bytes
            if match := _ATTEMPT.match(name):
                record = _read(store, attempt_key(job_id, match[1]), Attempt, limit_bytes)
                if record is None:
                    continue
                history.since = min(record.begun_at, history.since or record.begun_at)
                if record.released_at is None:
                    history.attempts.append(record)
            elif _RESULT.match(name):
                history.result_keys.append(item.key)
    history.attempts.sort(key=lambda attempt: attempt.begun_at)
    return history


def has_results(store: Store, job_id: str, attempt: str) -> bool:
    """Whether an attempt has finished a task, for later ones to adopt. Cost: 1 request per 1,000 files."""
    skip = len(job_prefix(job_id))
    pages = store.list(attempt_prefix(job_id, attempt))
    return any(_RESULT.match(item.key[skip:]) for page in pages for item in page.objects)


def adopt(
    store: Store, history: History, plan: Plan, *, limit_bytes: int, keep_alive: Callable[[], None]
) -> dict[int, TaskResult]:
    """Results of earlier attempts that answer tasks of this plan, by task index.

    A result is adopted when it is a success or a permanent failure, its hash is the
    task's, and every file that it names is there at its size. Successes win over failures.

    Args:
        keep_alive: called after each: thousands of results take minutes.
    Cost: 1 request per result.
    """

    def read(key: str) -> TaskResult | None:
        return _read(store, key, TaskResult, limit_bytes)

    hashes = {task.index: task.hash for task in plan.tasks}
    adopted: dict[int, TaskResult] = {}
    for _, result in each_of(read, history.result_keys):
        keep_alive()
        if result is None or hashes.get(result.index) != result.hash:
            continue
        standing = adopted.get(result.index)
        if standing is not None and standing.status == "done":
            continue
        if _final(result) and all(history.sizes.get(f.key) == f.size_bytes for f in result.files):
            adopted[result.index] = result
    return adopted


def _final(result: TaskResult) -> bool:
    return result.status == "done" or (result.error is not None and result.error.kind in PERMANENT)


def _read(store: Store, key: str, kind: type[_Record], limit_bytes: int) -> _Record | None:
    try:
        return kind.model_validate_json(read_bytes(store, key, limit_bytes=limit_bytes))
    except (NotFound, ValidationError):  # a lagging listing, or a record of another version of ours
        return None
