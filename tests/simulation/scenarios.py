"""What is dropped on what kind of bucket, and who works it. Each is a function of a seed.

A scenario takes its faults from the caller where crash points are planned, and else draws
them. To add one: write the function, add it to `SCENARIOS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from processor.layout import dataset_latest_key, emitted_job_id
from processor.recurring import emission_name
from processor.schedule import Night
from tests.simulation.faults import FOUNDING, Chance, Faults, Kind
from tests.simulation.fleet import POLICY
from tests.simulation.folders import Says
from tests.simulation.launcher import Labour
from tests.simulation.schedule import STORM, Schedule
from tests.simulation.world import EPOCH, Process
from tests.support.pictures import picture

Scenario = Callable[[int, Faults | None], Schedule]

ROUGH = Labour(transient=0.05, permanent=0.05, preempted=0.05, long=0.02)
THEN = [{"kind": "render", "workflow": "noop", "name": "grid"}]

PICTURES = [picture(k) for k in range(6)]
FIRST = {f"{k}.png": PICTURES[k] for k in range(3)}
NIGHTLY = replace(POLICY, night=Night(time(12, 5), time(12, 35), ZoneInfo("UTC")))
"""A short night, soon after the simulation begins."""


def render(tasks: int = 1, **more: Any) -> dict[str, Any]:
    return {"workflow": "noop", "overrides": {"tasks": tasks}, **more}


def lone(seed: int, faults: Faults | None = None) -> Schedule:
    """One job of one task, and a desk that starts again whenever it dies."""
    schedule = _schedule(seed, faults)
    schedule.user.at(0.5, lambda: schedule.user.drop(render(1)))
    schedule.fleet.start_desk("desk")
    return schedule


def small(seed: int, faults: Faults | None = None) -> Schedule:
    """One job of up to three tasks, worked by a desk and a cron at once."""
    schedule = _schedule(seed, faults)
    tasks = schedule.world.random.choice((1, 2, 3))
    schedule.user.at(0.5, lambda: schedule.user.drop(render(tasks)))
    return _desk_and_cron(schedule)


def crowd(seed: int, faults: Faults | None = None) -> Schedule:
    """More drops than a desk has room for, which is asked to stop and started again, and another desk.

    Now and then the reply to a claim comes when the lease has run out.
    """
    storm = Chance(_rate(seed), STORM, aimed={("create", "lease/"): (Kind.SLOW_REPLY, 0.05)})
    schedule = _schedule(seed, faults or storm)
    chance = schedule.world.random
    _many(schedule, chance.choice((4, 5, 6)))
    for name in ("desk", "other desk")[: chance.choice((1, 2))]:
        schedule.fleet.start_desk(name, delay_s=30 * chance.random(), stopped=0.05)
    return schedule


def throng(seed: int, faults: Faults | None = None) -> Schedule:
    """A crowd of drops and one desk; nothing goes wrong."""
    schedule = Schedule.build(seed, faults or Chance(0.0, STORM))
    schedule.undisturbed = True
    _many(schedule, 6)
    schedule.fleet.start_desk("desk")
    return schedule


def emits(seed: int, faults: Faults | None = None) -> Schedule:
    """One job of up to three tasks and what it emits."""
    schedule = _schedule(seed, faults)
    tasks = schedule.world.random.choice((1, 2, 3))
    schedule.user.at(0.5, lambda: schedule.user.drop(render(tasks, on_success=THEN)))
    return _desk_and_cron(schedule)


def reuploads(seed: int, faults: Faults | None = None) -> Schedule:
    """The same name uploaded again and again, also while it runs, sometimes deleted by name."""
    storm = Chance(_rate(seed), STORM, aimed={("create", "lease/"): (Kind.SLEEP, 0.1)})
    schedule = _schedule(seed, faults or storm, lag_s=_maybe(seed, 60.0))
    chance, user = schedule.world.random, schedule.user
    at = 0.5
    for _ in range(chance.choice((2, 3))):
        emits = {"on_success": THEN} if chance.random() < 0.5 else {}
        user.at(at, lambda emits=emits: user.drop(render(1, **emits)))
        at += chance.choice((3.0, 30.0, 300.0, 900.0)) * chance.random()
        if chance.random() < 0.15:
            user.at(at, lambda: user.delete("inbox/jobs/a.json"))
            at += 60 * chance.random()
    return _desk_and_cron(schedule)


def cancels(seed: int, faults: Faults | None = None) -> Schedule:
    """A request to cancel before, while or after a job runs."""
    schedule = _schedule(seed, faults)
    chance, user = schedule.world.random, schedule.user
    wait_s = 60 * chance.random() ** 2

    def drop_and_cancel() -> None:
        dropped = user.drop(render(3, on_success=THEN))
        schedule.world.pause(wait_s)
        user.cancel(dropped)

    user.at(0.5, drop_and_cancel)
    return _desk_and_cron(schedule)


def wiped(seed: int, faults: Faults | None = None) -> Schedule:
    """The lease store loses all it holds, at any moment, most of all when somebody was elected.

    Who is elected often hears of it late, or sleeps as it asks and doesn't know for how long. A
    manifest on its way then arrives within a lease's time, or never: see docs/reliability.md.
    """
    storm = Chance(
        _rate(seed),
        STORM,
        aimed={("create", "commit/"): (Kind.SLOW_REPLY if seed % 5 else Kind.SUSPEND, 0.4)},
        timely=(*FOUNDING, "comfy_outputs/"),
    )
    schedule = _schedule(seed, faults or storm)
    world, user = schedule.world, schedule.user
    user.at(0.5, lambda: user.drop(render(2, on_success=THEN)))
    fate = Process(world, "user fate")
    for _ in range(world.random.choice((1, 1, 2))):
        world.spawn(fate, "wipe", schedule.wipe, delay_s=world.random.uniform(0, 150))
    schedule.after_an_election(schedule.wipe, chance=0.3)
    schedule.as_a_lease_is_asked_for(schedule.wipe, chance=0.9)
    return _desk_and_cron(schedule)


def foreigner(seed: int, faults: Faults | None = None) -> Schedule:
    """A second desk on the same bucket, wrongly configured with a lease store of its own."""
    storm = Chance(_rate(seed), STORM, aimed={("create", "authority"): (Kind.SLOW_REPLY, 0.3)})
    schedule = _schedule(seed, faults or storm)
    user = schedule.user
    schedule.fleet.foreign = schedule.other_leases()
    user.at(30, lambda: user.drop(render(2, on_success=THEN)))
    schedule.fleet.start_desk("foreigner", delay_s=25, leases=schedule.fleet.foreign)
    return _desk_and_cron(schedule)


def lagging(seed: int, faults: Faults | None = None) -> Schedule:
    """Listings up to two minutes old, and missing keys that answer 403."""
    schedule = _schedule(seed, faults, lag_s=120.0, missing_is_403=True)
    user = schedule.user
    user.at(0.5, lambda: user.drop(render(2, on_success=THEN)))
    user.at(40, lambda: user.drop(render(1), "inbox/b.json"))
    return _desk_and_cron(schedule)


def folder(seed: int, faults: Faults | None = None) -> Schedule:
    """A store without versions whose delete compares and removes in one step: a directory."""
    schedule = _schedule(seed, faults, versions=False, put_if_absent=True)
    chance, user = schedule.world.random, schedule.user
    user.at(0.5, lambda: user.drop(render(1, on_success=THEN)))
    user.at(0.5 + 60 * chance.random(), lambda: user.drop(render(2)))
    return _desk_and_cron(schedule)


def unversioned(seed: int, faults: Faults | None = None) -> Schedule:
    """Another S3 server without versions. Its users never use a key twice."""
    schedule = _schedule(seed, faults, versions=False, atomic_delete=False)
    user = schedule.user
    user.at(0.5, lambda: user.drop(render(1, on_success=THEN), "inbox/jobs/a-1.json"))
    user.at(20, lambda: user.drop(render(2), "inbox/jobs/a-2.json"))
    return _desk_and_cron(schedule)


def sleepers(seed: int, faults: Faults | None = None) -> Schedule:
    """Laptops closed in the middle of long tasks, whose monotonic clocks then stand still."""
    storm = Chance(0.03, {Kind.SUSPEND: 3.0, Kind.UNAVAILABLE: 1.0})
    schedule = Schedule.build(seed, faults or storm, labour=Labour(long=0.7))
    user = schedule.user
    user.at(0.5, lambda: user.drop(render(8)))
    return _desk_and_cron(schedule)


def slow(seed: int, faults: Faults | None = None) -> Schedule:
    """Long tasks, and replies that take longer than a lease where somebody asks who has it."""
    storm = Chance(_rate(seed), STORM, aimed={("read", "beat/"): (Kind.SLOW_REPLY, 0.1)})
    schedule = Schedule.build(seed, faults or storm, labour=Labour(long=0.7))
    user = schedule.user
    user.at(0.5, lambda: user.drop(render(8)))
    return _desk_and_cron(schedule)


def poison(seed: int, faults: Faults | None = None) -> Schedule:
    """A drop that kills whoever plans it. Leases are short, so that many get to try."""
    policy = replace(POLICY, lease_s=60.0, renew_s=15.0, margin_s=5.0)
    schedule = Schedule.build(
        seed, faults or Chance(0.005, STORM), labour=Labour(poisonous=True), policy=policy
    )
    user = schedule.user
    user.at(0.5, lambda: user.drop(render(1)))
    return _desk_and_cron(schedule)


def sweeps(seed: int, faults: Faults | None = None) -> Schedule:
    """The sweep runs all the while, too early for anything."""
    schedule = _schedule(seed, faults)
    user = schedule.user
    user.at(0.5, lambda: user.drop(render(2, on_success=THEN)))
    user.at(1500, lambda: user.drop(render(1), "inbox/late.json"))
    schedule.fleet.start_sweeper("janitor")
    return _desk_and_cron(schedule)


def calm(seed: int, faults: Faults | None = None) -> Schedule:
    """Nothing goes wrong, and tasks outlast leases."""
    schedule = Schedule.build(seed, faults or Chance(0.0, STORM), labour=Labour(long=0.9))
    schedule.undisturbed = True
    user = schedule.user
    user.at(0.5, lambda: user.drop(render(5, on_success=THEN)))
    return _desk_and_cron(schedule)


def folders(seed: int, faults: Faults | None = None) -> Schedule:
    """A dataset folder becomes a LoRA and a test render; more and changed pictures come later.

    Pointers on their way arrive within a lease's time, or never: see docs/reliability.md.
    """
    pointers = (dataset_latest_key("zoe"), "comfy_models/loras/zoe.latest.json")
    schedule = _schedule(seed, faults or Chance(_rate(seed), STORM, timely=(*FOUNDING, *pointers)))
    chance, user = schedule.world.random, schedule.user
    says: Says = chance.choice(("ready", "ready", "listed", "quiet"))
    later = {"1.png": PICTURES[4], "5.png": PICTURES[5]}

    def upload() -> None:
        user.upload("zoe", FIRST, says=says, pause_s=60.0)
        if chance.random() < 0.5:
            user.wait_until(lambda: bool(schedule.watch.folders.ingests))
            schedule.world.pause(chance.choice((2.0, 30.0, 900.0)) * chance.random())
            user.upload("zoe", later, says=says, pause_s=chance.choice((0.0, 60.0)))

    user.at(0.5, upload)
    return _desk_and_cron(schedule)


def nights(seed: int, faults: Faults | None = None) -> Schedule:
    """Drops held for the night, a template due in it, and the report of the morning."""
    schedule = _schedule(seed, faults, policy=NIGHTLY)
    in_the_night(schedule)
    chance, user = schedule.world.random, schedule.user
    for name in ("a", "b")[: chance.choice((1, 2))]:
        key = f"inbox/nightly/{name}.json"
        user.at(0.5 + 280 * chance.random(), lambda key=key: user.drop(render(2), key))
    user.at(1.0, lambda: owe(schedule, "inbox/recurring/r.json"))
    if chance.random() < 0.3:  # uploaded once more before it is due
        user.at(30 + 200 * chance.random(), lambda: owe(schedule, "inbox/recurring/r.json"))
    user.at(2500.0, lambda: None)
    schedule.fleet.start_mornings(after_s=2102.0)
    return _desk_and_cron(schedule)


def in_the_night(schedule: Schedule) -> None:
    """Judge what is held, and let the healthy runner rest so long that it lives through a day."""
    schedule.rest_s = 1500.0
    schedule.watch.night_opens = EPOCH + timedelta(minutes=5)


def owe(schedule: Schedule, key: str) -> None:
    """Upload a template that is due at ten past twelve, once a month."""
    schedule.user.put(key, {**render(1, on_success=THEN), "schedule": "10 12 1 * *"})
    name = emission_name(key, EPOCH + timedelta(minutes=10))
    schedule.due = {emitted_job_id(key, name)}


SCENARIOS: dict[str, Scenario] = {
    scenario.__name__: scenario
    for scenario in (
        lone,
        small,
        crowd,
        throng,
        emits,
        reuploads,
        cancels,
        wiped,
        foreigner,
        lagging,
        folder,
        unversioned,
        sleepers,
        slow,
        poison,
        sweeps,
        calm,
        folders,
        nights,
    )
}

_OFTEN = {14: ["lone"], 8: ["small"], 4: ["crowd", "emits", "reuploads"]}
_OFTEN |= {
    3: ["cancels", "wiped", "foreigner", "folder"],
    2: ["lagging", "unversioned", "throng", "poison", "folders"],
}
_TURNS = {name: turns for turns, names in _OFTEN.items() for name in names}
TURNS = tuple(name for name in SCENARIOS for _ in range(_TURNS.get(name, 1)))
"""Whose turn it is, by seed. Where little is dropped a call is as likely to be the one that matters
and comes sooner, so that small scenarios get more turns. The number of turns shares no factor with 2
or 3, by which scenarios vary."""
assert len(TURNS) == 61


def _schedule(seed: int, faults: Faults | None, **bucket: Any) -> Schedule:
    chance = faults or Chance(_rate(seed), STORM)
    return Schedule.build(seed, chance, labour=ROUGH, duplicates=0.1, **bucket)


def _many(schedule: Schedule, drops: int) -> None:
    """Most at the beginning, the others while those are at work."""
    chance, user = schedule.world.random, schedule.user
    for name in "abcdef"[:drops]:
        key, tasks = f"inbox/jobs/{name}.json", chance.choice((1, 1, 3))
        user.at(0.5 + 90 * chance.random() ** 3, lambda key=key, tasks=tasks: user.drop(render(tasks), key))


def _rate(seed: int) -> float:
    """Calm seas and storms: too many faults at once hide each other's traces."""
    return (0.005, 0.02, 0.06)[seed % 3]


def _maybe(seed: int, value: float) -> float:
    return value if seed % 2 else 0.0


def _desk_and_cron(schedule: Schedule) -> Schedule:
    schedule.fleet.start_desk("desk")
    schedule.fleet.start_cron("cron", delay_s=1)
    return schedule
