"""What docs/performance.md promises on any machine: request counts and memory bounds."""

from __future__ import annotations

import json
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from processor.dispatch import process
from processor.execute import upload
from processor.handler import LocalFile
from processor.inbox import scan
from processor.leases.memory import MemoryLeases
from processor.policy import Policy
from processor.run import run
from processor.store.directory import DirectoryStore
from processor.store.memory import MemoryStore
from processor.store.protocol import ObjectInfo, Page
from processor.testing.clock import ManualClock
from processor.testing.counting import CountingLeases, CountingStore
from processor.testing.handler import ScriptedHandler, write_text_file
from processor.testing.machine import Bench
from processor.tick import tick
from tests.benchmarks.__main__ import ROWS
from tests.benchmarks.page import render_page
from tests.support.b2like import B2Like
from tests.support.fixtures import make_bucket

JOB = {"workflow": "noop"}
MIB = 1 << 20


def counted(tmp_path: Path, handler: ScriptedHandler) -> tuple[Bench, CountingStore, CountingLeases]:
    """A bench whose authority is founded, counting from here on."""
    clock = ManualClock()
    store, leases = CountingStore(MemoryStore(clock=clock)), CountingLeases(MemoryLeases())
    bench = Bench(tmp_path, handler, clock=clock, store=store, leases=leases)
    machine = bench.machine()
    tick(machine, capacity=1)
    machine.close()
    store.reset()
    leases.reset()
    return bench, store, leases


def test_on_the_wire_a_job_is_eight_requests_to_a_bucket_with_versions(tmp_path: Path, b2: B2Like) -> None:
    """B2's own count, below every layer of ours: nothing hides a second request."""
    store = make_bucket(b2.url)
    assert store.capabilities.versions
    bench = Bench(tmp_path, ScriptedHandler(), store=store)
    machine = bench.machine()
    tick(machine, capacity=1)  # founds the authority
    bench.clock.advance(1)
    bench.drop(JOB)
    b2.counts.clear()
    (claim,) = tick(machine, capacity=1).claims
    manifest = process(machine, claim)
    machine.close()
    assert manifest is not None
    own = Counter(b2.counts) - Counter({"ListObjectVersions": 1, "GetObject": 1})  # the tick's
    # Where a missing key answers 403, that no manifest stands yet is asked by a listing.
    assert own == {
        "GetObject": 2,
        "ListObjectVersions": 1,
        "PutObject": 4,
        "CopyObject": 1,
        "DeleteObject": 1,
    }
    store.close()


def test_many_jobs_share_one_look_at_the_inbox(tmp_path: Path) -> None:
    """Jobs are claimed from the last listing: 40 of them cost 8 requests each and few besides."""
    bench, store, leases = counted(tmp_path, ScriptedHandler())
    for number in range(40):
        bench.drop(JOB, f"inbox/jobs/{number:02}.json")
    store.reset()
    machine = bench.machine()
    assert run(machine, once=True).settled == 40
    machine.close()
    looks = store.counts["list"]
    assert looks <= 4, store.counts
    assert store.total - 2 * looks <= 8 * 40, store.counts
    assert leases.total - looks <= 4 * 40, leases.counts


@pytest.mark.parametrize("settled", [10, 5000])
def test_an_idle_tick_costs_the_same_however_much_has_been_settled(tmp_path: Path, settled: int) -> None:
    """One page of the inbox and one look at the authority, independent of the history."""
    bench, store, _ = counted(tmp_path, ScriptedHandler())
    for number in range(settled):
        bench.main.put(f"done/2026-01-01/job-{number:016x}/job.json", b"{}")
        bench.main.put(f"comfy_outputs/job-{number:016x}/manifest.json", b"{}")
    store.reset()
    machine = bench.machine()
    tick(machine, capacity=4)
    machine.close()
    assert store.reset() == {"list": 1, "get": 1}


def test_a_task_costs_one_request_and_one_a_file(tmp_path: Path) -> None:
    """Fan-out adds nothing: thirty tasks more are thirty results and thirty files more."""

    def requests(tasks: int) -> tuple[int, int]:
        handler = ScriptedHandler(write_text_file)
        bench, store, leases = counted(tmp_path / str(tasks), handler)
        bench.drop({**JOB, "overrides": {"tasks": tasks}})
        machine = bench.machine()
        (claim,) = tick(machine, capacity=1).claims
        process(machine, claim)
        machine.close()
        return store.total, leases.total

    (few, few_leases), (many, many_leases) = requests(20), requests(50)
    assert many - few == 2 * 30
    assert many_leases == few_leases


class Endless(MemoryStore):
    """So many drops, made a page at a time."""

    def __init__(self, drops: int) -> None:
        super().__init__()
        self._drops = drops

    def list(self, prefix: str, *, versions: bool = False, start_after: str = "") -> Iterator[Page]:
        begun = datetime(2026, 1, 1, tzinfo=UTC)
        for start in range(0, self._drops, 1000):
            # Ever older: the worst order for whoever keeps the oldest.
            yield Page(
                [
                    ObjectInfo(f"inbox/jobs/{k:07}.json", 512, f"v{k}", begun - timedelta(seconds=k))
                    for k in range(start, start + 1000)
                ],
                begun,
            )


def test_a_scan_keeps_the_oldest_in_bounded_memory() -> None:
    """Ten times as many drops need no more memory; what is kept is right."""
    keep = Policy().scan_keep

    def peak(drops: int) -> int:
        tracemalloc.start()
        try:
            found = scan(Endless(drops), keep=keep)
            assert found.pending == drops
            assert [drop.key for drop in found.due[:2]] == [
                f"inbox/jobs/{drops - 1:07}.json",
                f"inbox/jobs/{drops - 2:07}.json",
            ]
            assert len(found.due) == min(keep, drops)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    few, many = peak(2 * keep), peak(20 * keep)
    assert many < 1.2 * few
    assert many < 16 * MIB


def test_a_large_output_is_never_whole_in_memory(tmp_path: Path) -> None:
    """A video is hashed and uploaded as a stream."""
    video = tmp_path / "video.mp4"
    with video.open("wb") as file:
        file.truncate(96 * MIB)
    (tmp_path / "bucket").mkdir()
    store = DirectoryStore(tmp_path / "bucket")
    tracemalloc.start()
    try:
        stored = upload(store, "out/", LocalFile(video, "video.mp4", "video/mp4"))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert stored.size_bytes == 96 * MIB
    assert peak < 8 * MIB


def test_the_figures_on_the_page_are_the_recorded_ones() -> None:
    """docs/performance.md is written by the command, never by hand."""
    docs = Path(__file__).parents[2] / "docs"
    record = json.loads((docs / "performance.json").read_text())
    assert (docs / "performance.md").read_text() == render_page(record, ROWS)
