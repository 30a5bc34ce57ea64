"""From a file that appears in a folder-bucket to its task that starts."""

from __future__ import annotations

import json
import random
import threading
import time
from pathlib import Path

from processor.run import Wake
from processor.run import run as run_machine
from processor.watch import waking
from tests.benchmarks import noop
from tests.benchmarks.machines import machine
from tests.benchmarks.measure import Figure, Spread

_DROPS = 200
_DEADLINE_S = 10.0


def run(work: Path) -> list[Figure]:
    """Two hundred drops, each when the one before has started, at odd moments."""
    bucket = work / "bucket"
    bucket.mkdir()
    heard = threading.Event()
    at = [0.0]

    def started(_job_id: str, when: float) -> None:
        at[0] = when
        heard.set()

    with machine(str(bucket), work / "work") as runner:
        wake = Wake()
        noop.started.append(started)
        loop = threading.Thread(target=lambda: run_machine(runner, wake=wake))
        with waking(runner.stores.main, wake):
            loop.start()
            try:
                taken = [_drop(bucket, number, heard, at) for number in range(_DROPS)]
            finally:
                noop.started.remove(started)
                runner.stop.set(noop.ENDED)
                wake.set()
                loop.join()
    spread = Spread(taken[5:])
    p50, p99 = 1e3 * spread.median, 1e3 * spread.quantile(0.99)
    return [
        Figure(
            "Drop → start on a folder-bucket",
            f"p50 {p50:.0f} ms, p99 {p99:.0f} ms",
            "p50 < 50 ms, p99 < 250 ms",
            p50 < 50 and p99 < 250,
            f"{_DROPS} drops by renaming a file into `inbox/`; watchfiles wakes the tick",
        )
    ]


def _drop(bucket: Path, number: int, heard: threading.Event, at: list[float]) -> float:
    draft = bucket / f".draft-{number}"
    draft.write_text(json.dumps({"workflow": "noop"}))
    time.sleep(0.05 + 0.1 * random.random())  # noqa: S311 - any moment will do
    heard.clear()
    dropped = time.perf_counter()
    draft.rename(bucket / "inbox" / f"drop-{number}.json")
    if not heard.wait(_DEADLINE_S):
        raise TimeoutError(f"drop {number} has not started within {_DEADLINE_S:g} s")
    return at[0] - dropped
