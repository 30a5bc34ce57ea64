"""One claimed job, from its drop to its settling: plan, fan out, retry, commit, effects.

`process` is the whole of it. Everything it does may be cut off anywhere and is then
done again, or found done, by whoever takes the job over.
"""

from __future__ import annotations

from dataclasses import replace

import structlog

from processor.attempt import Claim, Trying
from processor.commit import commit, elected, enact, matches, standing
from processor.discard import discard
from processor.effects import run_effects
from processor.errors import DropbatchError, ForeignAuthority, JobInvalid, LeaseLost, StoreError
from processor.events import JobPlanned, JobReleased, JobSettled
from processor.fanout import FanOut, FanOutResult
from processor.history import adopt, read_history
from processor.keeping import Interrupted
from processor.leases.lease import Lease
from processor.log import Line, unit_of_work
from processor.machine import Machine
from processor.models import JobBase
from processor.peek import peek
from processor.plan import copied_results, elect_plan, known_plan
from processor.records import Manifest, Outcome, Plan, TaskResult
from processor.report import error_report
from processor.reuse import reused_results
from processor.settle import settle

log = structlog.get_logger(__name__)


class _Gone(Exception):
    """The drop is not there to be run, or not any more; nothing is left to do."""


class _Replaced(Exception):
    """A newer version of the drop stands: this one is not to be run."""


def take_over(machine: Machine, handed: Claim) -> Claim | None:
    """Continue, in this process, what another one claimed and handed over.

    However often one claim is delivered, one of those who take it over gets it. The clock
    is set by the store's first: this process has not ticked, and its own may be wrong.

    Returns:
        A claim to `process`, or None: somebody else has the job, or nothing could be known.
        The job is found again once its lease has run out.
    Cost: 2 requests and 3 of the lease store.
    """
    job_id = handed.lease.job_id
    try:
        machine.set_clock()
        machine.authority.check()
        lease = machine.leases.acquire(job_id, nonce=machine.nonce(), heir_of=handed.lease)
    except (StoreError, ForeignAuthority) as error:
        log.warning("claim.not_taken_over", job_id=job_id, why=str(error))
        return None
    return replace(handed, lease=lease, peeked=None) if lease else None


def process(machine: Machine, claim: Claim) -> Manifest | None:
    """Take a claimed job to its end, or give it back.

    Never raises for anything that one job can cause.

    Returns:
        The manifest that stands once the drop is settled; None if the job was given back
        (a stop, a store out of reach, a lost lease) or its drop was gone.
    Cost, for a one-task job that nobody tried before: 8 requests and those of its files,
        1 for a gallery; 4 of the lease store with the claim.
    """
    with unit_of_work("job", job_id=claim.lease.job_id, key=claim.drop.key) as line:
        try:
            manifest = _settle_or_run(machine, claim)
        except Exception as error:  # noqa: BLE001  (a job's own failure must not end the runner)
            _give_back(machine, claim, error, line)
            return None
        line.add(outcome=manifest.outcome.value, tasks=len(manifest.tasks), seconds=manifest.seconds)
        _release(machine, claim.lease)
        machine.observe(JobSettled(claim.lease.job_id, manifest))
        return manifest


def _give_back(machine: Machine, claim: Claim, error: Exception, line: Line) -> None:
    """The one place where what ended a job without an outcome is decided upon."""
    job_id = claim.lease.job_id
    match error:
        case _Gone():
            line.add(outcome=str(error))
            _release(machine, claim.lease)
        case LeaseLost() | ForeignAuthority():
            line.add(outcome="given back", why=str(error))
        case Interrupted() | StoreError():
            line.add(outcome="given back", why=str(error))
            _release(machine, claim.lease)
        case _:
            # Our own defect, or a poison drop. The lease is left to run out: the attempt
            # counts, and enough of those make the job `dead` instead of trying for ever.
            log.error("job.defect", job_id=job_id, exc_info=error)
            line.add(outcome="defect")
    machine.observe(JobReleased(job_id, str(error)))


def _settle_or_run(machine: Machine, claim: Claim) -> Manifest:
    manifest = standing(machine, claim.lease.job_id) or _elected(machine, claim)
    if manifest is None:
        try:
            manifest = _run(machine, claim)
        except _Replaced:
            return _discarded(machine, claim)
    elif not matches(manifest, claim.drop):
        raise StoreError(
            "the manifest that stands is of another drop; nothing is done",
            where=claim.drop.key,
            mend=f"Remove comfy_outputs/{claim.lease.job_id}/manifest.json if it is a stray copy",
        )
    run_effects(machine, manifest)
    settle(machine, claim.drop, manifest, cancelling=claim.cancel is not None)
    return manifest


def _elected(machine: Machine, claim: Claim) -> Manifest | None:
    """The outcome that an earlier attempt got elected before it died, made to stand.

    Cost: none for a first attempt, else 1 request of the lease store.
    """
    if claim.lease.epoch == 1:
        return None
    winner = elected(machine, claim.lease)
    if winner is None:
        return None
    if not winner["key"]:
        return _discarded(machine, claim)
    return enact(machine, claim.lease.job_id, winner)


def _discarded(machine: Machine, claim: Claim) -> Manifest:
    manifest = discard(machine, claim.lease, claim.drop)
    if manifest is None:
        raise _Gone("superseded")
    return manifest


def _run(machine: Machine, claim: Claim) -> Manifest:
    trying = Trying(machine, claim, machine.clock.now())
    try:
        return _committed(trying)
    except (Interrupted, StoreError) as error:
        trying.give_back(str(error))
        raise
    except LeaseLost as error:
        trying.give_up(str(error))
        raise


def _committed(trying: Trying) -> Manifest:
    candidate = _attempt(trying)  # renews the lease while it runs
    return commit(trying.machine, trying.lease, candidate)


def _attempt(trying: Trying) -> Manifest:
    """Everything up to the candidate manifest."""
    machine, policy = trying.machine, trying.machine.policy
    try:
        trying.job = job = _read_drop(machine, trying.claim)
        if trying.may_have_history:
            store, limit = machine.stores.main, policy.max_record_bytes
            trying.history = read_history(store, trying.job_id, limit_bytes=limit)
            allowed, begun = job.max_attempts or policy.max_attempts, len(trying.history.attempts)
            if begun > allowed:  # looking for what was finished was fatal, too
                return trying.manifest(Outcome.DEAD, error=trying.exhausted())
            if policy.priced and trying.history.since is not None:
                trying.spent_usd = machine.budget.of_job(trying.job_id, since=trying.history.since)
            # Before planning: a drop that kills its planner must use up its attempts, too.
            trying.begin()
            if begun == allowed:
                return _dead(trying)
        if trying.claim.cancel is not None:
            results = _finished(trying) if trying.history.result_keys else []
            return trying.manifest(Outcome.CANCELLED, results=results)
        trying.plan = plan = elect_plan(trying, job)
    except JobInvalid as error:
        return trying.manifest(Outcome.INVALID, error=error_report(error))
    return _fan_out(trying, job, plan)


def _dead(trying: Trying) -> Manifest:
    """The manifest of a job whose attempts are used up, with whatever they had finished."""
    finished = _finished(trying)
    dead = trying.manifest(Outcome.DEAD, error=trying.exhausted(len(finished)), results=finished)
    # This one only gathers; what it wrote of itself is for the next, should even that be fatal.
    return dead.model_copy(update={"attempts": trying.history.summaries})


def _finished(trying: Trying) -> list[TaskResult]:
    """What earlier attempts have finished, by the plan that they had."""
    trying.plan = plan = known_plan(trying)
    return [result for _, result in sorted(_adopted(trying, plan).items())] if plan else []


def _read_drop(machine: Machine, claim: Claim) -> JobBase:
    """The job in the drop: as the tick read it a moment ago, or read now.

    Cost: none, or 1 request for a claim that was handed over or inherited.
    """
    peeked = claim.peeked or peek(
        machine.stores.main,
        claim.drop,
        policy=machine.policy,
        place=machine.launcher.place,
        now=machine.clock.now(),
    )
    if peeked.problem is not None:
        raise peeked.problem
    if peeked.state == "superseded":
        raise _Replaced
    if peeked.job is None:
        raise _Gone(peeked.state)
    return peeked.job


def _fan_out(trying: Trying, job: JobBase, plan: Plan) -> Manifest:
    results = _earlier_results(trying, job, plan)
    trying.machine.observe(JobPlanned(plan.job_id, len(plan.tasks), len(results)))
    fan_out = FanOut(trying.machine, trying.kept, trying.name, job=job, plan=plan)
    try:
        fanned = fan_out.run(results, spent_usd=trying.spent_usd)
    finally:
        trying.spent_usd = fan_out.spent_usd
        trying.write_log(fan_out.log)
    ordered = [result for _, result in sorted(fanned.results.items())]
    return trying.manifest(_verdict(plan, fanned), results=ordered, engine=fanned.engine)


def _earlier_results(trying: Trying, job: JobBase, plan: Plan) -> dict[int, TaskResult]:
    adopted = _adopted(trying, plan)
    if job.retry_of is None:
        return reused_results(trying, job, plan, known=adopted) | adopted
    if job.retry_tasks == "all":
        return adopted  # every task again: what `reuse` finds first is what is to be run again
    return copied_results(trying, job.retry_of, known=adopted) | adopted


def _adopted(trying: Trying, plan: Plan) -> dict[int, TaskResult]:
    store, limit = trying.machine.stores.main, trying.machine.policy.max_record_bytes
    return adopt(store, trying.history, plan, limit_bytes=limit, keep_alive=trying.keep_alive)


def _verdict(plan: Plan, fanned: FanOutResult) -> Outcome:
    if fanned.cancelled:
        return Outcome.CANCELLED
    done = sum(result.status == "done" for result in fanned.results.values())
    if done == len(plan.tasks):
        return Outcome.DONE
    return Outcome.PARTIAL if done else Outcome.FAILED


def _release(machine: Machine, lease: Lease) -> None:
    try:
        machine.leases.release(lease)
    except DropbatchError as error:
        log.warning("lease.not_released", job_id=lease.job_id, why=str(error))
