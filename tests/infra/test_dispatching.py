"""A dispatcher's container without Modal: what a preemption leaves behind."""

from __future__ import annotations

import os
import signal
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from infra.dispatching import Dispatcher
from infra.handover import from_json
from infra.settings import deployable
from infra.ticking import Load, tick_once
from processor.config import load_without_file
from processor.handler import TaskContext, TaskOutput, Work
from processor.testing.handler import ScriptedHandler
from processor.testing.machine import Bench


def test_a_dispatcher_of_one_call_gives_its_lease_back_when_it_is_interrupted(tmp_path: Path) -> None:
    """Modal runs the only input of a container on the main thread, which a preemption's SIGINT hits."""

    def interrupted(_work: Work, context: TaskContext) -> TaskOutput:
        os.kill(os.getpid(), signal.SIGINT)
        context.stop.wait(30)
        context.stop.check()
        return TaskOutput([], seconds=0.0)

    bench = Bench(tmp_path, ScriptedHandler(interrupted))
    bench.drop({"kind": "render", "workflow": "w"})
    deployed = deployable(load_without_file(bucket="s3://a-bucket"))
    claims: list[dict[str, Any]] = []
    tick_once(bench.machine(), deployed, spawn=claims.extend, load=Load)
    assert threading.current_thread() is threading.main_thread()
    dispatcher = Dispatcher(bench.machine(), limit_s=60)
    with pytest.raises(KeyboardInterrupt):
        dispatcher.run(claims)
    dispatcher.close()
    again = tick_once(bench.machine(), deployed, spawn=claims.extend, load=Load)
    assert again["claimed"] == 1, "the lease did not have to run out"


def test_trainings_that_wait_for_a_gpu_leave_room_for_renders(tmp_path: Path) -> None:
    """However many were dropped, by tick after tick, a quarter of the dispatchers' places is not theirs."""
    bench = Bench(tmp_path, ScriptedHandler())
    for number in range(40):
        bench.drop({"kind": "train", "dataset": "zoe", "preset": "sd15"}, f"inbox/jobs/t{number:02}.json")
    bench.drop({"kind": "render", "workflow": "w"}, "inbox/jobs/z-render.json")
    deployed = deployable(load_without_file(bucket="s3://a-bucket"))
    claimed: list[list[str]] = []
    for running in (0, 25, 24):
        claims: list[dict[str, Any]] = []
        load = partial(Load, running, 0)
        tick_once(bench.machine(), deployed, spawn=claims.extend, load=load)
        claimed.append([from_json(claim).drop.key for claim in claims])
        bench.drop({"kind": "render", "workflow": "w"}, f"inbox/jobs/z-render-{running}.json")
    trainings = [key for key in claimed[0] if "/t" in key]
    assert (len(trainings), claimed[0][24:]) == (24, ["inbox/jobs/z-render.json"])
    assert claimed[1:] == [["inbox/jobs/z-render-0.json"], ["inbox/jobs/z-render-25.json"]]
