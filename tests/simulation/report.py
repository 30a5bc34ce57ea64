"""The whole run: many schedules on every core, crash points, mutants; and its figures."""

from __future__ import annotations

import gc
import itertools
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field

import structlog

from tests.simulation import crashpoints
from tests.simulation.crashpoints import Enumeration
from tests.simulation.invariants import run
from tests.simulation.mutants import MUTANTS, Verdict, hunt
from tests.simulation.scenarios import SCENARIOS, TURNS

_CHUNK = 100
_MUTANT_LIMIT = 6000
_PARTS = 8
"""Into which the pairs are split, for several cores."""


@dataclass
class Figures:
    """What a run came to."""

    first_seed: int
    schedules: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    calls: int = 0
    seconds: float = 0.0
    """Of processor time, over all cores."""
    violations: list[str] = field(default_factory=list)
    crashes: list[Enumeration] = field(default_factory=list)
    mutants: list[Verdict] = field(default_factory=list)

    def add(self, other: Figures) -> None:
        self.schedules += other.schedules
        self.faults += other.faults
        self.calls += other.calls
        self.seconds += other.seconds
        self.violations += other.violations

    @property
    def per_second(self) -> float:
        """Schedules a second on one core."""
        return self.schedules.total() / self.seconds if self.seconds else 0.0

    @property
    def all_well(self) -> bool:
        crashed = any(each.violations for each in self.crashes)
        return not self.violations and not crashed and all(each.caught for each in self.mutants)


def silence() -> None:
    """Log nothing in this process any more, at the cost of nothing: a schedule would write a page.

    Loggers keep that for good, whatever is set up later: not for a process that others' tests share.
    """
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger("critical"), cache_logger_on_first_use=True
    )


def play(names: Sequence[str], seeds: range) -> Figures:
    """Play each seed in one of the scenarios, in turn."""
    figures, began = Figures(seeds.start), time.process_time()
    gc.disable()  # cycles are collected between chunks: a schedule makes few, a collection visits all
    try:
        for seed in seeds:
            name = names[seed % len(names)]
            schedule = SCENARIOS[name](seed, None)
            figures.violations += [f"{name} SEED={seed}: {each}" for each in run(schedule)]
            figures.schedules[name] += 1
            figures.calls += schedule.world.calls
            figures.faults.update(schedule.world.counts)
    finally:
        gc.enable()
        gc.collect()
    figures.seconds = time.process_time() - began
    return figures


def everything(n: int, first_seed: int, *, pairs_every: int, schedules_only: bool) -> Iterator[Figures]:
    """Play n schedules on all cores, then crash points and mutants; yields as it goes on.

    Args:
        pairs_every: of the pairs of crash points, one in so many.
        schedules_only: neither crash points nor mutants.
    """
    total = Figures(first_seed)
    chunks = [range(at, min(at + _CHUNK, first_seed + n)) for at in range(first_seed, first_seed + n, _CHUNK)]
    with ProcessPoolExecutor(os.cpu_count(), initializer=silence) as pool:
        if schedules_only:
            for figures in pool.map(play, itertools.repeat(TURNS), chunks):
                total.add(figures)
                yield total
            return
        crashes = [pool.submit(crashpoints.single, at) for at in range(len(crashpoints.SINGLES))]
        crashes += [pool.submit(crashpoints.pairs, part, pairs_every * _PARTS) for part in range(_PARTS)]
        hunts = [pool.submit(_hunt, at) for at in range(len(MUTANTS))]
        for figures in pool.map(play, itertools.repeat(TURNS), chunks):
            total.add(figures)
            yield total
        singles, parts = crashes[:-_PARTS], crashes[-_PARTS:]
        total.crashes = [each.result() for each in singles] + [_joined([each.result() for each in parts])]
        total.mutants = [each.result() for each in hunts]
    yield total


def _joined(parts: list[Enumeration]) -> Enumeration:
    first, *others = parts
    for other in others:
        first.points += other.points
        first.violations += other.violations
    return first


def _hunt(at: int) -> Verdict:
    return hunt(MUTANTS[at], limit=_MUTANT_LIMIT)


def first_lines(violations: list[str], count: int) -> list[str]:
    """A few violations, one line each."""
    return [violation.splitlines()[0] for violation in itertools.islice(violations, count)]
