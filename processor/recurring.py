"""Recurring templates: job files under `inbox/recurring/` that stay, and emit a job at each due time.

No state is kept. What is due follows from the schedule, the template's upload and the clock;
whether it was emitted follows from the id of the emitted job, which is made of the template's key
and the due time. A process remembers what it has seen, so that it asks only once.
"""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

import structlog
from pydantic import ValidationError

from processor.dropping import drop
from processor.errors import JobInvalid, NotFound, StoreError, TooLarge
from processor.inbox import Drop, Inbox
from processor.layout import emitted_job_id, emitted_key, manifest_key, slug
from processor.models import JobBase
from processor.problems import find_problems
from processor.reading import parse_json, read_job
from processor.schedule import Schedule
from processor.store import read_bytes

if TYPE_CHECKING:
    from processor.machine import Machine

log = structlog.get_logger(__name__)

MAX_TEMPLATES = 1000
"""Further ones are left alone."""


@dataclass(frozen=True, slots=True)
class Template:
    """A job and when to drop it."""

    job: JobBase
    schedule: Schedule


@dataclass(slots=True)
class _Known:
    """What one version of a template says, and what it has emitted as far as this process saw."""

    template: Template | None
    emitted: set[datetime] = field(default_factory=set)


def read_template(data: bytes, *, key: str) -> Template:
    """Validate a template: a render or train job with a `schedule`.

    Raises:
        JobInvalid: naming what is wrong.
    """
    value = parse_json(data, key=key)
    if not isinstance(value, dict) or "schedule" not in value:
        raise JobInvalid(
            "a recurring job needs a `schedule`",
            where=key,
            mend='Add "schedule": "0 6 * * *", or drop it under inbox/nightly/ to run it once',
        )
    wanted = value.pop("schedule")
    if not isinstance(wanted, str | dict):
        raise JobInvalid(
            f"{json.dumps(wanted)[:60]} is no schedule",
            where=f"{key}: schedule",
            mend='Write it like "0 6 * * *", or {"cron": "0 6 * * *", "zone": "Europe/Berlin"}',
        )
    try:
        schedule = Schedule.model_validate(wanted)
    except ValidationError as error:
        document = wanted if isinstance(wanted, dict) else {"cron": wanted}
        problem = find_problems(error, document, Schedule)[0]
        raise JobInvalid(problem.what, where=f"{key}: schedule.{problem.path}", mend=problem.mend) from None
    return Template(read_job(json.dumps(value, ensure_ascii=False).encode(), key=key), schedule)


def read_file(data: bytes, *, key: str) -> tuple[JobBase, bool]:
    """A job file of a person's, and whether it is a template: whether it has a `schedule`.

    Raises:
        JobInvalid: it is neither a job nor a template.
    """
    value = parse_json(data, key=key)
    if isinstance(value, dict) and "schedule" in value:
        return read_template(data, key=key).job, True
    return read_job(data, key=key), False


def emission_name(key: str, due: datetime) -> str:
    """What a due time's job is called; with the template's key it makes the job id."""
    return f"{slug(PurePosixPath(key).stem)}-{due.astimezone(UTC):%Y%m%dt%H%M}z"


class Recurring:
    """What this process knows of the bucket's templates. One a machine; thread-safe."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], _Known] = {}
        self._lock = threading.Lock()

    def emit_due(self, machine: Machine, inbox: Inbox, *, zone: ZoneInfo) -> list[str]:
        """Drop what has become due, each due time once however many runners look.

        Returns:
            Ids of the jobs dropped now.
        Cost: none while nothing is due; 1 request for a template not seen before, 2 a due time.
        """
        emitted: list[str] = []
        with self._lock:
            seen: dict[tuple[str, str], _Known] = {}
            for item in inbox.recurring[:MAX_TEMPLATES]:
                mark = (item.key, item.version or f"{item.modified.isoformat()} {item.size_bytes}")
                try:
                    seen[mark] = known = self._known.get(mark) or _read(machine, item)
                    emitted += _emit(machine, item, known, zone)
                except StoreError as error:
                    log.warning("template.not_looked_at", key=item.key, why=str(error))
                except Exception:  # one template never keeps others from being due
                    log.exception("template.defect", key=item.key)
            self._known = seen
        return emitted


def _read(machine: Machine, item: Drop) -> _Known:
    try:
        data = read_bytes(machine.stores.main, item.key, limit_bytes=machine.policy.max_job_bytes)
        return _Known(read_template(data, key=item.key))
    except NotFound:
        return _Known(None)
    except (JobInvalid, TooLarge) as error:
        # Said once a version, by each process; it stays where it is, for its owner to mend.
        log.warning("template.invalid", key=item.key, why=str(error))
        return _Known(None)


def _emit(machine: Machine, item: Drop, known: _Known, zone: ZoneInfo) -> list[str]:
    if known.template is None:
        return []
    dropped: list[str] = []
    job, schedule = known.template.job, known.template.schedule
    now = machine.clock.now()
    due = schedule.due(since=item.modified, now=now, zone=zone)
    for moment in due:
        name = emission_name(item.key, moment)
        job_id = emitted_job_id(item.key, name)
        if moment in known.emitted:
            continue
        if not _exists(machine, manifest_key(job_id)) and not _exists(machine, emitted_key(job_id)):
            local = moment.astimezone(ZoneInfo(schedule.zone) if schedule.zone else zone)
            title = f"{job.name or PurePosixPath(item.key).stem}, {local:%Y-%m-%d %H:%M}"
            drop(machine, job.model_copy(update={"name": title[:200]}), parent=item.key, name=name)
            log.info("template.emitted", key=item.key, due=moment.isoformat(), job_id=job_id)
            dropped.append(job_id)
    known.emitted = set(due)
    return dropped


def _exists(machine: Machine, key: str) -> bool:
    try:
        machine.stores.main.stat(key)
    except NotFound:
        return False
    return True
