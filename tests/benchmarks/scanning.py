"""Looking at the inbox: a million drops, and a million settled jobs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from processor.inbox import scan
from processor.store.memory import MemoryStore
from processor.store.protocol import Capabilities, ObjectInfo, Page
from processor.store.s3 import S3Store
from processor.testing.clock import ManualClock
from processor.testing.counting import CountingStore
from processor.testing.handler import ScriptedHandler
from processor.testing.machine import Bench
from processor.tick import tick
from tests.benchmarks.measure import Figure, alternate, seconds
from tests.benchmarks.servers import listing_server
from tests.support.rclone import KEY_ID, SECRET

MILLION = 1_000_000
_OVER_HTTP = 100_000
_PAGE = 1000
_EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
_AGES = [_EPOCH + timedelta(seconds=each) for each in range(100_003)]
"""Not in the order of the names, as ages seldom are."""


class FullStore(MemoryStore):
    """A store whose inbox holds so many drops, without keeping them: they are made a page at a time."""

    def __init__(self, drops: int) -> None:
        super().__init__()
        self._drops = drops

    def list(self, prefix: str, *, versions: bool = False, start_after: str = "") -> Iterator[Page]:
        for start in range(0, self._drops, _PAGE):
            yield Page(
                [
                    ObjectInfo(
                        f"inbox/jobs/{number:08}.json",
                        512,
                        f"v{number}",
                        _AGES[number * 7919 % len(_AGES)],
                    )
                    for number in range(start, min(start + _PAGE, self._drops))
                ],
                _EPOCH,
            )

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(versions=True, put_if_absent=True)


def run(work: Path) -> list[Figure]:
    """A million in this process, 100,000 over HTTP, and the idle tick."""
    return [_in_process(), _over_http(), _idle(work)]


def _in_process() -> Figure:
    store = FullStore(MILLION)
    found = alternate(
        {
            "scan": lambda: seconds(lambda: scan(store, keep=5000)),
            "raw": lambda: seconds(lambda: _raw(store)),
        },
        rounds=2,
    )
    share = found["raw"].median / found["scan"].median
    peak = _peak_mib()
    return Figure(
        "Scan of 1,000,000 drops, in-process store",
        f"{share:.2f} of the raw paginator ({MILLION / found['scan'].median:,.0f} keys/s), "
        f"{peak:.0f} MiB at most",
        "≥ 0.8, < 150 MB",
        share >= 0.8 and peak < 143,
        "the store makes each page as it is asked for; memory is the whole process's",
    )


def _raw(store: MemoryStore) -> int:
    return sum(1 for page in store.list("inbox/", versions=True) for _ in page.objects)


def _peak_mib() -> float:
    """What a process that only scans ever needs, Python and all."""
    code = (
        "import resource\nfrom tests.benchmarks.scanning import FullStore, MILLION\n"
        "from processor.inbox import scan\n"
        "assert scan(FullStore(MILLION), keep=5000).pending == MILLION\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return int(done.stdout) / 1024


def _over_http() -> Figure:
    with listing_server(_OVER_HTTP) as url:
        store = S3Store(
            "bench",
            endpoint_url=url,
            key_id=KEY_ID,
            secret=SECRET,
            capabilities=Capabilities(versions=False, put_if_absent=False),
        )
        paginator = store._client.get_paginator("list_objects_v2")

        def raw() -> None:
            pages = paginator.paginate(Bucket="bench", Prefix="inbox/", PaginationConfig={"PageSize": _PAGE})
            assert sum(len(page.get("Contents", [])) for page in pages) == _OVER_HTTP

        def ours() -> None:
            assert scan(store, keep=5000).pending == _OVER_HTTP

        found = alternate({"scan": lambda: seconds(ours), "raw": lambda: seconds(raw)}, rounds=3)
        store.close()
    share = found["raw"].median / found["scan"].median
    return Figure(
        "Scan of 100,000 drops over HTTP",
        f"{share:.2f} of boto3's paginator ({_OVER_HTTP / found['scan'].median:,.0f} keys/s)",
        "≥ 0.8",
        share >= 0.8,
        "a server that only lists; servers for this machine sort the whole bucket for each page",
    )


def _idle(work: Path) -> Figure:
    clock = ManualClock()
    store = MemoryStore(clock=clock)
    counting = CountingStore(store)
    bench = Bench(work / "idle", ScriptedHandler(), clock=clock, store=counting)
    machine = bench.machine()
    tick(machine, capacity=1)  # founds the authority
    _settle_many(store, MILLION)
    next(store.list("inbox/"))  # the in-process store sorts its new keys when it is asked next
    counting.reset()
    taken_s = seconds(lambda: tick(machine, capacity=1))
    counts = dict(counting.counts)
    machine.close()
    return Figure(
        "Idle tick with 1,000,000 settled jobs behind it",
        f"{counts.get('list', 0)} page listed, {1e3 * taken_s:.1f} ms",
        "1 page",
        counts.get("list") == 1,
        f"all its requests: {json.dumps(counts)}",
    )


def _settle_many(store: MemoryStore, jobs: int) -> None:
    for number in range(jobs):
        store.put(f"done/2026-01-01/job-{number:016x}/job.json", b"")
