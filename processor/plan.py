"""The plan of a job: made once, elected, and the same for every later attempt."""

from __future__ import annotations

import hashlib
from collections.abc import Container

import structlog
from pydantic import ValidationError

from processor.attempt import Trying
from processor.commit import standing
from processor.copying import own_copy
from processor.errors import JobInvalid, StoreError, StoreUnavailable
from processor.handler import Handler, PlanContext
from processor.layout import attempt_key
from processor.leases.protocol import Record
from processor.machine import Machine
from processor.models import JobBase
from processor.parallel import each_of
from processor.problems import did_you_mean
from processor.records import Attempt, Manifest, Plan, TaskResult, dump
from processor.store import read_bytes

log = structlog.get_logger(__name__)

_SHOWN = 20
"""Errors of a value's that are told, of as many as it may have."""

_MAX_RETRIED = 10
"""Jobs of a row of retries that are remembered; each may be looked through once more."""


def elect_plan(trying: Trying, job: JobBase) -> Plan:
    """The one plan of this job: an earlier attempt's if one was elected, else ours.

    Ours is written in `attempt.json` first; the election only names it by its hash. Task k
    is the same for ever, because all attempts use the plan that won.

    Raises:
        JobInvalid: the job can't be resolved to tasks.
    Cost: 1 request and 1 of the lease store; 1 more of each for a later attempt.
    """
    leases = trying.machine.leases.store
    election = _election(trying.job_id)
    if trying.claim.lease.epoch > 1 and (winner := leases.read(election)) is not None:
        return _winners(trying, winner)
    trying.plan = _make(trying, job)
    trying.begin()
    sha256 = hashlib.sha256(dump(trying.plan)).hexdigest()
    winner = leases.create(election, {"nonce": trying.name, "sha256": sha256})
    return trying.plan if winner["nonce"] == trying.name else _winners(trying, winner)


def known_plan(trying: Trying) -> Plan | None:
    """The plan that an earlier attempt got elected; None where none was, or it can't be read any more.

    Raises:
        StoreUnavailable: unknown.
    Cost: 1 request and 1 of the lease store.
    """
    winner = trying.machine.leases.store.read(_election(trying.job_id))
    if winner is None:
        return None
    try:
        return _winners(trying, winner)
    except StoreUnavailable:
        raise
    except (StoreError, ValidationError) as error:
        log.warning("plan.not_known", job_id=trying.job_id, why=str(error))
        return None


def copied_results(trying: Trying, parent: str, *, known: Container[int]) -> dict[int, TaskResult]:
    """A retried job's successes, their files copied; a task whose files are gone is run again.

    Args:
        known: tasks that need no copy; an earlier attempt of this retry has made it.
    Cost: 1 request, 1 per task, and 1 per file.
    """

    def copy(result: TaskResult) -> TaskResult | None:
        return own_copy(trying, result, reused_from=parent)

    manifest = standing(trying.machine, parent)
    tasks = manifest.tasks if manifest else []
    wanted = [result for result in tasks if result.status == "done" and result.index not in known]
    copied: dict[int, TaskResult] = {}
    for _, result in each_of(copy, wanted):
        trying.keep_alive()
        if result is not None:
            copied[result.index] = result
    return copied


def planned(handler: Handler, job: JobBase, context: PlanContext) -> Plan:
    """A handler's plan of a job; a value that no model of the handler's takes makes the job invalid.

    It comes from the job and would be refused by every attempt, each of which would count.

    Raises:
        JobInvalid: as of `Handler.plan`, or naming the model's field.
    Cost: the handler's own.
    """
    try:
        return handler.plan(job, context)
    except ValidationError as error:
        log.warning("plan.not_valid", job_id=context.job_id, exc_info=error)
        found = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()[:_SHOWN]]
        raise JobInvalid(
            f"no plan can be made of this {job.kind} job ({found[0]})", where=context.drop_key, details=found
        ) from error


def refuse_rehearsal(manifest: Manifest) -> None:
    """A rehearsal's plan trains nothing and publishes nothing, so running it again leads nowhere.

    Raises:
        JobInvalid: it was one, with the command that trains.
    """
    shared = manifest.plan.shared if manifest.plan else {}
    if shared.get("rehearsal"):
        raise JobInvalid(
            "it was a rehearsal, whose plan trains and publishes nothing",
            where=manifest.job_id,
            mend=f"Where AI_TOOLKIT_DIR is set, use `dropbatch train {shared.get('dataset')}`",
        )


def _election(job_id: str) -> str:
    return f"plan/{job_id}"


def _make(trying: Trying, job: JobBase) -> Plan:
    plan = _resolved(trying, job)
    _check_gpu(trying.machine, job.gpu or plan.gpu)
    return plan


def _check_gpu(machine: Machine, gpu: str | None) -> None:
    """Refuse here what would be refused for each task, or rented at a price that nobody knows."""
    if gpu is None or machine.gpus is None:
        return
    kind = gpu.partition(":")[0]
    if kind not in machine.gpus:
        mend = did_you_mean(kind, machine.gpus)
        raise JobInvalid(f"there is no GPU {kind!r} to be had", where="gpu", mend=mend)


def _resolved(trying: Trying, job: JobBase) -> Plan:
    machine = trying.machine
    handler = machine.handlers.get(job.kind)
    if handler is None:
        raise JobInvalid(
            f"this runner has no handler for {job.kind} jobs",
            where=trying.claim.drop.key,
            mend="Name one in dropbatch.toml under [handlers]",
        )
    if job.retry_of is not None:
        return _parents(machine, job, job.retry_of, trying.job_id)
    context = PlanContext(
        job_id=trying.job_id,
        drop_key=trying.claim.drop.key,
        stores=machine.stores,
        now=machine.clock.now(),
        max_tasks=machine.policy.max_tasks,
        keep_alive=trying.keep_alive,
    )
    return planned(handler, job, context)


def _parents(machine: Machine, job: JobBase, parent: str, job_id: str) -> Plan:
    """A retry runs its parent's plan, drawn seeds and all. Cost: 1 request."""
    manifest = standing(machine, parent)
    if manifest is None or manifest.plan is None:
        raise JobInvalid(
            "no finished job with a plan has this id",
            where=f"retry_of: {parent}",
            mend="`dropbatch status` lists the ids; a job that never got a plan is dropped again instead",
        )
    refuse_rehearsal(manifest)
    plan = manifest.plan
    retried = [] if job.retry_tasks == "all" else [parent, *plan.retried][:_MAX_RETRIED]
    return plan.model_copy(update={"job_id": job_id, "retried": retried})


def _winners(trying: Trying, winner: Record) -> Plan:
    key = attempt_key(trying.job_id, str(winner["nonce"]))
    limit_bytes = trying.machine.policy.max_record_bytes
    data = read_bytes(trying.machine.stores.main, key, limit_bytes=limit_bytes)
    plan = Attempt.model_validate_json(data).plan
    if plan is None or hashlib.sha256(dump(plan)).hexdigest() != winner["sha256"]:
        raise StoreError("the elected plan has changed since its election", where=key)
    return plan
