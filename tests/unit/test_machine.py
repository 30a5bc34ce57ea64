"""The machine end to end, in memory: what becomes of a drop, and at what cost."""

from __future__ import annotations

import errno
import threading
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from processor.dispatch import process
from processor.errors import AccessDenied, ErrorKind, TaskFailed
from processor.events import JobClaimed, JobReleased, JobSettled
from processor.handler import PlanContext, Remedy, TaskContext, TaskOutput, Work
from processor.leases.memory import MemoryLeases
from processor.leases.protocol import Record
from processor.models import JobBase, RenderJob
from processor.records import Manifest, Plan
from processor.run import Wake, run
from processor.store.memory import MemoryStore
from processor.sweep import sweep
from processor.testing.clock import ManualClock
from processor.testing.counting import CountingLeases, CountingStore
from processor.testing.faults import Fault, FaultPlan, FaultyLeases, FaultyStore
from processor.testing.handler import ScriptedHandler, write_text_file
from processor.testing.machine import Bench
from processor.tick import tick
from processor.tick_report import TickReport

JOB = {"workflow": "noop"}


@pytest.fixture(name="bench")
def _bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path, ScriptedHandler(write_text_file))


def render(tasks: int = 1, **more: Any) -> dict[str, Any]:
    return {**JOB, "overrides": {"tasks": tasks}, **more}


def finish(bench: Bench) -> list[dict[str, Any]]:
    """Run everything that is due; return the manifests."""
    machine = bench.machine()
    run(machine, once=True)
    machine.close()
    return bench.manifests()


def test_a_drop_becomes_files_and_a_manifest_and_leaves_the_inbox(bench: Bench) -> None:
    """The whole way of an ordinary job."""
    bench.drop(render(3))
    (manifest,) = finish(bench)
    assert manifest["outcome"] == "done"
    assert [task["index"] for task in manifest["tasks"]] == [0, 1, 2]
    for task in manifest["tasks"]:
        (file,) = task["files"]
        assert file["key"] in bench.keys("comfy_outputs/")
    assert bench.keys("inbox/") == []
    (settled,) = bench.keys("done/")
    assert settled.endswith("/a.json")


def test_an_ordinary_job_costs_eight_requests_and_four_of_the_lease_store(tmp_path: Path) -> None:
    """The floor that docs/performance.md promises, counted."""
    clock = ManualClock()

    class Leisurely(MemoryLeases):
        def create(self, key: str, value: Record) -> Record:
            clock.advance(0.001)
            return super().create(key, value)

    store = CountingStore(MemoryStore(clock=clock))
    leases = CountingLeases(Leisurely())
    bench = Bench(tmp_path, ScriptedHandler(), clock=clock, store=store, leases=leases)
    machine = bench.machine()
    tick(machine, capacity=1)  # founds the authority
    clock.advance(1)
    bench.drop(JOB)
    store.reset()
    leases.reset()
    report = tick(machine, capacity=1)
    process(machine, report.claims[0])
    machine.close()
    scanning, authority = 1, 1  # the lease store's half is asked once more when the lease is held
    assert store.total - scanning - authority == 8, store.reset()
    assert leases.total - 2 * authority == 4, leases.reset()


@pytest.mark.parametrize(
    ("drop", "names"),
    [
        (b"{", "not valid JSON"),
        (b"[1]", "an array"),
        (b'{"workflow": "x", "seedz": 3}', "seeds"),
        (b'{"nodes": [], "links": []}', "UI format"),
        (b'{"kind": "rendr", "workflow": "x"}', "render"),
        (b'{"workflow": "x", "priority": NaN}', "NaN"),
        (b"\xff\xfe", "UTF-8"),
        (b'{"workflow": "x", "overrides": {"tasks": 0}}', "overrides.tasks"),
        (b'{"workflow": "x", "retry_of": "nobody-0123456789abcdef"}', "retry_of"),
        (b'{"workflow": "x", "origin": {"parent": "a", "name": "b"}}', "origin"),
    ],
)
def test_a_bad_drop_ends_invalid_with_a_report_that_names_the_mend(
    bench: Bench, drop: bytes, names: str
) -> None:
    """Nothing that a file can hold stops a tick; each ends with a report a person can act on."""
    bench.drop(drop)
    bench.drop(JOB, "inbox/jobs/good.json")
    manifests = finish(bench)
    assert sorted(manifest["outcome"] for manifest in manifests) == ["done", "invalid"]
    (report,) = [key for key in bench.keys("failed/") if key.endswith("error.json")]
    error = bench.read(report)["error"]
    assert names in f"{error['what']} {error.get('where')} {error.get('mend')}"
    assert bench.keys("inbox/") == []


def test_a_huge_drop_is_refused_without_being_read(bench: Bench) -> None:
    """Sizes are bounded before anything is parsed."""
    bench.with_policy(max_job_bytes=100)
    bench.drop(b"x" * 200)
    (manifest,) = finish(bench)
    assert "at most 100" in manifest["error"]["what"]


def test_a_transient_failure_is_tried_again_and_a_permanent_one_is_not(tmp_path: Path) -> None:
    """One pure function decides; the manifest tells how many tries it took."""
    seen: list[tuple[int, int, Remedy]] = []

    def script(work: Work, _context: TaskContext) -> TaskOutput:
        seen.append((work.task.index, work.tries, work.remedy))
        if work.task.index == 0 and work.tries == 1:
            raise TaskFailed(ErrorKind.CRASHED, "died")
        if work.task.index == 1:
            raise TaskFailed(ErrorKind.BAD_INPUT, "no such picture")
        return TaskOutput([], 0.0)

    bench = Bench(tmp_path, ScriptedHandler(script))
    bench.drop(render(3))
    (manifest,) = finish(bench)
    assert manifest["outcome"] == "partial"
    assert sorted(seen) == [(0, 1, "none"), (0, 2, "restart"), (1, 1, "none"), (2, 1, "none")]
    assert manifest["tasks"][1]["error"]["kind"] == "bad_input"


def test_running_out_of_memory_climbs_its_ladder(tmp_path: Path) -> None:
    """Free memory, then restart, then a bigger GPU, then give up."""
    remedies: list[Remedy] = []

    def script(work: Work, _context: TaskContext) -> TaskOutput:
        remedies.append(work.remedy)
        raise TaskFailed(ErrorKind.OUT_OF_MEMORY, "out of memory")

    bench = Bench(tmp_path, ScriptedHandler(script))
    bench.drop(JOB)
    (manifest,) = finish(bench)
    assert manifest["outcome"] == "failed"
    assert remedies == ["none", "free_memory", "restart", "bigger_gpu"]


def test_a_job_that_kills_its_runner_ends_dead_and_names_each_attempt(bench: Bench) -> None:
    """Poison drops use up their attempts; nothing is `dead` without attempts that began."""
    bench.drop(JOB)
    runners_die(bench, bench.policy.max_attempts)
    (manifest,) = finish(bench)
    assert manifest["outcome"] == "dead"
    assert len(manifest["attempts"]) == 3
    assert all(attempt["attempt"] in str(manifest["error"]["details"]) for attempt in manifest["attempts"])


def stopped_after_two_of(tasks: int, tmp_path: Path) -> Bench:
    """A bench on whose only job one runner finished two tasks, and was stopped."""

    def script(work: Work, context: TaskContext) -> TaskOutput:
        if work.task.index == 2 and not machine.stop.is_set() and not bench.keys("failed/"):
            machine.stop.set(ErrorKind.PREEMPTED)
            context.stop.wait(10)
            context.stop.check()
        return write_text_file(work, context)

    bench = Bench(tmp_path, ScriptedHandler(script, concurrency=1))
    bench.drop(render(tasks))
    machine = bench.machine()
    assert run(machine, once=True).given_back == 1
    machine.close()
    return bench


def test_what_a_dead_job_had_finished_is_kept(tmp_path: Path) -> None:
    """It is given up with its results, and a retry runs the rest."""
    bench = stopped_after_two_of(4, tmp_path)
    runners_die(bench, bench.policy.max_attempts)
    (manifest,) = finish(bench)
    assert (manifest["outcome"], len(manifest["attempts"])) == ("dead", bench.policy.max_attempts)
    assert [task["index"] for task in manifest["tasks"]] == [0, 1]
    bench.drop({**render(4), "retry_of": manifest["job_id"]}, "inbox/jobs/again.json")
    (second,) = [again for again in finish(bench) if again["job_id"] != manifest["job_id"]]
    assert second["outcome"] == "done"
    assert [task.get("reused_from") for task in second["tasks"]] == [manifest["job_id"]] * 2 + [None] * 2


def test_looking_for_what_a_dead_job_had_finished_may_be_fatal_once(tmp_path: Path) -> None:
    """A plan that kills its reader must not be read for ever."""
    bench = stopped_after_two_of(4, tmp_path)
    runners_die(bench, bench.policy.max_attempts + 1)
    (manifest,) = finish(bench)
    assert manifest["outcome"] == "dead"
    assert not manifest.get("tasks")


def test_cancelling_what_was_given_back_keeps_what_was_finished(tmp_path: Path) -> None:
    """As `dropbatch cancel` promises; nothing more is run."""
    bench = stopped_after_two_of(4, tmp_path)
    machine = bench.machine()
    report = tick(machine, capacity=0)
    machine.close()
    assert report.inbox is not None
    bench.main.put(f"inbox/control/cancel/{report.inbox.due[0].job_id}", b"")
    (manifest,) = finish(bench)
    assert manifest["outcome"] == "cancelled"
    assert [task["index"] for task in manifest["tasks"]] == [0, 1]
    assert all(file["key"] in bench.all_keys for task in manifest["tasks"] for file in task["files"])


class SkippingWake(Wake):
    """Waits for jobs in work, and lets the clock pass where nobody works."""

    def __init__(self, bench: Bench) -> None:
        super().__init__()
        self._bench = bench
        self.waited_s: list[float] = []

    def wait(self, timeout_s: float) -> None:
        begun = sum(isinstance(event, JobClaimed) for event in self._bench.events)
        ended = sum(isinstance(event, JobSettled | JobReleased) for event in self._bench.events)
        if begun > ended:
            super().wait(30.0)
        else:
            self.waited_s.append(timeout_s)
            self._bench.clock.advance(timeout_s)


@pytest.mark.parametrize(("refusals", "outcomes"), [(4, {"done": 1}), (99, {})])
def test_what_is_given_back_is_tried_again_ever_later(
    tmp_path: Path, refusals: int, outcomes: dict[str, int]
) -> None:
    """A key without a capability, or a full disk, made the loop claim and give back without a pause."""
    store = MemoryStore()
    refuse = Fault("put", key="index.html", times=refusals, error=lambda: AccessDenied("no writeFiles"))
    bench = Bench(tmp_path, ScriptedHandler(write_text_file), store=FaultyStore(store, FaultPlan(refuse)))
    bench.drop(JOB)
    machine = bench.machine()
    wake = SkippingWake(bench)
    report = run(machine, once=True, wake=wake)
    machine.close()
    assert report.outcomes == outcomes
    assert report.given_back == min(refusals, 5)
    assert sum(wake.waited_s) == pytest.approx(15.0, abs=0.1)
    assert (report.problem is None) == bool(outcomes)
    assert len(bench.keys("inbox/")) == (not outcomes)


@pytest.mark.parametrize("refused", ["lease", "older version"])
def test_a_run_ends_when_jobs_can_not_be_claimed(tmp_path: Path, refused: str) -> None:
    """A full disk or a read-only lease store made `--once` look every two seconds, for ever."""
    fault = Fault("create", key="lease/", error=lambda: AccessDenied("no space left on device"))
    bench = Bench(tmp_path, ScriptedHandler(write_text_file))
    bench.drop(JOB)
    if refused == "older version":
        bench.drop(JOB)
    fault.times = 99
    machine = bench.machine(leases=FaultyLeases(bench.leases, FaultPlan(fault)))
    wake = SkippingWake(bench)
    report = run(machine, once=True, wake=wake)
    machine.close()
    assert (report.outcomes, report.given_back) == ({}, 0)
    assert report.problem is not None
    assert "could not be claimed" in report.problem
    assert "no space left on device" in report.problem
    assert sum(wake.waited_s) == pytest.approx(15.0, abs=0.1)


def test_a_lease_store_that_refuses_for_a_moment_costs_nothing(tmp_path: Path) -> None:
    """The run waits a little and goes on."""
    bench = Bench(tmp_path, ScriptedHandler(write_text_file))
    bench.drop(JOB)
    machine = bench.machine(leases=FaultyLeases(bench.leases, FaultPlan(Fault("create", key="lease/"))))
    report = run(machine, once=True, wake=SkippingWake(bench))
    machine.close()
    assert (report.outcomes, report.problem) == ({"done": 1}, None)


def test_a_runner_that_stays_looks_ever_more_rarely_where_it_is_refused(tmp_path: Path) -> None:
    """Each look asks for, and logs, the same again."""
    fault = Fault("create", key="lease/", times=99)
    bench = Bench(tmp_path, ScriptedHandler(write_text_file))
    bench.drop(JOB)
    machine = bench.machine(leases=FaultyLeases(bench.leases, FaultPlan(fault)))
    wake = SkippingWake(bench)

    def not_for_ever(_report: TickReport) -> None:
        if len(wake.waited_s) == 9:
            machine.stop.set(ErrorKind.CANCELLED)

    run(machine, wake=wake, on_tick=not_for_ever)
    machine.close()
    assert wake.waited_s[:9] == [1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_a_defect_at_a_jobs_end_does_not_keep_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run would wait for ever for a job that has ended long since."""
    bench = Bench(tmp_path, ScriptedHandler(write_text_file))
    bench.drop(JOB)
    machine = bench.machine()

    def release(_: object) -> None:
        raise OSError(errno.EIO, "the disk is gone")

    class Passing(Wake):
        def wait(self, timeout_s: float) -> None:
            super().wait(0.1)
            bench.clock.advance(timeout_s)

    monkeypatch.setattr(machine.leases, "release", release)
    report = run(machine, once=True, concurrency=1, wake=Passing())
    machine.close()
    assert report.given_back == 1
    assert [manifest["outcome"] for manifest in bench.manifests()] == ["done"]


def runners_die(bench: Bench, times: int) -> None:
    """One after the other, each once it has planned the only job; their leases run out."""
    for _ in range(times):
        machine = bench.machine()
        (claim,) = tick(machine, capacity=1).claims
        _die_after_planning(machine, claim)
        bench.clock.advance(bench.policy.lease_s + 2 * bench.policy.margin_s)


def _die_after_planning(machine: Any, claim: Any) -> None:
    """What kill -9 leaves: an attempt that began, and no word of its end."""
    from processor.attempt import Trying
    from processor.plan import elect_plan

    trying = Trying(machine, claim, machine.clock.now())
    if trying.may_have_history:
        trying.begin()
    elect_plan(trying, RenderJob(kind="render", workflow="noop"))


@pytest.mark.parametrize(("between", "outcome", "counted"), [(2, "done", 1), (0, "dead", 3)])
def test_a_lid_closed_each_night_ends_no_job_that_gets_on(
    tmp_path: Path, between: int, outcome: str, counted: int
) -> None:
    """A lost lease uses up an attempt only if nothing was finished under it."""
    since: list[int] = []

    def script(work: Work, context: TaskContext) -> TaskOutput:
        if len(since) == between:
            since.clear()
            bench.clock.advance(8 * 3600)
            raise TaskFailed(ErrorKind.UNAVAILABLE, "slept through it")
        since.append(work.task.index)
        return write_text_file(work, context)

    bench = Bench(tmp_path, ScriptedHandler(script, concurrency=1))
    bench.drop(render(9))
    machine = bench.machine()
    while claims := tick(machine, capacity=1).claims:
        process(machine, claims[0])
    machine.close()
    (manifest,) = bench.manifests()
    assert (manifest["outcome"], len(manifest["attempts"])) == (outcome, counted)


def test_a_later_attempt_adopts_what_an_earlier_one_finished(tmp_path: Path) -> None:
    """After a crash only what is missing runs again."""
    ran: list[int] = []

    def script(work: Work, context: TaskContext) -> TaskOutput:
        ran.append(work.task.index)
        if len(ran) == 3:
            machine.stop.set(ErrorKind.PREEMPTED)
            context.stop.wait(10)
            context.stop.check()
        return write_text_file(work, context)

    bench = Bench(tmp_path, ScriptedHandler(script, concurrency=1))
    bench.drop(render(4))
    machine = bench.machine()
    assert run(machine, once=True).given_back == 1
    machine.close()
    assert bench.manifests() == []
    (manifest,) = finish(bench)
    assert manifest["outcome"] == "done"
    assert sorted(ran) == [0, 1, 2, 2, 3]
    assert len({task["attempt"] for task in manifest["tasks"]}) == 2


def test_a_re_upload_of_the_same_name_is_a_new_job(bench: Bench) -> None:
    """Same key, other version: both run, neither is lost."""
    bench.drop(JOB)
    assert len(finish(bench)) == 1
    bench.drop(JOB)
    assert len(finish(bench)) == 2


def test_a_re_upload_while_it_runs_survives_the_settling(tmp_path: Path) -> None:
    """Settling deletes the version that ran, not what arrived meanwhile."""

    def script(_work: Work, _context: TaskContext) -> TaskOutput:
        if not bench.manifests():
            bench.drop(render(2), "inbox/jobs/a.json")
        return TaskOutput([], 0.0)

    bench = Bench(tmp_path, ScriptedHandler(script))
    bench.drop(render(1))
    manifests = finish(bench)
    assert sorted(len(manifest["tasks"]) for manifest in manifests) == [1, 2]
    assert bench.keys("inbox/") == []


def test_a_replaced_drop_is_removed_unrun(bench: Bench) -> None:
    """Older versions never resurface, whatever is hidden or deleted later."""
    bench.drop(render(1))
    bench.drop(render(2))
    (manifest,) = finish(bench)
    assert len(manifest["tasks"]) == 2
    versions = [item for page in bench.main.list("inbox/", versions=True) for item in page.objects]
    assert versions == []


def test_cancelling_before_the_start_runs_nothing(bench: Bench) -> None:
    """A cancel request that waits in the inbox is honoured, and goes with the drop."""
    bench.drop(JOB)
    machine = bench.machine()
    report = tick(machine, capacity=0)
    assert report.inbox is not None
    job_id = report.inbox.due[0].job_id
    bench.main.put(f"inbox/control/cancel/{job_id}", b"")
    machine.close()
    (manifest,) = finish(bench)
    assert manifest["outcome"] == "cancelled"
    assert manifest.get("tasks", []) == []
    assert bench.keys("inbox/") == []


def test_cancelling_in_the_middle_keeps_what_was_finished(tmp_path: Path) -> None:
    """The running task is asked to end; finished ones stay in the manifest."""

    def script(work: Work, context: TaskContext) -> TaskOutput:
        if work.task.index == 1:
            bench.main.put(f"inbox/control/cancel/{work.job_id}", b"")
            assert context.stop.wait(20)
            context.stop.check()
        return write_text_file(work, context)

    bench = Bench(tmp_path, ScriptedHandler(script, concurrency=1))
    bench.with_policy(cancel_poll_s=0.0)
    bench.drop(render(4))
    (manifest,) = finish(bench)
    assert manifest["outcome"] == "cancelled"
    assert [task["index"] for task in manifest["tasks"]] == [0]
    assert bench.keys("inbox/") == []


def test_success_emits_its_jobs_exactly_once_each(bench: Bench) -> None:
    """Everything is a drop: what follows a job is one, too."""
    then = {"kind": "render", "workflow": "noop", "name": "grid", "overrides": {"tasks": 2}}
    bench.drop(render(1, on_success=[then]))
    manifests = finish(bench)
    assert sorted(len(manifest["tasks"]) for manifest in manifests) == [1, 2]
    (emitted,) = [manifest for manifest in manifests if "emitted" in manifest["drop"]["key"]]
    assert emitted["job"]["origin"]["name"] == "grid-1"
    assert finish(bench) == manifests


def test_a_value_that_no_model_of_a_handlers_takes_makes_the_job_invalid(tmp_path: Path) -> None:
    """The same bytes fail for ever: not an attempt lost after the other, and `dead` in the end."""

    class Strict(ScriptedHandler):
        def plan(self, job: JobBase, context: PlanContext) -> Plan:
            plan = super().plan(job, context)
            return Plan.model_validate({**plan.model_dump(), "tasks": [{"index": -1, "hash": ""}]})

    bench = Bench(tmp_path, Strict())
    bench.drop(render(1))
    machine = bench.machine()
    for claim in tick(machine, capacity=1).claims:
        process(machine, claim)
    (manifest,) = bench.manifests()
    assert manifest["outcome"] == "invalid"
    assert "tasks.0.index" in manifest["error"]["what"]


def test_a_retry_copies_the_good_results_and_runs_the_failed(tmp_path: Path) -> None:
    """`retry_of` runs the same plan; only failed tasks cost anything again."""
    broken = True
    ran: list[int] = []

    def script(work: Work, context: TaskContext) -> TaskOutput:
        ran.append(work.task.index)
        if work.task.index == 1 and broken:
            raise TaskFailed(ErrorKind.BAD_INPUT, "no such picture")
        return write_text_file(work, context)

    bench = Bench(tmp_path, ScriptedHandler(script, concurrency=1))
    bench.drop(render(3))
    (first,) = finish(bench)
    broken = False
    bench.drop({**render(3), "retry_of": first["job_id"]}, "inbox/jobs/again.json")
    (second,) = [manifest for manifest in finish(bench) if manifest["job_id"] != first["job_id"]]
    assert second["outcome"] == "done"
    assert ran == [0, 1, 2, 1]
    for task in second["tasks"]:
        assert all(file["key"].startswith(f"comfy_outputs/{second['job_id']}/") for file in task["files"])
        assert all(file["key"] in bench.all_keys for file in task["files"])


def test_what_rests_is_not_forgotten_while_another_job_runs(tmp_path: Path) -> None:
    """Looks go on although a look is fresh; a run ends neither early nor a minute late for it."""
    store = MemoryStore()
    refuse = Fault("put", key="index.html", times=1, error=lambda: AccessDenied("no writeFiles"))
    released = threading.Event()

    def script(work: Work, context: TaskContext) -> TaskOutput:
        if work.job_id.startswith("long-"):
            assert released.wait(30)
        return write_text_file(work, context)

    bench = Bench(tmp_path, ScriptedHandler(script), store=FaultyStore(store, FaultPlan(refuse)))
    bench.drop(JOB, "inbox/jobs/short.json")
    bench.drop(JOB, "inbox/jobs/long.json")
    machine = bench.machine()

    class UntilTheShortOneEnds(Wake):
        def wait(self, timeout_s: float) -> None:
            kinds = [type(event) for event in bench.events]
            rests = JobReleased in kinds and JobSettled not in kinds and kinds.count(JobClaimed) == 2
            if rests and timeout_s <= 5.0:
                bench.clock.advance(timeout_s)
            elif rests:  # its end may not have been noted yet; if it was, a minute would be waited
                assert self._event.wait(20), "nobody would wake us for what rests"
                self._event.clear()
            else:
                if JobSettled in kinds:
                    released.set()
                super().wait(30.0)

    report = run(machine, once=True, wake=UntilTheShortOneEnds())
    machine.close()
    assert report.outcomes == {"done": 2}


def test_an_authority_of_another_version_is_a_problem_and_no_defect(bench: Bench) -> None:
    """It is said, with a mend; nothing is claimed."""
    bench.main.put("state/authority.json", b'{"id": "x", "invented_later": 1}')
    bench.drop(JOB)
    report = run(bench.machine(), once=True)
    assert report.problem is not None
    assert "does not read as one" in report.problem
    assert bench.keys("inbox/") == ["inbox/jobs/a.json"]


def test_what_is_claimed_while_something_is_dropped_is_run(tmp_path: Path) -> None:
    """News that came in the middle of claiming made the loop look again, and forget its claims:
    their drops waited until the leases ran out."""
    wake = Wake()

    class Interrupted(MemoryLeases):
        def create(self, key: str, value: Record) -> Record:
            wake.set()
            return super().create(key, value)

    def begin(work: Work, context: TaskContext) -> TaskOutput:
        wake.take_news()  # so that the next are claimed from the last look
        return write_text_file(work, context)

    bench = Bench(tmp_path, ScriptedHandler(begin, concurrency=1), leases=Interrupted())
    for number in range(6):
        bench.drop(render(), f"inbox/jobs/{number}.json")
    machine = bench.machine()

    def not_for_ever(report: TickReport) -> None:
        if report.leased:
            machine.stop.set(ErrorKind.CANCELLED)

    run(machine, concurrency=1, once=True, wake=wake, on_tick=not_for_ever)
    assert len(bench.manifests()) == 6


def test_priority_goes_before_age(tmp_path: Path) -> None:
    """Among what lies due the higher priority is claimed first."""
    bench = Bench(tmp_path, ScriptedHandler())
    bench.drop(JOB, "inbox/jobs/old.json")
    bench.clock.advance(5)
    bench.drop({**JOB, "priority": 5}, "inbox/jobs/urgent.json")
    machine = bench.machine()
    (claim,) = tick(machine, capacity=1).claims
    assert claim.drop.key == "inbox/jobs/urgent.json"
    machine.close()


def test_what_is_not_due_or_not_ours_stays_in_the_inbox(bench: Bench) -> None:
    """`not_before` and `where` hold a drop back without touching it."""
    later = (bench.clock.now() + timedelta(hours=2)).isoformat()
    bench.drop({**JOB, "not_before": later}, "inbox/jobs/later.json")
    bench.drop({**JOB, "where": "modal"}, "inbox/jobs/modal.json")
    bench.drop(JOB, "inbox/nightly/night.json")
    assert finish(bench) == []
    assert len(bench.keys("inbox/")) == 3
    bench.clock.advance(2 * 3600 + 1)
    assert len(finish(bench)) == 1


def test_a_paused_bucket_claims_nothing(bench: Bench) -> None:
    """`inbox/control/paused` holds everything until it is removed."""
    bench.drop(JOB)
    bench.main.put("inbox/control/paused", b"")
    assert finish(bench) == []
    assert tick(bench.machine(), capacity=1).paused


def test_a_runner_with_another_lease_store_claims_nothing_and_says_so(bench: Bench) -> None:
    """Two authorities on one bucket would be two outcomes for a drop."""
    tick(bench.machine(), capacity=1)
    bench.drop(JOB)
    report = tick(bench.machine(leases=MemoryLeases()), capacity=1)
    assert report.claims == []
    assert report.problem


def test_a_spent_budget_stops_further_tasks_and_says_so(tmp_path: Path) -> None:
    """`max_cost_usd` ends the fan-out; what was finished is kept."""

    def script(work: Work, context: TaskContext) -> TaskOutput:
        return replace(write_text_file(work, context), seconds=1.0)

    bench = Bench(tmp_path, ScriptedHandler(script, concurrency=1))
    machine = bench.machine()
    object.__setattr__(machine.launcher._config, "usd_per_s", 0.01)  # type: ignore[attr-defined]
    bench.drop(render(50, max_cost_usd=0.01))
    run(machine, once=True)
    machine.close()
    (manifest,) = bench.manifests()
    assert manifest["outcome"] == "partial"
    kinds = [task.get("error", {}).get("kind") for task in manifest["tasks"]]
    assert kinds.count("over_budget") >= 40
    assert len(manifest["tasks"]) == 50


def test_a_zombie_that_lost_its_lease_commits_nothing(bench: Bench) -> None:
    """A runner that slept through its lease finds another's manifest and leaves it alone."""
    bench.drop(JOB)
    zombie = bench.machine()
    (claim,) = tick(zombie, capacity=1).claims
    bench.clock.advance(bench.policy.lease_s + 2 * bench.policy.margin_s)
    (manifest,) = finish(bench)
    process(zombie, claim)
    zombie.close()
    assert bench.manifests() == [manifest]


def test_the_sweep_removes_losers_and_nothing_that_a_manifest_names(tmp_path: Path) -> None:
    """A day later only what the manifest names, and the records of its attempts, are left."""
    stopped = False

    def script(work: Work, context: TaskContext) -> TaskOutput:
        nonlocal stopped
        if work.task.index == 1 and not stopped:
            stopped = True
            machine.stop.set(ErrorKind.PREEMPTED)
            context.stop.wait(10)
            context.stop.check()
        return write_text_file(work, context)

    bench = Bench(tmp_path, ScriptedHandler(script, concurrency=1))
    bench.drop(render(2))
    machine = bench.machine()
    run(machine, once=True)
    machine.close()
    (manifest,) = finish(bench)
    stray = f"comfy_outputs/{manifest['job_id']}/9-abc/00000-dead/x.png"
    bench.main.put(stray, b"loser")
    sweeper = bench.machine()
    assert sweep(sweeper).removed == 0
    bench.clock.advance(50 * 3600)
    tick(sweeper, capacity=0)
    assert sweep(sweeper).removed > 0
    sweeper.close()
    assert stray not in bench.all_keys
    for task in Manifest.model_validate(manifest).tasks:
        assert all(file.key in bench.all_keys for file in task.files)
    assert sweep(sweeper).removed == 0
