"""What is dropped on what kind of bucket, and who works it. Each is a function of a seed.

A scenario takes its faults from the caller where crash points are planned, and else draws
them. To add one: write the function, add it to `SCENARIOS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tests.simulation.faults import FOUNDING, Chance, Faults, Kind
from tests.simulation.fleet import POLICY
from tests.simulation.launcher import Labour
from tests.simulation.schedule import STORM, Schedule
from tests.simulation.world import Process

Scenario = Callable[[int, Faults | None], Schedule]

ROUGH = Labour(transient=0.05, permanent=0.05, preempted=0.05, long=0.02)
THEN = [{"kind": "render", "workflow": "noop", "name": "grid"}]


def render(tasks: int = 1, **more: Any) -> dict[str, Any]:
    return {"workflow": "noop", "overrides": {"tasks": tasks}, **more}


def small(seed: int, faults: Faults | None = None) -> Schedule:
    """One job of up to three tasks, worked by a desk and a cron at once."""
    schedule = _schedule(seed, faults)
    tasks = schedule.world.random.choice((1, 2, 3))
    schedule.user.at(0.5, lambda: schedule.user.drop(render(tasks)))
    return _desk_and_cron(schedule)


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

    A manifest on its way then arrives within a lease's time, or never: see docs/reliability.md.
    """
    storm = Chance(
        _rate(seed),
        STORM,
        aimed={("create", "commit/"): (Kind.SLOW_REPLY, 0.2)},
        timely=(*FOUNDING, "comfy_outputs/"),
    )
    schedule = _schedule(seed, faults or storm)
    world, user = schedule.world, schedule.user
    user.at(0.5, lambda: user.drop(render(2, on_success=THEN)))
    fate = Process(world, "user fate")
    for _ in range(world.random.choice((1, 1, 2))):
        world.spawn(fate, "wipe", schedule.wipe, delay_s=world.random.uniform(0, 150))
    schedule.after_an_election(schedule.wipe, chance=0.3)
    return _desk_and_cron(schedule)


def foreigner(seed: int, faults: Faults | None = None) -> Schedule:
    """A second desk on the same bucket, wrongly configured with a lease store of its own."""
    schedule = _schedule(seed, faults)
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


SCENARIOS: dict[str, Scenario] = {
    scenario.__name__: scenario
    for scenario in (
        small,
        emits,
        reuploads,
        cancels,
        wiped,
        foreigner,
        lagging,
        folder,
        unversioned,
        sleepers,
        poison,
        sweeps,
        calm,
    )
}


def _schedule(seed: int, faults: Faults | None, **bucket: Any) -> Schedule:
    chance = faults or Chance(_rate(seed), STORM)
    return Schedule.build(seed, chance, labour=ROUGH, duplicates=0.1, **bucket)


def _rate(seed: int) -> float:
    """Calm seas and storms: too many faults at once hide each other's traces."""
    return (0.005, 0.02, 0.06)[seed % 3]


def _maybe(seed: int, value: float) -> float:
    return value if seed % 2 else 0.0


def _desk_and_cron(schedule: Schedule) -> Schedule:
    schedule.fleet.start_desk("desk")
    schedule.fleet.start_cron("cron", delay_s=1)
    return schedule
