"""Every call of an undisturbed run, crashed at in all three ways; for the smallest, every pair."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.simulation.faults import CRASHES, Kind, Planned
from tests.simulation.invariants import run
from tests.simulation.launcher import Labour
from tests.simulation.scenarios import FIRST, NIGHTLY, THEN, in_the_night, owe, render
from tests.simulation.schedule import Schedule

Plan = dict[int, Kind]
Build = Callable[[Planned], Schedule]


@dataclass
class Enumeration:
    """What an enumeration came to."""

    scenario: str
    calls: int = 0
    """Calls of the undisturbed run."""
    points: int = 0
    """Runs with crashes in them."""
    violations: list[str] = field(default_factory=list)


def one_task(faults: Planned) -> Schedule:
    """The smallest: one drop of one task, a desk."""
    return _on_a_desk(faults, render(1))


def three_tasks(faults: Planned) -> Schedule:
    """A render of three tasks that emits another job, on a desk."""
    return _on_a_desk(faults, render(3, on_success=THEN))


def handed_over(faults: Planned) -> Schedule:
    """The same on Modal: a cron ticks, dispatchers take over, workers are processes of their own."""
    schedule = Schedule.build(1, faults, labour=Labour())
    schedule.user.at(0.0, lambda: schedule.user.drop(render(3, on_success=THEN)))
    schedule.fleet.start_cron("cron", delay_s=10)
    return schedule


def dataset_to_lora(faults: Planned) -> Schedule:
    """A folder is checked, archived and trained on, its LoRA published and its test render done."""
    schedule = Schedule.build(1, faults, labour=Labour())
    schedule.user.at(0.0, lambda: schedule.user.upload("zoe", FIRST, says="ready"))
    schedule.fleet.start_desk("desk", delay_s=10)
    return schedule


def night(faults: Planned) -> Schedule:
    """A drop waits for the night, a template emits in it, and the morning is told."""
    schedule = Schedule.build(1, faults, labour=Labour(), policy=NIGHTLY)
    in_the_night(schedule)
    schedule.user.at(0.0, lambda: owe(schedule, "inbox/recurring/r.json"))
    schedule.user.at(0.0, lambda: schedule.user.drop(render(1), "inbox/nightly/a.json"))
    schedule.user.at(2500.0, lambda: None)
    # Begun shortly before it: ticks that find nothing are all alike.
    schedule.fleet.start_desk("desk", delay_s=290)
    return schedule


def _on_a_desk(faults: Planned, job: dict[str, object]) -> Schedule:
    schedule = Schedule.build(1, faults, labour=Labour())
    schedule.user.at(0.0, lambda: schedule.user.drop(job))
    schedule.fleet.start_desk("desk", delay_s=10)
    return schedule


SINGLES: tuple[Build, ...] = (one_task, three_tasks, handed_over, dataset_to_lora, night)
"""Each call of these, in all three ways."""
PAIRS: Build = one_task
"""Every two calls of this one."""


def single(at: int) -> Enumeration:
    """Crash once, at every call of the at-th scenario, in all three ways."""
    scenario = SINGLES[at]
    found = Enumeration(scenario.__name__, calls=_calls(scenario))
    for call, kind in itertools.product(range(found.calls), CRASHES):
        _try(scenario, {call: kind}, found)
    return found


def pairs(start: int = 0, every: int = 1) -> Enumeration:
    """Crash twice, the second time also while the first is being recovered from.

    Args:
        start: leave out so many.
        every: then take one in so many; 1 for all.
    """
    found = Enumeration(f"{PAIRS.__name__}, pairs", calls=_calls(PAIRS))
    both = itertools.combinations(range(2 * found.calls), 2)
    plans = ({first: a, second: b} for first, second in both for a in CRASHES for b in CRASHES)
    for plan in itertools.islice(plans, start, None, every):
        _try(PAIRS, plan, found)
    return found


def _calls(scenario: Build) -> int:
    undisturbed = Planned({}, exempt=_BYSTANDERS)
    violations = run(scenario(undisturbed), sweeping=False)
    assert not violations, violations
    return len(undisturbed.seen)


def _try(scenario: Build, plan: Plan, found: Enumeration) -> None:
    found.points += 1
    for violation in run(scenario(Planned(plan, exempt=_BYSTANDERS)), sweeping=False):
        found.violations.append(f"{found.scenario} {plan}: {violation}")


_BYSTANDERS = ("user", "sweeper")
"""Processes that no planned crash strikes. The healer may be struck: it is a runner like any other."""
