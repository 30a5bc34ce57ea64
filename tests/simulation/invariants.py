"""What must hold when a schedule is over. One function each; its name is what a violation says."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from datetime import timedelta

from processor.layout import BESIDE, CANCEL, INBOX, NIGHTS, OUTPUTS, RECURRING, emitted_job_id
from processor.nightly import night_of
from processor.records import Manifest
from tests.simulation.folders import FOLDERS_AT_REST, emitted_by
from tests.simulation.pages import blank_pages
from tests.simulation.schedule import Schedule
from tests.simulation.threads import threads_as_actors
from tests.simulation.watch import named_by
from tests.simulation.world import EPOCH

Invariant = Callable[[Schedule], Iterator[str]]


def nothing_escapes(schedule: Schedule) -> Iterator[str]:
    """No exception leaves the core: what one job does wrong never ends a runner."""
    yield from schedule.world.defects


def no_drop_in_limbo(schedule: Schedule) -> Iterator[str]:
    """Once faults stop the inbox is empty within a bounded number of ticks."""
    for key in schedule.bucket.keys(INBOX):
        if not key.startswith((CANCEL, RECURRING)):
            yield f"{key} is still in the inbox"


def every_drop_has_its_outcome(schedule: Schedule) -> Iterator[str]:
    """A drop that its user didn't take back has a manifest of its own key and version."""
    for upload in schedule.watch.uploads:
        manifest = schedule.watch.manifest(upload.job_id)
        if manifest is None:
            if upload.replaced_at is None:
                yield f"{upload.key} {upload.version} has no manifest"
        elif (manifest["drop"]["key"], manifest["drop"]["version"]) != (upload.key, upload.version):
            yield f"{upload.job_id} is another drop's"


def settled_where_it_belongs(schedule: Schedule) -> Iterator[str]:
    """The drop of a standing manifest lies under done/ or failed/, by the manifest's word alone."""
    for job in schedule.watch.manifests.keys() - overwritten(schedule):
        manifest = schedule.watch.manifest(job)
        assert manifest is not None
        good = manifest["outcome"] in ("done", "partial", "cancelled")
        day = manifest["finished_at"][:10]
        wanted = f"{'done' if good else 'failed'}/{day}/{job}/"
        places = [
            key for key in schedule.bucket.keys("") if f"/{job}/" in key and not key.startswith(OUTPUTS)
        ]
        if not places or any(not place.startswith(wanted) for place in places):
            yield f"{job} ({manifest['outcome']}) lies in {places}"


def manifests_name_what_is_there(schedule: Schedule) -> Iterator[str]:
    """Every file of every manifest stands, at its size, with its bytes."""
    standing = set(schedule.bucket.keys(OUTPUTS))
    for job in schedule.watch.manifests:
        manifest = schedule.watch.manifest(job)
        for task in manifest["tasks"] if manifest and "tasks" in manifest else []:
            for file in task.get("files", []):
                if file["key"] not in standing:
                    yield f"{file['key']} is named by {job} and not there"
                elif hashlib.sha256(schedule.bucket.read(file["key"])).hexdigest() != file["sha256"]:
                    yield f"{file['key']} has other bytes than {job} says"


def results_are_whole(schedule: Schedule) -> Iterator[str]:
    """A manifest has each task of its plan once, and its hash; `done` has no failures."""
    for job in schedule.watch.manifests:
        manifest = schedule.watch.manifest(job)
        assert manifest is not None
        if manifest["outcome"] not in ("done", "partial", "failed"):
            continue
        planned = {task["index"]: task["hash"] for task in manifest["plan"]["tasks"]}
        got = {task["index"]: task["hash"] for task in manifest["tasks"]}
        if planned != got or len(manifest["tasks"]) != len(planned):
            yield f"{job} has tasks {sorted(got)} of {sorted(planned)}, or another plan's"
        failed = [task for task in manifest["tasks"] if task["status"] != "done"]
        if bool(failed) == (manifest["outcome"] == "done"):
            yield f"{job} is {manifest['outcome']} with {len(failed)} failed tasks"


def one_emission_one_job(schedule: Schedule) -> Iterator[str]:
    """Each job that a done manifest, a frozen folder or a due time asks for ran once, under an id
    of where it comes from."""
    wanted: set[str] = set()
    excused: set[str] = set()
    for job in schedule.watch.manifests:
        manifest = schedule.watch.manifest(job)
        assert manifest is not None
        if manifest["outcome"] == "done" or job in overwritten(schedule):
            asked = (manifest.get("job") or {}).get("on_success", [])
            into = excused if job in overwritten(schedule) else wanted
            into |= {
                emitted_job_id(job, f"{each.get('name', 'then')}-{place}")
                for place, each in enumerate(asked, start=1)
            } | emitted_by(schedule, manifest)
    wanted |= schedule.watch.folders.ingests.keys() | schedule.due
    users = {upload.job_id for upload in schedule.watch.uploads}
    emitted = schedule.watch.manifests.keys() - users
    if not wanted <= emitted <= wanted | excused:
        yield f"asked for {sorted(wanted)}, there are {sorted(emitted)}"


def attempts_are_bounded(schedule: Schedule) -> Iterator[str]:
    """No job begins more attempts than it may, however often its runners die; records that were
    on their way to the store for longer than their lease could not be counted by anyone.

    Two more may stand: one that only gathers what a dead job had finished, and one that begins
    at the same time, where a lease store was wiped."""
    limit, late = schedule.fleet.policy.max_attempts, schedule.watch.began_late
    for job in schedule.watch.manifests:
        begun = [key for key in schedule.bucket.keys(f"{OUTPUTS}{job}/") if key.endswith("/attempt.json")]
        counted = [
            key
            for key in begun
            if not late.get(key) and "released_at" not in json.loads(schedule.bucket.read(key))
        ]
        if len(counted) > limit + 2:
            yield f"{job} began {len(counted)} attempts, {limit} are allowed"


def dead_has_its_attempts(schedule: Schedule) -> Iterator[str]:
    """`dead` names as many begun attempts as were allowed."""
    for job in schedule.watch.manifests:
        manifest = schedule.watch.manifest(job)
        assert manifest is not None
        if manifest["outcome"] == "dead" and len(manifest["attempts"]) < schedule.fleet.policy.max_attempts:
            yield f"{job} is dead after {len(manifest['attempts'])} attempts"


def calm_needs_one_attempt(schedule: Schedule) -> Iterator[str]:
    """Where nothing goes wrong a job is begun once, however long it takes."""
    if not schedule.undisturbed:
        return
    for job in schedule.watch.manifests:
        begun = [key for key in schedule.bucket.keys(f"{OUTPUTS}{job}/") if key.endswith("/attempt.json")]
        if len(begun) > 1:
            yield f"{job} took {len(begun)} attempts"


def calm_gives_every_lease_back(schedule: Schedule) -> Iterator[str]:
    """Where nothing goes wrong whoever claims a job works it, and no lease runs out."""
    if not schedule.undisturbed or schedule.fleet.hands_over:
        return
    leases = [key.split("/") for key in schedule.leases.records if key.startswith("lease/")]
    for _, job, epoch in leases:
        if (job, int(epoch)) not in schedule.leases.released:
            yield f"{job} was claimed and forgotten"


def cancelled_only_on_request(schedule: Schedule) -> Iterator[str]:
    """Nothing is cancelled that nobody asked to cancel."""
    asked = {upload.job_id for upload in schedule.watch.uploads if upload.cancelled_at is not None}
    for job in schedule.watch.manifests.keys() - asked:
        manifest = schedule.watch.manifest(job)
        if manifest and manifest["outcome"] == "cancelled":
            yield job


def nights_are_told_truly(schedule: Schedule) -> Iterator[str]:
    """A night in which jobs began and ended has its report, which says of each what its manifest says."""
    night, now = schedule.fleet.policy.night, schedule.world.now
    if night is None:
        return
    by_morning: dict[str, set[str]] = {}
    in_time: set[str] = set()
    for job, data in schedule.watch.manifests.items():
        manifest = Manifest.model_validate_json(data)
        window = night_of(night, manifest)
        if window is not None and window.closes < now:
            morning = f"{window.morning:%Y-%m-%d}"
            by_morning.setdefault(morning, set()).add(job)
            settled_at = schedule.watch.settled_at.get(manifest.drop.key, schedule.world.now_s)
            if EPOCH + timedelta(seconds=settled_at) < window.closes:
                in_time.add(morning)
    for morning, jobs in by_morning.items():
        key = f"{NIGHTS}{morning}/report.json"
        if key not in schedule.bucket.keys(NIGHTS):
            if morning in in_time:
                yield f"nobody told of {morning}, in which {sorted(jobs)} began"
            continue
        told = json.loads(schedule.bucket.read(key))["jobs"]
        for each in told:
            stands = schedule.watch.manifest(each["job_id"])
            if each["job_id"] not in jobs or stands is None or stands["outcome"] != each["outcome"]:
                yield f"the report of {morning} is wrong about {each['job_id']}"


def overwritten(schedule: Schedule) -> set[str]:
    """Jobs whose drop its user replaced on a store without versions: of such a drop nothing is
    left that a later tick could find; and those whose manifest a closed laptop replaced after a
    lease store was wiped. docs/reliability.md says what then is not promised."""
    if schedule.bucket.versions:
        return schedule.watch.replaced
    users = {upload.job_id for upload in schedule.watch.uploads if upload.replaced_at is not None}
    return schedule.watch.replaced | users


AT_REST: tuple[Invariant, ...] = (
    nothing_escapes,
    no_drop_in_limbo,
    every_drop_has_its_outcome,
    settled_where_it_belongs,
    manifests_name_what_is_there,
    results_are_whole,
    one_emission_one_job,
    attempts_are_bounded,
    dead_has_its_attempts,
    calm_needs_one_attempt,
    calm_gives_every_lease_back,
    cancelled_only_on_request,
    *FOLDERS_AT_REST,
    nights_are_told_truly,
)
"""Judged when the faults are over and the inbox is empty."""


def garbage_is_collected(schedule: Schedule) -> Iterator[str]:
    """After the sweep a settled job's outputs are what its manifest names, and its records."""
    for job in schedule.watch.manifests.keys() - overwritten(schedule):
        manifest = schedule.watch.manifest(job)
        assert manifest is not None
        kept = named_by(manifest)
        for key in schedule.bucket.keys(f"{OUTPUTS}{job}/"):
            name = key.rpartition("/")[2]
            records = ("manifest.json", "index.html", "training.html", "attempt.json", "engine.log", *BESIDE)
            if key not in kept and name not in records:
                yield f"{key} was left"


AFTER_SWEEP: tuple[Invariant, ...] = (nothing_escapes, manifests_name_what_is_there, garbage_is_collected)


def judge(schedule: Schedule, invariants: tuple[Invariant, ...]) -> list[str]:
    """Every violation, named."""
    return [
        f"{invariant.__name__.replace('_', ' ')}: {how}"
        for invariant in invariants
        for how in invariant(schedule)
    ]


def run(schedule: Schedule, *, sweeping: bool = True) -> list[str]:
    """Play a schedule to its end; what it violated.

    Args:
        sweeping: days later the sweep runs, too, and is judged; with every third seed.
    """
    with threads_as_actors(schedule.world), blank_pages():
        try:
            schedule.chaos()
            schedule.peace()
            found = judge(schedule, AT_REST)
            if not sweeping or schedule.world.seed % 3:
                return schedule.watch.violations + found
            schedule.aftermath()
            return schedule.watch.violations + found + judge(schedule, AFTER_SWEEP)
        finally:
            schedule.world.close()
