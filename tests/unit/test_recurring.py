"""Templates: each due time becomes one job, whoever looks, however often, and whatever was missed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from processor import recurring
from processor.errors import JobInvalid
from processor.inbox import scan
from processor.recurring import Recurring, read_template
from processor.run import run
from processor.store.memory import MemoryStore
from processor.testing.clock import ManualClock
from processor.testing.counting import CountingStore
from processor.testing.handler import ScriptedHandler, write_text_file
from processor.testing.machine import Bench
from processor.tick import tick

NOON = datetime(2026, 5, 4, 12, tzinfo=UTC)
KEY = "inbox/recurring/dawn.json"
DAILY = {"workflow": "noop", "name": "Dawn", "schedule": "0 6 * * *"}


@pytest.fixture(name="bench")
def _bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path, ScriptedHandler(write_text_file), clock=ManualClock(NOON))


def work(bench: Bench) -> list[str]:
    """One runner's pass over the bucket; the ids of all emitted jobs so far."""
    machine = bench.machine()
    run(machine, once=True)
    machine.close()
    return [m["job_id"] for m in bench.manifests() if m["drop"]["key"].startswith("inbox/jobs/emitted/")]


def at(bench: Bench, moment: datetime) -> None:
    bench.clock.advance((moment - bench.clock.now()).total_seconds())


def test_a_template_emits_one_job_a_due_time_and_stays(bench: Bench) -> None:
    """Not before its first due time after the upload; then once, though many runners look."""
    bench.drop(DAILY, KEY)
    assert work(bench) == []
    at(bench, NOON + timedelta(hours=20))
    assert len(work(bench)) == 1
    assert len(work(bench)) == 1
    at(bench, NOON + timedelta(days=1, hours=20))
    assert len(work(bench)) == 2
    assert KEY in bench.keys("inbox/")
    names = sorted(manifest["job"]["name"] for manifest in bench.manifests())
    assert names == ["Dawn, 2026-05-05 06:00", "Dawn, 2026-05-06 06:00"]


@pytest.mark.parametrize(("catch_up", "made_up"), [(1, 1), (3, 3), (24, 10)])
def test_ten_missed_days_are_made_up_for_as_often_as_asked(bench: Bench, catch_up: int, made_up: int) -> None:
    bench.drop({**DAILY, "schedule": {"cron": "0 6 * * *", "catch_up": catch_up}}, KEY)
    at(bench, NOON + timedelta(days=10))
    assert len(work(bench)) == made_up
    assert len(work(bench)) == made_up


def test_a_template_under_a_long_key_is_due_as_any_other(bench: Bench) -> None:
    """Its key is the emitted job's parent, and may have 1,024 bytes; nothing else waits for it."""
    long = f"inbox/recurring/{'deep/' * 60}{'n' * 240}.json"
    bench.drop(DAILY, long)
    bench.drop(DAILY, KEY)
    at(bench, NOON + timedelta(days=1))
    assert len(work(bench)) == 2


def test_a_defect_in_one_template_keeps_no_others_from_being_due(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = recurring.emission_name

    def broken(key: str, due: datetime) -> str:
        if key == KEY:
            raise RuntimeError("a defect")
        return real(key, due)

    monkeypatch.setattr(recurring, "emission_name", broken)
    bench.drop(DAILY, KEY)
    bench.drop(DAILY, "inbox/recurring/dusk.json")
    bench.drop({"workflow": "noop"})
    at(bench, NOON + timedelta(days=1))
    assert len(work(bench)) == 1
    assert len(bench.manifests()) == 2


def test_two_runners_at_once_make_one_job(bench: Bench) -> None:
    """Neither has seen the other's emission; the id is the same."""
    bench.drop(DAILY, KEY)
    at(bench, NOON + timedelta(days=1))
    first, second = bench.machine(), bench.machine()
    inbox = scan(bench.main, keep=10)
    for machine in (first, second):
        Recurring().emit_due(machine, inbox, zone=machine.policy.zone)
    assert len(bench.keys("inbox/jobs/emitted/")) == 1
    assert len(work(bench)) == 1


def test_a_new_upload_starts_from_its_own_time(bench: Bench) -> None:
    """What was due before it is none of its business."""
    bench.drop(DAILY, KEY)
    at(bench, NOON + timedelta(hours=20))
    bench.drop({**DAILY, "name": "Dusk"}, KEY)
    assert work(bench) == []


def test_a_paused_bucket_emits_nothing(bench: Bench) -> None:
    bench.drop(DAILY, KEY)
    bench.main.put("inbox/control/paused", b"{}")
    at(bench, NOON + timedelta(days=1))
    assert work(bench) == []
    assert bench.keys("inbox/jobs/") == []


def test_a_broken_template_stops_nothing(bench: Bench) -> None:
    """It stays where it is; jobs and other templates go on."""
    bench.drop(b"{", "inbox/recurring/broken.json")
    bench.drop({**DAILY, "schedule": "at six"}, "inbox/recurring/when.json")
    bench.drop(DAILY, KEY)
    at(bench, NOON + timedelta(days=1))
    assert len(work(bench)) == 1
    assert {"inbox/recurring/broken.json", "inbox/recurring/when.json"} <= bench.all_keys


def test_an_idle_tick_asks_nothing_about_templates(tmp_path: Path) -> None:
    """One listing and two reads for the authority, however many templates there are."""
    clock = ManualClock(NOON)
    store = CountingStore(MemoryStore(clock=clock))
    bench = Bench(tmp_path, ScriptedHandler(), clock=clock, store=store)
    for number in range(5):
        bench.drop(DAILY, f"inbox/recurring/{number}.json")
    machine = bench.machine()
    for _ in range(2):
        clock.advance(60)
        tick(machine, capacity=1)
    store.reset()
    clock.advance(60)
    tick(machine, capacity=1)
    machine.close()
    assert store.total == 2, store.reset()


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ({"workflow": "x"}, "needs a `schedule`"),
        ({"workflow": "x", "schedule": "* *"}, "cron"),
        ({"workflow": "x", "schedule": 5}, "schedule: 5 is no schedule"),
        ({"workflow": "x", "schedule": {"cron": "0 6 * * *", "zoen": "UTC"}}, "zone"),
        ({"workflow": "x", "schedule": "0 6 * * *", "seedz": 1}, "seeds"),
    ],
)
def test_a_template_is_checked_like_a_job(template: dict[str, Any], says: str) -> None:
    import json

    with pytest.raises(JobInvalid) as caught:
        read_template(json.dumps(template).encode(), key=KEY)
    assert says in str(caught.value)
