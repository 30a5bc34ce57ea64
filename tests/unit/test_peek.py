"""A job file on a folder that does not parse: still being written, or broken?"""

from __future__ import annotations

import os
import time
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from processor.inbox import Drop
from processor.peek import peek
from processor.policy import Policy
from processor.run import run
from processor.store import Capabilities, Store
from processor.store.directory import DirectoryStore
from processor.store.memory import MemoryStore
from processor.testing import CountingStore, ManualClock
from processor.testing.handler import ScriptedHandler
from processor.testing.machine import Bench

KEY = "inbox/jobs/a.json"
HALF = b'{"kind": "rend'


class Folder(CountingStore):
    """A store in which other programs write in place."""

    @property
    def capabilities(self) -> Capabilities:
        return replace(self.inner.capabilities, atomic_put=False)


def looked_at(store: Store, now: datetime) -> str:
    drop = Drop(KEY, "", len(HALF), store.stat(KEY).modified)
    return peek(store, drop, policy=Policy(), place="local", now=now).state


@pytest.mark.parametrize("hours", [-5, 0, 5])
def test_whether_a_file_is_young_its_own_disk_tells(hours: int) -> None:
    """The clock of a NAS may be hours from ours, either way; it dates what is written there."""
    nas = ManualClock()
    store = Folder(MemoryStore(clock=nas, versions=False))
    store.put(KEY, HALF)
    assert looked_at(store, nas.now() - timedelta(hours=hours)) == "young"
    nas.advance(11)
    assert looked_at(store, nas.now() - timedelta(hours=hours)) == "ready"


def test_what_parses_needs_no_clock() -> None:
    """And costs one request, on a folder as elsewhere."""
    store = Folder(MemoryStore(versions=False))
    store.put(KEY, b'{"workflow": {"1": {"class_type": "X", "inputs": {}}}}')
    drop = Drop(KEY, "", 1, store.stat(KEY).modified)
    store.reset()
    assert peek(store, drop, policy=Policy(), place="local", now=drop.modified).state == "ready"
    assert store.reset() == {"get": 1}


@pytest.mark.parametrize("hours", [-3, 3])
def test_a_broken_file_of_another_time_is_not_waited_for(tmp_path: Path, hours: int) -> None:
    """From a camera's card, or unpacked: nobody writes what is dated hours from now."""
    store = DirectoryStore(tmp_path / "bucket", create=True)
    bench = Bench(tmp_path, ScriptedHandler(), store=store)
    bench.drop(HALF)
    then = time.time() + hours * 3600
    os.utime(tmp_path / "bucket" / KEY, (then, then))
    report = run(bench.machine(), once=True)
    assert {outcome.value: count for outcome, count in report.outcomes.items()} == {"invalid": 1}
    assert bench.keys("inbox/") == []
