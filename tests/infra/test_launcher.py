"""The launcher's own decisions, on a map that answers as told: which task failed, on which GPU."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Sequence
from typing import Any

import modal
import pytest

from infra.launcher import ModalLauncher
from infra.transport import Order, execution_to_json
from processor.errors import ErrorKind, TaskFailed
from processor.execute import Execution, failed
from processor.handler import Remedy, Work
from processor.launch import Run
from processor.records import Task


def work(index: int, *, tries: int = 1, gpu: str | None = None, remedy: Remedy = Remedy.NONE) -> Work:
    return Work(
        job_id="job-0123456789abcdef",
        attempt="2-a",
        kind="render",
        task=Task(index=index, hash=f"h{index}"),
        shared={},
        gpu=gpu,
        timeout_s=60,
        tries=tries,
        remedy=remedy,
    )


def done(one: Work) -> Execution:
    execution = failed(one, TaskFailed(ErrorKind.INTERNAL, "-"))
    result = execution.result.model_copy(update={"status": "done", "error": None})
    return Execution(result)


class FakeMap:
    """`.map.aio` of one pool: answers each order when its gate opens, or fails it."""

    def __init__(self, fails: dict[int, Exception]) -> None:
        self.fails = fails
        self.orders: list[list[int]] = []
        self.ended = threading.Event()
        self.map = self

    async def aio(
        self, inputs: AsyncIterator[dict[str, Any]], *, order_outputs: bool, return_exceptions: bool
    ) -> AsyncIterator[Any]:
        assert (order_outputs, return_exceptions) == (False, True)
        async for value in inputs:
            order = Order.from_json(value)
            indices = [each.task.index for each in order.works]
            self.orders.append(indices)
            error = next((self.fails[index] for index in indices if index in self.fails), None)
            yield error or [execution_to_json(done(each)) for each in order.works]
        self.ended.set()


class FakeFleet:
    """A fleet whose every map is a new `FakeMap`."""

    def __init__(self, fails: dict[int, Exception] | None = None, chunk: int = 1) -> None:
        self.fails = fails or {}
        self.size = chunk
        self.maps: list[FakeMap] = []
        self.asked: list[str | None] = []

    def pool(self, _kind: str, gpu: str | None, _timeout_s: float) -> Any:
        self.asked.append(gpu)
        self.maps.append(FakeMap(self.fails))
        return self.maps[-1]

    def default_gpu(self, _kind: str) -> str | None:
        return "L40S"

    def window(self, _kind: str) -> int:
        return 10

    def chunk(self, _kind: str, waiting: int) -> int:
        return min(self.size, waiting)


class Stops:
    def __init__(self) -> None:
        self.requested: list[ErrorKind] = []

    def request(self, _run_id: str, reason: ErrorKind) -> None:
        self.requested.append(reason)


def nothing(_works: Sequence[Work]) -> None:
    """No models to bring."""


def take(run: Run, count: int) -> dict[int, Execution]:
    """The next executions, by task."""
    found: dict[int, Execution] = {}
    while len(found) < count:
        execution = run.next(10)
        assert execution is not None, "nothing came within 10 s"
        found[execution.result.index] = execution
    return found


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (modal.exception.RemoteError("exit code: 137"), ErrorKind.CRASHED),
        (modal.exception.FunctionTimeoutError("24 h"), ErrorKind.TIMED_OUT),
        (modal.exception.ServiceError("503"), ErrorKind.UNAVAILABLE),
    ],
)
def test_an_exception_is_laid_to_the_task_that_never_answered(error: Exception, kind: ErrorKind) -> None:
    """Modal doesn't say whose it is. All others answer; what is left is what failed."""
    fleet = FakeFleet({2: error})
    with ModalLauncher(fleet, Stops(), nothing).open("render") as run:
        for index in range(4):
            run.submit(work(index))
        results = take(run, 4)
    assert {index for index, each in results.items() if each.result.error} == {2}
    found = results[2].result.error
    assert found is not None
    assert found.kind is kind


def test_after_an_exception_others_go_on_in_another_map() -> None:
    """The one with the failure takes no more, and its failure is told once it has ended."""
    fleet = FakeFleet({0: modal.exception.RemoteError("lost")})
    with ModalLauncher(fleet, Stops(), nothing).open("render") as run:
        run.submit(work(0))
        assert take(run, 1)[0].result.status == "failed"
        run.submit(work(1))
        assert take(run, 1)[1].result.status == "done"
    assert [each.orders for each in fleet.maps] == [[[0]], [[1]]]
    assert all(each.ended.wait(10) for each in fleet.maps)


def test_small_tasks_travel_together() -> None:
    """As the fleet's chunk says, never waiting for more to come."""
    fleet = FakeFleet(chunk=3)
    with ModalLauncher(fleet, Stops(), nothing).open("render") as run:
        for index in range(7):
            run.submit(work(index))
        take(run, 7)
    orders = fleet.maps[0].orders
    assert sorted(index for order in orders for index in order) == list(range(7))
    assert max(map(len, orders)) <= 3


def test_a_bigger_gpu_serves_the_rest_of_the_job() -> None:
    """Once a task ran out of memory for good, no later one is sent to the small one."""
    fleet = FakeFleet()
    with ModalLauncher(fleet, Stops(), nothing).open("render") as run:
        run.submit(work(0))
        take(run, 1)
        run.submit(work(0, tries=3, remedy=Remedy.BIGGER_GPU))
        take(run, 1)
        run.submit(work(1))
        take(run, 1)
    assert fleet.asked == [None, "A100-80GB"]


def test_a_missing_model_fails_its_tasks_before_anything_is_sent() -> None:
    """What the preparation says is what the tasks' results say."""

    def prepare(_works: Sequence[Work]) -> None:
        raise TaskFailed(ErrorKind.MISSING_MODEL, "no such file", where="loras/x")

    fleet = FakeFleet()
    with ModalLauncher(fleet, Stops(), prepare).open("render") as run:
        run.submit(work(0))
        error = take(run, 1)[0].result.error
    assert error is not None
    assert (error.kind, error.where) == (ErrorKind.MISSING_MODEL, "loras/x")
    assert fleet.maps[0].orders == []


def test_a_cancelled_run_answers_for_what_was_never_sent() -> None:
    """Each outstanding task still reports, and what comes later is refused at once."""
    sent = threading.Event()
    proceed = threading.Event()

    def prepare(works: Sequence[Work]) -> None:
        if works[0].task.index == 0:
            sent.set()
            assert proceed.wait(10)

    stops = Stops()
    with ModalLauncher(FakeFleet(), stops, prepare).open("render") as run:
        for index in range(3):
            run.submit(work(index))
        assert sent.wait(10)
        run.cancel(ErrorKind.CANCELLED)
        run.submit(work(3))
        proceed.set()
        results = take(run, 4)
    assert {index for index, each in results.items() if each.result.status == "done"} <= {0}
    kinds = {each.result.error.kind for each in results.values() if each.result.error}
    assert kinds == {ErrorKind.CANCELLED}
    assert stops.requested == [ErrorKind.CANCELLED]
