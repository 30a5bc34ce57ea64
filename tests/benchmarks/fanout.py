"""Fan-out: what the machine adds to each of 10,000 tasks that do nothing."""

from __future__ import annotations

import json
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import structlog

from processor.dispatch import process
from processor.records import TaskResult, dump
from processor.store import Store
from processor.store.directory import DirectoryStore
from processor.store.memory import MemoryStore
from processor.testing.clock import ManualClock
from processor.testing.handler import ScriptedHandler
from processor.testing.machine import Bench
from processor.tick import tick
from tests.benchmarks.measure import Figure, Spread, alternate, ratio, seconds, skipped
from tests.benchmarks.peers import peer_python

TASKS = 10_000
_THREADS = 3
_PEERS = Path(__file__).parent / "peer_scripts"


def run(work: Path) -> list[Figure]:
    """Against a pool that writes the same, and against task queues in their local mode."""
    figures = [_against_pool(work, "folder"), _against_pool(work, "memory")]
    ours = _ours(work / "peers", MemoryStore())
    return figures + [_against_peer(name, ours, work) for name in ("prefect", "dask", "huey")]


def _against_pool(work: Path, kind: str) -> Figure:
    def store(side: str) -> Store:
        return DirectoryStore(work / kind / side, create=True) if kind == "folder" else MemoryStore()

    rounds = iter(range(1000))
    found = alternate(
        {
            "ours": lambda: _ours(work / kind / f"tasks-{next(rounds)}", store(f"ours-{next(rounds)}")),
            "pool": lambda: _plain_pool(store(f"pool-{next(rounds)}")),
            "bare": lambda: seconds(_bare_pool),
        },
        rounds=5,
    )
    share = ratio(found["ours"], found["pool"])
    return Figure(
        f"10,000 no-op tasks of one job, results in a {kind}-bucket",
        f"{share:.2f} × a pool with the same writes ({_micros(found['ours'])} against "
        f"{_micros(found['pool'])} µs a task)",
        "≤ 1.5 ×" if kind == "folder" else "",
        share <= 1.5 if kind == "folder" else None,
        f"`ThreadPoolExecutor.map` of the bare no-op: {_micros(found['bare'])} µs a task",
    )


def _micros(spread: Spread) -> str:
    return f"{1e6 * spread.median / TASKS:.0f}"


def _ours(work: Path, store: Store) -> float:
    """From the claim to the settled drop, one result a task written."""
    work.mkdir(parents=True)
    bench = Bench(work, ScriptedHandler(concurrency=_THREADS), clock=ManualClock(), store=store)
    bench.drop({"workflow": "noop", "overrides": {"tasks": TASKS}})
    machine = bench.machine()
    (claim,) = tick(machine, capacity=1).claims

    def work_it() -> None:
        manifest = process(machine, claim)
        assert manifest is not None
        assert len(manifest.tasks) == TASKS

    try:
        return seconds(work_it)
    finally:
        machine.close()


def _plain_pool(store: Store) -> float:
    """A pool that writes each task's result and, at the end, one line and one summary."""

    def task(number: int) -> str:
        result = TaskResult(
            index=number,
            hash=f"{number:064x}",
            status="done",
            params={"k": number},
            attempt="1-0",
            execution=f"{number:08x}",
            started_at=datetime.now(UTC),
            seconds=0.0,
        )
        key = f"comfy_outputs/job/1-0/{number:05}-{number:08x}/result.json"
        return store.put(key, dump(result), media_type="application/json").key

    def all_of_it() -> None:
        with ThreadPoolExecutor(_THREADS) as pool:
            keys = list(pool.map(task, range(TASKS)))
        store.put("comfy_outputs/job/manifest.json", json.dumps(keys).encode())
        structlog.get_logger().info("job", tasks=len(keys))

    return seconds(all_of_it)


def _bare_pool() -> None:
    with ThreadPoolExecutor(_THREADS) as pool:
        assert sum(1 for _ in pool.map(_noop, range(TASKS))) == TASKS


def _noop(number: int) -> int:
    return number


def _against_peer(name: str, ours_s: float, work: Path) -> Figure:
    what = f"10,000 no-op tasks against {name.capitalize()}"
    python = peer_python(name)
    if python is None:
        return skipped(what, "ahead", f"{name} could not be installed here")
    try:
        theirs_s, tasks = _run_peer(python, _PEERS / f"{name}_noop.py", work)
    except (subprocess.SubprocessError, ValueError) as error:
        return skipped(what, "ahead", f"{name} did not finish ({type(error).__name__})")
    theirs = theirs_s / tasks
    factor = theirs / (ours_s / TASKS)
    return Figure(
        what,
        f"{factor:.1f} × as fast ({1e6 * ours_s / TASKS:.0f} against {1e6 * theirs:.0f} µs a task)",
        "ahead",
        factor > 1,
        f"in its usual local mode, {tasks:,} tasks; ours with a result written for each",
    )


def _run_peer(python: Path, script: Path, work: Path) -> tuple[float, int]:
    environment = {"PATH": os.environ["PATH"], "HOME": str(work), "PREFECT_HOME": str(work / "prefect")}
    done = subprocess.run(
        [str(python), str(script)],
        check=True,
        capture_output=True,
        text=True,
        timeout=400,
        cwd=work,
        env=environment,
    )
    taken = json.loads(done.stdout.splitlines()[-1])
    return float(taken["seconds"]), int(taken["tasks"])
