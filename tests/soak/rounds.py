"""The soak: rounds of drops, faults and kills, then rest, then a look at everything.

A round drops some jobs, waits for a random request and kills whoever sent it (or the other
runner, or both, or an engine) before or after its effect. Every few rounds the trouble
stops: the inbox must empty, and every drop, manifest and file must agree.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.soak.check import Findings, check, rest
from tests.soak.drops import Dropped, drop_some
from tests.soak.fleet import Fleet, fleet_of
from tests.soak.world import Kind, World, make_world
from tests.support.b2like import Request

_KILL_WITHIN: Final = 60
"""Requests until the kill, at most: a claim and a small job take about thirty."""
_ROUND_S: Final = 8.0
"""If there are fewer requests than that, the kill comes anyway."""
_REST_S: Final = 180.0
_ENGINE_ENDS_S: Final = 15.0
_NOBODY: Final = Request("GET", "/", {}, b"", "", "", "")


@dataclass
class Figures:
    """What a soak came to."""

    kind: Kind
    seed: int
    rounds: int = 0
    seconds: float = 0.0
    requests: int = 0
    drops: int = 0
    killed: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    findings: Findings = field(default_factory=Findings)
    violations: list[str] = field(default_factory=list)
    """All of them, those of every look."""

    def as_json(self) -> dict[str, Any]:
        """For people and for the docs."""
        found = self.findings
        return {
            "store": self.kind,
            "seed": self.seed,
            "rounds": self.rounds,
            "seconds": round(self.seconds),
            "requests": self.requests,
            "faults": dict(sorted(self.faults.items())),
            "killed": dict(sorted(self.killed.items())),
            "drops": self.drops,
            "outcomes": dict(sorted(found.outcomes.items())),
            "leases": found.epochs,
            "jobs_taken_over": found.taken_over,
            "files_compared": found.files,
            "bytes_compared": found.bytes,
            "objects_of_losing_attempts": found.garbage,
            "explained": found.explained,
            "violations": self.violations,
        }


def soak(
    kind: Kind, *, rounds: int, seed: int, batch: int = 10, tell: Callable[[str], None] = lambda _: None
) -> Figures:
    """Run so many rounds in one kind of world.

    Args:
        batch: rounds between two looks; a violation ends the soak at the next one.
    """
    draw = random.Random(seed)  # noqa: S311 - a draw to be repeated
    figures = Figures(kind, seed)
    began = time.monotonic()
    with make_world(kind, seed) as world, fleet_of(world) as fleet:
        dropped: list[Dropped] = []
        for number in range(1, rounds + 1):
            dropped += _round(world, fleet, draw, number)
            figures.rounds = number
            if number % batch == 0 or number == rounds:
                _look(world, fleet, dropped, figures)
                tell(f"{kind}: {number} rounds, {len(dropped)} drops, {len(figures.violations)} violations")
                if figures.violations:
                    break
        fleet.ensure()
        fleet.stop()
        figures.violations += _left_behind(world, fleet)
        figures.drops = len(dropped)
        figures.killed, figures.faults = world.trouble.killed, world.trouble.faults
        figures.requests = world.trouble.requests
    figures.seconds = time.monotonic() - began
    return figures


def _round(world: World, fleet: Fleet, draw: random.Random, number: int) -> list[Dropped]:
    dropped = drop_some(world.store, draw, number)
    world.trouble.arm(fleet.killer(draw), draw.randint(1, _KILL_WITHIN))
    fleet.ensure()
    if not world.trouble.struck.wait(_ROUND_S):
        world.trouble.strike_now(_NOBODY)
    return dropped


def _look(world: World, fleet: Fleet, dropped: list[Dropped], figures: Figures) -> None:
    """Calm, rest, compare."""
    world.trouble.calm()
    deadline = time.monotonic() + _REST_S
    fleet.ensure()
    while (left := rest(world.store)) and time.monotonic() < deadline:
        fleet.ensure()
        time.sleep(0.25)  # the end of other processes' work shows only in the bucket
    figures.violations += [f"{key}: in limbo after {_REST_S:g} s of calm" for key in left]
    figures.findings = check(world.store, dropped, world.secret)
    figures.violations += figures.findings.violations
    for log in fleet.logs:
        figures.violations += _complaints(log, world.secret)


def _complaints(log: Path, secret: str) -> list[str]:
    """Our own defects and secrets in what a runner wrote."""
    text = log.read_text("utf-8", "replace")
    words = ("job.defect", "task.defect", "Traceback (most recent", secret)
    return [f"{log.name}: {line[:2000]}" for line in text.splitlines() if any(word in line for word in words)]


def _left_behind(world: World, fleet: Fleet) -> list[str]:
    """What a clean end must not leave: engines, scratch folders, engines' folders."""
    left = [f"engine {pid} outlived its runner" for pid in fleet.left_engines(_ENGINE_ENDS_S)]
    for name in world.key_ids:
        work_dir = world.work_dir(name)
        left += [
            f"left behind: {path}"
            for path in (*work_dir.glob("tasks/scratch-*"), *work_dir.glob("render/engine-*"))
        ]
    return sorted(set(left))
