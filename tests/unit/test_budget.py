"""What may be spent: by a job, by a day, by several runners at once."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from processor.dispatch import process
from processor.errors import ErrorKind, TaskFailed
from processor.handler import Stop, Stores, TaskContext, TaskOutput, Work
from processor.launch import LocalConfig, LocalLauncher
from processor.machine import Machine
from processor.run import RunReport, run
from processor.store.memory import MemoryStore
from processor.testing.clock import ManualClock
from processor.testing.counting import CountingStore
from processor.testing.handler import ScriptedHandler
from processor.testing.machine import Bench
from processor.tick import tick

NOON = datetime(2026, 5, 4, 12, tzinfo=UTC)
DOLLAR_A_TASK = 1.0


def takes_a_second(_work: Work, _context: TaskContext) -> TaskOutput:
    return TaskOutput([], seconds=1.0)


@pytest.fixture(name="bench")
def _bench(tmp_path: Path) -> Bench:
    bench = Bench(tmp_path, ScriptedHandler(takes_a_second), clock=ManualClock(NOON))
    bench.with_policy(priced=True, max_job_cost_usd=1000.0, max_day_cost_usd=1000.0)
    return bench


def dear(bench: Bench) -> Machine:
    """A runner whose tasks cost a dollar each."""
    machine = bench.machine()
    handlers = {"render": bench.handler}
    launcher = LocalLauncher(
        handlers,
        Stores.single(bench.main),
        LocalConfig(bench.work_dir, gpu="L40S", usd_per_s=DOLLAR_A_TASK),
        bench.events.append,
    )
    return Machine(
        **{
            name: getattr(machine, name)
            for name in ("stores", "leases", "authority", "clock", "handlers", "policy", "nonce", "host")
        },
        launcher=launcher,
    )


def job(tasks: int, **more: Any) -> dict[str, Any]:
    return {"workflow": "noop", "overrides": {"tasks": tasks}, **more}


def finish(bench: Bench) -> RunReport:
    machine = dear(bench)
    report = run(machine, once=True)
    machine.close()
    return report


def test_every_manifest_says_what_it_cost(bench: Bench) -> None:
    bench.drop(job(3))
    finish(bench)
    (manifest,) = bench.manifests()
    assert manifest["cost_usd"] == pytest.approx(3.0)
    assert manifest["tasks"][0]["gpu"] == "L40S"
    assert bench.keys("state/spend/2026-05-04/")[0].endswith("/3000000")


def test_a_manifest_names_the_gpu_that_ran(bench: Bench) -> None:
    """Out of memory, a job goes on on a bigger one than it asked for: that is what has its price."""
    bench.drop(job(1, gpu="T4"))
    finish(bench)
    (manifest,) = bench.manifests()
    assert manifest["tasks"][0]["gpu"] == "L40S"


def test_a_job_that_may_cost_nothing_begins_nothing_that_costs(bench: Bench) -> None:
    """It began what fits the machine before any price was known."""
    bench.drop(job(50, max_cost_usd=0))
    finish(bench)
    (manifest,) = bench.manifests()
    assert {task["error"]["kind"] for task in manifest["tasks"]} == {"over_budget"}
    assert "cost_usd" not in manifest
    bench.with_policy(priced=False)
    bench.drop(job(2, max_cost_usd=0), "inbox/jobs/free.json")
    machine = bench.machine()
    run(machine, once=True)
    machine.close()
    assert sorted(each["outcome"] for each in bench.manifests()) == ["done", "failed"]


def test_calls_of_one_dispatcher_share_what_they_know_of_the_day(bench: Bench) -> None:
    """Each looked the day up for itself, and none saw what another had not written yet."""
    machine = dear(bench)
    first, second = machine.with_stop(Stop()), machine.with_stop(Stop())
    first.budget.add(("a-0123456789abcdef", "1-a"), 3.0)
    assert second.budget.spent_usd() == pytest.approx(3.0)
    assert first.stop is not second.stop


def test_a_job_stops_fanning_out_at_its_limit_and_says_so(bench: Bench) -> None:
    """At most one task beyond, however many could run at once; what finished is kept."""
    bench.drop(job(50, max_cost_usd=10))
    finish(bench)
    (manifest,) = bench.manifests()
    done = [task for task in manifest["tasks"] if task["status"] == "done"]
    assert manifest["outcome"] == "partial"
    assert 10 <= len(done) <= 15  # the first window is begun before any price is known
    assert "of $10.00" in manifest["tasks"][-1]["error"]["what"]
    error = manifest["tasks"][-1]["error"]
    assert error["where"] == "max_cost_usd"
    assert "`dropbatch retry JOB --max-cost USD`" in error["mend"]
    assert "settings" not in error["mend"]


def test_a_job_that_the_settings_stopped_names_that_setting(bench: Bench) -> None:
    """To raise a `max_cost_usd` that nobody wrote was no help."""
    bench.with_policy(max_job_cost_usd=10.0)
    bench.drop(job(50))
    finish(bench)
    (manifest,) = bench.manifests()
    error = manifest["tasks"][-1]["error"]
    assert error["where"] == "max_job_cost_usd"
    assert "--max-cost" in error["mend"]
    assert "max_job_cost_usd in the settings" in error["mend"]


def test_a_task_is_told_its_share_of_the_cap_and_the_price(bench: Bench) -> None:
    """A handler whose tasks are long stops within one: by the job's cap, else by everybody's."""
    told: list[tuple[float | None, float]] = []

    def listens(work: Work, context: TaskContext) -> TaskOutput:
        told.append((work.max_cost_usd, context.usd_per_s))
        return TaskOutput([], seconds=0.0)

    bench.handler = ScriptedHandler(listens)
    bench.drop(job(4, max_cost_usd=10))
    finish(bench)
    bench.drop(job(5), "inbox/jobs/b.json")
    finish(bench)
    bench.with_policy(max_job_cost_usd=float("inf"))
    bench.drop(job(1), "inbox/jobs/c.json")
    finish(bench)
    assert told == [(2.5, DOLLAR_A_TASK)] * 4 + [(200.0, DOLLAR_A_TASK)] * 5 + [(None, DOLLAR_A_TASK)]


def test_the_day_stops_a_job_half_way(bench: Bench) -> None:
    bench.with_policy(max_day_cost_usd=20.0)
    bench.drop(job(50))
    finish(bench)
    (manifest,) = bench.manifests()
    assert manifest["tasks"][-1]["error"]["where"] == "max_day_cost_usd"
    assert 20 <= manifest["cost_usd"] <= 26


def test_the_next_job_waits_for_tomorrow_instead_of_failing(bench: Bench) -> None:
    """It is not claimed at all; after midnight in the settings' zone it runs."""
    bench.with_policy(max_day_cost_usd=5.0, zone=ZoneInfo("Europe/Berlin"))
    bench.drop(job(5))
    finish(bench)
    bench.drop(job(2, name="later"), "inbox/jobs/b.json")
    assert finish(bench).over_budget == "the day has cost $5.00 of $5.00"
    assert len(bench.manifests()) == 1
    machine = dear(bench)
    bench.clock.advance(9.5 * 3600)  # 21:30 UTC is 23:30 in Berlin
    report = tick(machine, capacity=1)
    assert report.claims == []
    assert report.over_budget == "the day has cost $5.00 of $5.00"
    bench.clock.advance(3600)
    assert finish(bench).over_budget is None
    assert len(bench.manifests()) == 2


def test_runners_count_each_others_spending(bench: Bench) -> None:
    """Two machines, one bucket, one budget."""
    first, second = dear(bench), dear(bench)
    first.budget.add(("a-0123456789abcdef", "1-a"), 3.0)
    first.budget.write(("a-0123456789abcdef", "1-a"))
    first.budget.add(("a-0123456789abcdef", "1-a"), 4.0)
    first.budget.write(("a-0123456789abcdef", "1-a"))
    second.budget.add(("b-0123456789abcdef", "1-b"), 2.0)
    assert second.budget.spent_usd() == pytest.approx(9.0)


def test_what_a_stopped_runner_had_spent_counts(tmp_path: Path) -> None:
    """A job that is given back has cost what ran to its end meanwhile, or in part."""
    stops: list[Stop] = []

    def script(_work: Work, _context: TaskContext) -> TaskOutput:
        stops[0].set(ErrorKind.PREEMPTED)
        return TaskOutput([], seconds=2.0)

    bench = Bench(tmp_path, ScriptedHandler(script, concurrency=1), clock=ManualClock(NOON))
    bench.with_policy(priced=True, max_job_cost_usd=1000.0, max_day_cost_usd=1000.0)
    bench.drop(job(5))
    machine = dear(bench)
    stops.append(machine.stop)
    (claim,) = tick(machine, capacity=1).claims
    assert process(machine, claim) is None
    machine.close()
    assert dear(bench).budget.spent_usd() >= 2.0  # the next one may have begun


def test_a_jobs_cap_counts_what_stopped_attempts_have_spent(tmp_path: Path) -> None:
    """Of an attempt that was given back, what brought no result was forgotten: stopped often enough, a
    job could cost any sum. It runs past midnight, too."""
    ran = 0

    def script(_work: Work, context: TaskContext) -> TaskOutput:
        nonlocal ran
        ran += 1
        if ran % 3 == 0:
            machine.stop.set(ErrorKind.PREEMPTED)
            context.stop.wait(10)
            bench.clock.advance(13 * 3600)
            context.stop.check()
        raise TaskFailed(ErrorKind.CRASHED, "the engine dies")

    class Dear(ScriptedHandler):
        def run(self, work: Work, context: TaskContext) -> TaskOutput:
            time.sleep(0.02)
            return super().run(work, context)

    bench = Bench(tmp_path, Dear(script, concurrency=1), clock=ManualClock(NOON))
    bench.with_policy(priced=True, max_task_tries=100, max_day_cost_usd=1000.0, stop_poll_s=0.05)
    bench.drop(job(1, max_cost_usd=0.15))
    for _ in range(9):
        machine = dear(bench)
        run(machine, once=True)
        machine.close()
        if bench.manifests():
            break
    (manifest,) = bench.manifests()
    assert manifest["tasks"][0]["error"]["kind"] == "over_budget"
    assert ran <= 8, "each costs two cents at least"
    assert manifest["cost_usd"] >= 0.15
    assert manifest["cost_usd"] == pytest.approx(dear(bench).budget.of_job(manifest["job_id"], since=NOON))


def test_an_idle_bucket_and_jobs_that_cost_nothing_ask_nothing(tmp_path: Path) -> None:
    """The floor of eight requests stands: the day is looked up only where tasks have a price."""
    clock = ManualClock(NOON)
    store = CountingStore(MemoryStore(clock=clock))
    bench = Bench(tmp_path, ScriptedHandler(), clock=clock, store=store)
    bench.drop(job(1))
    machine = bench.machine()
    run(machine, once=True)
    machine.close()
    assert not bench.keys("state/spend/")
    assert "state/spend/" not in str(store.reset())
