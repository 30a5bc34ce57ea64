"""What the simulation found, once more without it: each was a defect of the core."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from processor.clock import MAX_ROUND_TRIP_S, StoreClock
from processor.dispatch import process
from processor.errors import StoreUnavailable
from processor.handler import TaskContext, TaskOutput, Work
from processor.run import run
from processor.schedule import Night
from processor.store.memory import MemoryStore
from processor.testing.clock import ManualClock
from processor.testing.handler import ScriptedHandler, write_text_file
from processor.testing.machine import Bench
from processor.tick import tick

JOB = {"workflow": "noop"}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path, ScriptedHandler(write_text_file))


def finish(bench: Bench) -> list[dict[str, object]]:
    machine = bench.machine()
    run(machine, once=True)
    machine.close()
    return bench.manifests()


def test_a_job_longer_than_its_lease_is_committed_by_its_first_attempt(tmp_path: Path) -> None:
    """The commit asks the lease as renewed, not as it was claimed."""

    def script(work: Work, context: TaskContext) -> TaskOutput:
        patient.clock.advance(200)
        return write_text_file(work, context)

    patient = Bench(tmp_path, ScriptedHandler(script, concurrency=1))
    patient.drop({**JOB, "overrides": {"tasks": 6}})
    (manifest,) = finish(patient)
    assert manifest["outcome"] == "done"
    assert str(manifest["attempt"]).startswith("1-")


def test_what_its_user_took_back_stays_gone_while_it_runs(bench: Bench) -> None:
    """The delete marker above a leased version is not tidied away: that would bring it back."""
    bench.drop(JOB)
    holder = bench.machine()
    (claim,) = tick(holder, capacity=1).claims
    assert isinstance(bench.main, MemoryStore)
    bench.main.hide(claim.drop.key)
    tick(bench.machine(), capacity=1)
    assert bench.keys("inbox/") == []
    bench.clock.advance(bench.policy.lease_s + 2 * bench.policy.margin_s)
    assert finish(bench) == []


def test_a_newer_version_waits_until_the_older_one_is_gone(bench: Bench) -> None:
    """Settled first, it would uncover the older one, which would run."""
    bench.drop({**JOB, "overrides": {"tasks": 1}})
    (older,) = tick(bench.machine(), capacity=1).claims
    bench.drop({**JOB, "overrides": {"tasks": 2}})
    report = tick(bench.machine(), capacity=1)
    assert report.claims == []
    assert report.leased == 1
    bench.clock.advance(bench.policy.lease_s + 2 * bench.policy.margin_s)
    (manifest,) = finish(bench)
    assert manifest["job_id"] != older.lease.job_id


def test_a_request_to_cancel_waits_with_the_drop_that_it_is_for(bench: Bench) -> None:
    """A drop held for the night is cancelled hours later, not run."""
    bench.drop(JOB, "inbox/nightly/a.json")
    machine = bench.machine()
    report = tick(machine, capacity=1, night_open=True)
    (claim,) = report.claims
    machine.leases.release(claim.lease)
    bench.main.put(f"inbox/control/cancel/{claim.lease.job_id}", b"")
    bench.clock.advance(timedelta(hours=5).total_seconds())
    tick(machine, capacity=1, night_open=False)
    (claim,) = tick(machine, capacity=1, night_open=True).claims
    assert claim.cancel is not None


def test_a_retry_runs_what_can_not_be_copied_any_more(bench: Bench) -> None:
    """A removed file of the parent's made the retry go back for ever."""
    bench.drop({**JOB, "overrides": {"tasks": 2}})
    (first,) = finish(bench)
    lost = next(key for key in bench.keys("comfy_outputs/") if key.endswith("/0.txt"))
    bench.main.delete(lost, version=bench.main.stat(lost).version)
    bench.drop({**JOB, "retry_of": first["job_id"]}, "inbox/jobs/again.json")
    (second,) = [each for each in finish(bench) if each["job_id"] != first["job_id"]]
    assert second["outcome"] == "done"


def test_a_slow_reply_does_not_set_the_clock() -> None:
    """A listing that slept in the network put the clock ahead, and leases were taken too early."""
    base = ManualClock()
    clock = StoreClock(base)
    sent_at, date = clock.monotonic(), base.now()
    base.advance(MAX_ROUND_TRIP_S + 1)
    with pytest.raises(StoreUnavailable, match="to tell the time"):
        clock.sync(date, sent_at=sent_at)
    clock.sync(base.now(), sent_at=clock.monotonic())
    assert clock.now() == base.now()


def test_a_wrong_clock_opens_no_night(tmp_path: Path) -> None:
    """A cron's first tick asks the window by the store's clock, not by its host's."""
    noon = ManualClock().now()
    night = Night((noon + timedelta(minutes=2)).time(), (noon + timedelta(hours=1)).time(), ZoneInfo("UTC"))
    bench = Bench(tmp_path, ScriptedHandler(write_text_file))
    bench.with_policy(night=night)
    bench.drop(JOB, "inbox/nightly/a.json")
    fast = ManualClock()
    fast.advance(300)
    assert tick(bench.machine(clock=fast), capacity=1).claims == []
    bench.clock.advance(150)
    assert len(tick(bench.machine(clock=fast), capacity=1).claims) == 1


def test_a_claim_that_was_long_on_its_way_starts_no_task(tmp_path: Path) -> None:
    """The lease had run out before the reply to the claim came, and somebody else had the job."""
    begun: list[str] = []

    def script(work: Work, context: TaskContext) -> TaskOutput:
        begun.append(work.attempt)
        return write_text_file(work, context)

    bench = Bench(tmp_path, ScriptedHandler(script))
    bench.drop(JOB)
    holder = bench.machine()
    (claim,) = tick(holder, capacity=1).claims
    bench.clock.advance(bench.policy.lease_s)
    assert process(holder, claim) is None
    assert begun == []
    bench.clock.advance(2 * bench.policy.margin_s)
    (manifest,) = finish(bench)
    assert manifest["outcome"] == "done"
