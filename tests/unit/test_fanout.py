"""A failure while a runner is stopped, or a job is cancelled, is not the task's."""

from __future__ import annotations

from pathlib import Path

import pytest

from processor.errors import ErrorKind, TaskFailed
from processor.handler import TaskContext, TaskOutput, Work
from processor.run import run
from processor.testing.handler import ScriptedHandler, write_text_file
from processor.testing.machine import Bench


@pytest.mark.parametrize("max_task_tries", [3, 1])
def test_an_engine_that_dies_with_its_stopped_runner_fails_no_task(
    tmp_path: Path, max_task_tries: int
) -> None:
    """`systemctl stop` tells a service's processes all at once; the job used to end `failed`."""

    def script(work: Work, context: TaskContext) -> TaskOutput:
        if machine.stop.is_set():
            return write_text_file(work, context)
        machine.stop.set(ErrorKind.PREEMPTED)
        raise TaskFailed(ErrorKind.CRASHED, "the engine died while the prompt ran")

    bench = Bench(tmp_path, ScriptedHandler(script))
    bench.with_policy(max_task_tries=max_task_tries)
    bench.drop({"workflow": "noop"})
    machine = bench.machine()
    assert run(machine, once=True).given_back == 1
    machine.close()
    assert bench.keys("inbox/") == ["inbox/jobs/a.json"]
    another = bench.machine()
    run(another, once=True)
    another.close()
    assert [manifest["outcome"] for manifest in bench.manifests()] == ["done"]


def test_an_engine_that_dies_of_being_cancelled_leaves_the_job_cancelled(tmp_path: Path) -> None:
    """Its request goes with it, too."""

    def script(work: Work, context: TaskContext) -> TaskOutput:
        bench.main.put(f"inbox/control/cancel/{work.job_id}", b"")
        assert context.stop.wait(20)
        raise TaskFailed(ErrorKind.CRASHED, "the engine died")

    bench = Bench(tmp_path, ScriptedHandler(script))
    bench.with_policy(cancel_poll_s=0.0)
    bench.drop({"workflow": "noop"})
    machine = bench.machine()
    run(machine, once=True)
    machine.close()
    assert [manifest["outcome"] for manifest in bench.manifests()] == ["cancelled"]
    assert bench.keys("inbox/") == []
