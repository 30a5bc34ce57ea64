"""The promise of the protocol, in what time the suite has.

`make simulate` plays many more schedules, crashes at every call, and disables every guard; CI runs it, too.
"""

from __future__ import annotations

import pytest
import structlog

from tests.simulation import crashpoints
from tests.simulation.invariants import run
from tests.simulation.report import play
from tests.simulation.scenarios import SCENARIOS

_SEEDS = 8
"""Of each scenario."""


@pytest.fixture(autouse=True)
def _quiet() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("critical"))


@pytest.mark.parametrize("name", SCENARIOS)
def test_no_schedule_violates_anything(name: str) -> None:
    """Every invariant holds in every scenario, whatever goes wrong."""
    assert play([name], range(1_000_000, 1_000_000 + _SEEDS)).violations == []


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_seed_is_a_schedule(name: str) -> None:
    """The same seed twice makes the same calls at the same times; another seed others."""
    traces = []
    for seed in (7, 7, 8):
        schedule = SCENARIOS[name](seed, None)
        run(schedule)
        traces.append(schedule.world.trace_hash)
    assert traces[0] == traces[1] != traces[2]


def test_a_crash_at_any_call_is_repaired() -> None:
    """The smallest job, crashed at every single call, in all three ways."""
    found = crashpoints.single(0)
    assert found.points == 3 * found.calls > 50
    assert found.violations == []
