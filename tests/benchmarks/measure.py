"""Alternating measurements, and what a row of the table holds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Figure:
    """One line of the table.

    Args:
        what: what was done.
        result: what came out, with units.
        target: what issue 7 asks for.
        met: whether it does; None where there is no target, or it could not be measured.
        note: how it was measured, and what else is worth knowing.
    """

    what: str
    result: str
    target: str = ""
    met: bool | None = None
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def skipped(what: str, target: str, why: str) -> Figure:
    """A figure that could not be measured here."""
    return Figure(what, "not measured", target, None, why)


@dataclass(frozen=True)
class Spread:
    """Repeated measurements of one thing, in seconds unless it says otherwise."""

    values: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def low(self) -> float:
        return min(self.values)

    @property
    def high(self) -> float:
        return max(self.values)

    def quantile(self, share: float) -> float:
        ordered = sorted(self.values)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def alternate(ways: Mapping[str, Callable[[], float]], *, rounds: int) -> dict[str, Spread]:
    """Measure each way in turn, A B A B …, so that a busy neighbour disturbs all alike.

    Args:
        ways: each returns its own measure; the smaller, the better.
    """
    found: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        order = list(ways) if number % 2 == 0 else list(ways)[::-1]
        for name in order:
            found[name].append(ways[name]())
    return {name: Spread(values) for name, values in found.items()}


def ratio(of: Spread, to: Spread) -> float:
    """The ratio of the medians."""
    return of.median / to.median


def seconds(work: Callable[[], object]) -> float:
    """How long a call takes on the wall."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def cpu_seconds(work: Callable[[], object]) -> float:
    """What a call costs this process, all its threads together."""
    began = time.process_time()
    work()
    return time.process_time() - began
