"""Reuse: answer tasks from earlier jobs whose hash is the same, with copies of their files.

A task's hash covers its final graph and the digests of the files it reads, not the contents of
the models it names. Every job leaves an empty object whose name says when it ended, under the
shape of its graph; only jobs of the same shape can have equal tasks, so a few manifests are
read, never the history.
"""

from __future__ import annotations

import itertools
from collections.abc import Container
from typing import TYPE_CHECKING

import structlog
from pydantic import ValidationError

from processor.copying import own_copy
from processor.layout import is_job_id, reuse_key, reuse_prefix
from processor.models import JobBase, Output, RenderJob
from processor.parallel import each_of
from processor.records import Manifest, Plan, Task, TaskResult
from processor.settled import manifests

if TYPE_CHECKING:
    from processor.attempt import Trying
    from processor.machine import Machine

log = structlog.get_logger(__name__)

MAX_JOBS = 20
"""Earlier jobs that are looked at, the newest first."""


def findable(machine: Machine, manifest: Manifest) -> None:
    """Let later jobs find this one's results. Cost: 1 request, none where there is nothing to reuse."""
    if manifest.kind != "render" or manifest.plan is None or not manifest.plan.shape:
        return
    if any(result.status == "done" and result.reused_from is None for result in manifest.tasks):
        key = reuse_key(manifest.plan.shape, manifest.finished_at, manifest.job_id)
        machine.stores.main.put(key, b"", media_type="text/plain")


def reused_results(
    trying: Trying, job: JobBase, plan: Plan, *, known: Container[int]
) -> dict[int, TaskResult]:
    """Results of earlier jobs for tasks that have none yet, their files copied under this attempt.

    Each says which job it is from, and costs nothing. Only results with the same wishes as to
    names and formats are taken. One whose files are gone is left to be run.

    Cost: 1 request, 1 for each of up to 20 manifests, 1 a task and 1 a file; none unless the job asks for it.
    """
    if not isinstance(job, RenderJob) or not job.reuse or not plan.shape:
        return {}
    wanted = {task.hash: task for task in plan.tasks if task.index not in known}
    found: dict[int, TaskResult] = {}
    store = trying.machine.stores.main

    def copy(offer: tuple[TaskResult, str]) -> TaskResult | None:
        result, origin = offer
        return _copied(trying, result, origin=origin, task=wanted[result.hash])

    for manifest in manifests(store, _jobs(trying.machine, plan)):
        if not wanted:
            break
        if not _wished_alike(manifest, job):
            continue
        offered = {result.hash: result for result in manifest.tasks if result.status == "done"}
        offers = [(offered[sha256], manifest.job_id) for sha256 in wanted if sha256 in offered]
        for _, copied in each_of(copy, offers):
            trying.keep_alive()
            if copied is not None:
                found[copied.index] = copied
        wanted = {sha256: task for sha256, task in wanted.items() if task.index not in found}
    return found


def _jobs(machine: Machine, plan: Plan) -> list[str]:
    prefix = reuse_prefix(plan.shape)
    found: dict[str, None] = {}
    for page in machine.stores.main.list(prefix):
        names = (item.key[len(prefix) :].partition("/")[2] for item in page.objects)
        found |= dict.fromkeys(name for name in names if is_job_id(name) and name != plan.job_id)
        if len(found) >= MAX_JOBS:
            break
    return list(itertools.islice(found, MAX_JOBS))


def _copied(trying: Trying, result: TaskResult, *, origin: str, task: Task) -> TaskResult | None:
    copied = own_copy(
        trying,
        result,
        index=task.index,
        params=task.params,
        seed=task.seed,
        reused_from=result.reused_from or origin,
    )
    if copied is None:
        log.info("reuse.files_gone", job_id=trying.job_id, origin=origin, task=task.index)
    return copied


def _wished_alike(manifest: Manifest, job: RenderJob) -> bool:
    given = (manifest.job or {}).get("output")
    try:
        return (Output.model_validate(given) if given else None) == job.output
    except ValidationError:  # dropped under other rules than today's
        return False
