"""Jobs that have finished: found by the day they settled, read from their manifests.

Cost follows the days looked at, never the whole history: settled drops lie under their day.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta

import structlog
from pydantic import ValidationError

from processor.errors import NotFound
from processor.layout import DONE, FAILED, is_job_id, manifest_key
from processor.parallel import each
from processor.records import Manifest
from processor.store import Store, read_bytes

log = structlog.get_logger(__name__)

MAX_MANIFEST_BYTES = 256 * 1024 * 1024
MAX_DAYS = 400


def settled_jobs(store: Store, *, since: datetime, until: datetime) -> list[str]:
    """Ids of the jobs whose drops left the inbox in a span of time, oldest first.

    A drop that was settled twice (a crash in between) counts once. A few seconds outside the
    span may be taken in, for the day is the manifest's and the time the drop's: manifests tell.

    Of a longer span the last `MAX_DAYS` are looked at, and it is said.

    Cost: 2 requests a (UTC) day, and 1 more per 1,000 jobs of it.
    """
    found: dict[str, datetime] = {}
    last, day = until.astimezone(UTC).date(), since.astimezone(UTC).date()
    if last - day > timedelta(days=MAX_DAYS):
        day = last - timedelta(days=MAX_DAYS)
        log.warning("history.cut_short", looked_back_to=f"{day:%Y-%m-%d}", days=MAX_DAYS)
    while day <= last:
        for top in (DONE, FAILED):
            prefix = f"{top}{day:%Y-%m-%d}/"
            for page in store.list(prefix):
                for item in page.objects:
                    job = item.key[len(prefix) :].partition("/")[0]
                    if is_job_id(job) and item.modified >= since:
                        found[job] = max(item.modified, found.get(job, item.modified))
        day += timedelta(days=1)
    return [job for job, _ in sorted(found.items(), key=lambda entry: (entry[1], entry[0]))]


def manifests(store: Store, jobs: Iterable[str]) -> Iterator[Manifest]:
    """The manifests of these jobs, in their order; one that is gone or unreadable is left out.

    Cost: 1 request a job, several at a time.
    """
    for job, manifest in each(lambda job: _read(store, job), jobs):
        if manifest is not None:
            yield manifest
        else:
            log.warning("manifest.left_out", job_id=job)


def _read(store: Store, job: str) -> Manifest | None:
    try:
        data = read_bytes(store, manifest_key(job), limit_bytes=MAX_MANIFEST_BYTES)
        return Manifest.model_validate_json(data)
    except (NotFound, ValidationError):
        return None
