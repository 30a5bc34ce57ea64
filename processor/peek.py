"""Look at a drop before it is claimed: is it ready, is it ours, and what does it say?

One GET answers all that, and the claim carries the answer along, so that nothing is read
twice. Nothing in the inbox is changed here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal

from processor.datasets import is_inventory_key
from processor.errors import JobInvalid, NotFound
from processor.inbox import Drop
from processor.layout import CLOCK, emitted_job_id
from processor.models import IngestJob, JobBase
from processor.policy import Policy
from processor.reading import read_job
from processor.store import ObjectInfo, Store

State = Literal["ready", "young", "later", "elsewhere", "superseded", "withdrawn"]
"""`ready` includes drops that can't become a job: they are claimed to be failed with a report.
`young`: on a folder, perhaps still being written. `later`: its `not_before` is to come.
`elsewhere`: its `where` names another place. `superseded`: a newer version stands.
`withdrawn`: it is gone."""


@dataclass(frozen=True, slots=True)
class Peeked:
    """A drop with its version, and the job in it, or why there is none."""

    drop: Drop
    state: State
    job: JobBase | None = None
    problem: JobInvalid | None = None

    @property
    def priority(self) -> int:
        return self.job.priority if self.job else 0


def peek(store: Store, drop: Drop, *, policy: Policy, place: str, now: datetime) -> Peeked:
    """Read a drop as it stands.

    Reading the newest, not the listed version, also finds out that a newer one has
    replaced it: a superseded drop is never begun.

    Raises:
        StoreError: it could not be read; absence is never inferred from that.
    Cost: 1 request; 1 more for what is no job, on a folder.
    """
    limit = policy.max_job_bytes
    try:
        with store.get(drop.key) as download:
            info = download.info
            data = b"" if info.size_bytes > limit else download.body.read(info.size_bytes + 1)
    except NotFound:
        return Peeked(drop, "withdrawn")
    if drop.version and info.version != drop.version and drop.emitted_id is None:
        return Peeked(drop, "superseded")
    drop = replace(drop, version=info.version, size_bytes=info.size_bytes, modified=info.modified)
    try:
        if max(info.size_bytes, len(data)) > limit:
            raise _too_large(drop, limit)
        job = read_job(data, key=drop.key)
        _check_origin(job, drop)
    except JobInvalid as problem:
        if not store.capabilities.atomic_put and _is_young(store, info, policy.young_s):
            return Peeked(drop, "young")
        return Peeked(drop, "ready", problem=problem)
    if job.where not in ("any", place):
        return Peeked(drop, "elsewhere", job)
    if job.not_before is not None and job.not_before > now:
        return Peeked(drop, "later", job)
    return Peeked(drop, "ready", job)


def _is_young(store: Store, info: ObjectInfo, young_s: float) -> bool:
    """Whether a file was written just now by the clock that dates files there.

    A NAS's may be hours from ours: by ours, what is being written on it would look old, or be
    young for hours. What is dated far ahead of it brought its date along, and is whole.
    """
    now = store.put(CLOCK, b"", media_type="text/plain").modified
    return abs((now - info.modified).total_seconds()) < young_s


def _check_origin(job: JobBase, drop: Drop) -> None:
    """An emitted job's key must follow from its origin, and nothing else may have one."""
    derived = job.origin and emitted_job_id(job.origin.parent, job.origin.name)
    forged = isinstance(job, IngestJob) and not is_inventory_key(job.inventory)
    if derived != drop.emitted_id or forged:
        raise JobInvalid(
            "`origin` and inbox/jobs/emitted/ are the machine's own",
            where=drop.key,
            mend="Remove `origin`, and drop the job under inbox/jobs/",
        )


def _too_large(drop: Drop, limit: int) -> JobInvalid:
    return JobInvalid(
        f"{drop.size_bytes:,} bytes; a job file has at most {limit:,}",
        where=drop.key,
        mend="Put pictures and prompt lists under other keys and name those in the job",
    )
