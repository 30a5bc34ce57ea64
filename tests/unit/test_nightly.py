"""The morning report: which jobs are a night's, made once, and again for those that end late."""

from __future__ import annotations

import re
from datetime import UTC, datetime, time
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from processor.dispatch import process
from processor.nightly import Mornings, NightReport, make_report, spread
from processor.records import Manifest
from processor.run import run
from processor.schedule import Night
from processor.store.memory import MemoryStore
from processor.testing.clock import ManualClock
from processor.testing.counting import CountingStore
from processor.testing.handler import ScriptedHandler, write_text_file
from processor.testing.machine import Bench
from processor.tick import tick

EVENING = datetime(2026, 5, 4, 20, tzinfo=UTC)
NIGHT = Night(time(1), time(7), ZoneInfo("UTC"))
REPORT = "comfy_outputs/nightly/2026-05-05/report.json"


@pytest.fixture(name="bench")
def _bench(tmp_path: Path) -> Bench:
    bench = Bench(tmp_path, ScriptedHandler(write_text_file), clock=ManualClock(EVENING))
    bench.with_policy(night=NIGHT)
    return bench


def at(bench: Bench, hour: int, day: int = 5) -> None:
    moment = datetime(2026, 5, day, hour, tzinfo=UTC)
    bench.clock.advance((moment - bench.clock.now()).total_seconds())


def work(bench: Bench) -> None:
    machine = bench.machine()
    run(machine, once=True)
    machine.close()


def run_by_hand(bench: Bench) -> Manifest:
    """The one job that waits for the night, run now."""
    machine = bench.machine()
    (claim,) = tick(machine, capacity=1, night_open=True).claims
    manifest = process(machine, claim)
    machine.close()
    assert manifest is not None
    return manifest


def job(tasks: int = 2, **more: Any) -> dict[str, Any]:
    return {"workflow": "noop", "overrides": {"tasks": tasks}, **more}


def test_held_drops_run_once_in_the_next_window_that_somebody_sees(bench: Bench) -> None:
    """Nights that nobody was there for are not made up for one by one: a drop is one job."""
    bench.drop(job(), "inbox/nightly/a.json")
    work(bench)
    assert bench.manifests() == []
    at(bench, 12, day=8)
    work(bench)
    assert bench.manifests() == []
    at(bench, 3, day=9)
    work(bench)
    assert len(bench.manifests()) == 1


def test_a_report_has_the_nights_jobs_and_not_the_days(bench: Bench) -> None:
    """Held or not: what began while the window was open."""
    bench.drop(job(name="evening"))
    work(bench)
    bench.drop(job(name="held"), "inbox/nightly/a.json")
    at(bench, 2)
    bench.drop(job(3, name="awake"), "inbox/jobs/b.json")
    work(bench)
    at(bench, 9)
    bench.drop(job(name="morning"), "inbox/jobs/c.json")
    work(bench)
    report = NightReport.model_validate(bench.read(REPORT))
    assert {entry.name for entry in report.jobs} == {"held", "awake"}
    assert (report.tasks, report.failed_tasks, report.files) == (5, 0, 5)
    with bench.main.get("comfy_outputs/nightly/2026-05-05/index.html") as download:
        page = download.body.read().decode()
    assert "The night to Tuesday, 5 May 2026" in page
    assert "awake" in page
    links = set(re.findall(r'href="([^"]+)"', page))
    assert links == {f"../../{entry.job_id}/index.html" for entry in report.jobs}


def test_a_night_without_jobs_has_no_report(bench: Bench) -> None:
    at(bench, 12)
    work(bench)
    assert bench.keys("comfy_outputs/") == []


def test_after_a_night_without_jobs_the_days_are_read_once(tmp_path: Path) -> None:
    """Every run would else read the manifests of all that was done since, to find none of that night."""
    clock = ManualClock(EVENING)
    store = CountingStore(MemoryStore(clock=clock))
    bench = Bench(tmp_path, ScriptedHandler(write_text_file), clock=clock, store=store)
    bench.with_policy(night=NIGHT)
    at(bench, 12)
    for number in range(5):
        bench.drop(job(), f"inbox/jobs/{number}.json")
    work(bench)
    store.reset()
    work(bench)
    assert store.counts["get"] < 5
    bench.drop(job(), "inbox/nightly/late.json")
    announced: list[NightReport] = []
    mornings = Mornings(bench.machine(), announce=announced.append)
    mornings.note([run_by_hand(bench)])
    mornings.look()
    assert [len(report.jobs) for report in announced] == [1]
    assert REPORT in bench.all_keys


def test_a_report_is_announced_once_whoever_looks(bench: Bench) -> None:
    """It stands in the bucket, so a second runner finds it done."""
    bench.drop(job(), "inbox/nightly/a.json")
    at(bench, 2)
    machine = bench.machine()
    run(machine, once=True)
    at(bench, 8)
    announced: list[NightReport] = []
    for _ in range(3):
        mornings = Mornings(bench.machine(), announce=announced.append)
        assert mornings.due
        mornings.look()
        assert not mornings.due
    assert len(announced) == 1


def test_a_job_that_ends_after_its_night_makes_the_report_anew(bench: Bench) -> None:
    """Its own runner sees to it, a while later, without announcing it again."""
    bench.with_policy(lease_s=90_000.0)
    bench.drop(job(name="early"), "inbox/nightly/a.json")
    at(bench, 2)
    work(bench)
    at(bench, 6)
    bench.drop(job(name="late"), "inbox/nightly/b.json")
    machine = bench.machine()
    (claim,) = tick(machine, capacity=1).claims
    at(bench, 8)
    announced: list[NightReport] = []
    mornings = Mornings(machine, announce=announced.append)
    mornings.look()
    assert [entry.name for entry in announced[0].jobs] == ["early"]
    manifest = process(machine, claim)
    assert manifest is not None
    mornings.note([manifest])
    bench.clock.advance(3600)
    assert mornings.due
    mornings.look()
    assert {entry["name"] for entry in bench.read(REPORT)["jobs"]} == {"early", "late"}
    assert len(announced) == 1


def test_who_asks_for_the_night_now_is_told_now(bench: Bench) -> None:
    """Before it is over; its morning then reports the whole, and announces that."""
    bench.drop(job(name="early"), "inbox/nightly/a.json")
    at(bench, 2)
    machine = bench.machine()
    run(machine, once=True, night_open=True)
    assert [entry["name"] for entry in bench.read(REPORT)["jobs"]] == ["early"]
    bench.drop(job(name="late"), "inbox/nightly/b.json")
    at(bench, 6)
    work(bench)
    at(bench, 8)
    announced: list[NightReport] = []
    Mornings(bench.machine(), announce=announced.append).look()
    assert {entry.name for entry in announced[0].jobs} == {"early", "late"}


def test_failures_come_first_and_say_why(bench: Bench) -> None:
    bench.drop(b"{", "inbox/nightly/broken.json")
    bench.drop(job(), "inbox/nightly/fine.json")
    at(bench, 2)
    work(bench)
    at(bench, 8)
    machine = bench.machine()
    report = make_report(machine, NIGHT.closed(machine.clock.now()))
    assert report is not None
    assert {entry.outcome.value for entry in report.jobs} == {"done", "invalid"}
    with bench.main.get("comfy_outputs/nightly/2026-05-05/index.html") as download:
        page = download.body.read().decode()
    assert page.index("not valid JSON") < page.index("fine")


def test_without_a_nightly_window_nothing_is_due(tmp_path: Path) -> None:
    machine = Bench(tmp_path, ScriptedHandler()).machine()
    mornings = Mornings(machine)
    mornings.look()
    assert not mornings.due


@pytest.mark.parametrize("count", [0, 1, 23, 24, 25, 100, 1000])
def test_pictures_are_spread_over_the_gallery_in_its_order(count: int) -> None:
    items = [str(number) for number in range(count)]
    chosen = spread(items, 24)
    assert len(chosen) == min(count, 24)
    assert len(set(chosen)) == len(chosen)
    assert chosen == sorted(chosen, key=int)
    assert chosen[:1] == items[:1]
