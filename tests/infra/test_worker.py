"""What a container of workers charges and how it looks after itself, without Modal."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from handlers.model_cache import ModelCache
from infra.desk import Desk
from infra.gpus import usd_per_s
from infra.stops import StopNotes, StopWatch
from infra.studio import Studio
from infra.transport import Order
from infra.worker import Worker
from processor.errors import ConfigError, ErrorKind, JobInvalid, TaskFailed
from processor.handler import LocalFile, Stores, TaskContext, TaskOutput, Work
from processor.leases.memory import MemoryLeases
from processor.models import RenderJob
from processor.records import Plan, Task
from processor.store.memory import MemoryStore
from processor.testing.handler import ScriptedHandler
from processor.testing.machine import Bench

JOB_ID = "job-0123456789abcdef"


@pytest.fixture(autouse=True)
def _mounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.paths._ROOT", tmp_path)


def worker(handler: ScriptedHandler, drain: Callable[[], None] = lambda: None) -> Worker:
    stops = StopWatch(StopNotes({}), MemoryLeases())  # type: ignore[arg-type]  # as far as it is used
    return Worker(handler, Stores.single(MemoryStore()), stops, default_gpu="L40S", sharing=3, drain=drain)


def run_tasks(worker: Worker, count: int) -> list[dict[str, Any]]:
    """That many tasks, three at a time as Modal sends them; their results."""

    def run(index: int) -> dict[str, Any]:
        task = Task(index=index, hash=f"{index:064d}")
        work = Work(job_id=JOB_ID, attempt="1-a", kind="render", task=task, shared={}, timeout_s=60)
        (reply,) = worker.run(Order("run", None, [work]).to_json())
        result: dict[str, Any] = reply["result"]
        return result

    with ThreadPoolExecutor(3) as pool:
        return list(pool.map(run, range(count)))


def test_tasks_that_take_turns_are_charged_what_the_gpu_worked() -> None:
    """The engine's own seconds add up to its time, however many tasks wait beside."""
    together = threading.Barrier(3)

    def script(_work: Work, _context: TaskContext) -> TaskOutput:
        together.wait(10)
        return TaskOutput([], seconds=100.0)

    results = run_tasks(worker(ScriptedHandler(script)), 3)
    assert [result["cost_usd"] for result in results] == [round(100 * usd_per_s("L40S"), 6)] * 3


def test_tasks_that_fail_together_share_the_time_of_their_container(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nobody knows what the engine did for which: each has its share of the wall's time."""
    monkeypatch.setattr("infra.worker.usd_per_s", lambda _gpu: 1000.0)
    together = threading.Barrier(3)

    def script(_work: Work, _context: TaskContext) -> TaskOutput:
        together.wait(10)
        time.sleep(0.2)
        raise TaskFailed(ErrorKind.BAD_INPUT, "no")

    results = run_tasks(worker(ScriptedHandler(script)), 3)
    shares = sorted(result["seconds"] * 1000.0 / result["cost_usd"] for result in results)
    assert shares == pytest.approx([1, 2, 3], rel=0.02)


def crash(_work: Work, _context: TaskContext) -> TaskOutput:
    raise TaskFailed(ErrorKind.CRASHED, "the engine ended")


def test_one_crash_of_an_engine_is_one_strike_however_many_were_on_it() -> None:
    """Three crashes of it send the container away, not three tasks that fell together."""
    drained: list[int] = []
    together = threading.Barrier(3)

    def script(work: Work, context: TaskContext) -> TaskOutput:
        together.wait(10)
        return crash(work, context)

    sick = worker(ScriptedHandler(script), drain=lambda: drained.append(1))
    run_tasks(sick, 3)
    run_tasks(sick, 3)
    assert not drained
    run_tasks(sick, 3)
    assert drained


def test_a_finished_task_is_told_though_modal_does_not_let_the_container_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A sick container that can't be drained is drained after the next task."""
    asked: list[int] = []

    def refuse() -> None:
        asked.append(1)
        raise ConnectionError("Modal does not answer")

    monkeypatch.setattr("infra.health.gpu_problem", lambda: "Xid 79")
    monkeypatch.setattr("infra.health._CHECK_EVERY_S", 0.0)
    results = run_tasks(worker(ScriptedHandler(), drain=refuse), 2)
    assert ([result["status"] for result in results], len(asked)) == (["done", "done"], 2)


class Unstartable(ScriptedHandler):
    """Its engine is set up wrongly."""

    def warm(self) -> None:
        raise ConfigError("this folder has no main.py")


def test_an_engine_that_is_set_up_wrongly_does_not_fail_the_containers_start(tmp_path: Path) -> None:
    """Modal would rent one after another; the tasks say what is wrong."""
    worker(Unstartable()).warm()
    studio(Bench(tmp_path, Unstartable())).warm()


def studio(bench: Bench, drain: Callable[[], None] = lambda: None) -> Studio:
    budget = bench.machine().budget
    stores = Stores.single(bench.main)
    return Studio(bench.handler, stores, budget, timeout_s=1200, default_gpu="L40S", drain=drain)


def test_a_sick_container_of_the_api_is_let_go_too(tmp_path: Path) -> None:
    """Else it would fail every request for as long as they keep it warm."""
    drained: list[int] = []
    bench = Bench(tmp_path, ScriptedHandler(crash))
    sick = studio(bench, drain=lambda: drained.append(1))
    plan = Plan(job_id=JOB_ID, kind="render", tasks=[Task(index=0, hash="0" * 64)])
    order = {"plan": plan.model_dump(mode="json"), "max_cost_usd": 1}
    told = [sick.render(order, lambda: None)["error"]["kind"] for _ in range(3)]
    assert (told, drained) == (["crashed"] * 3, [1])


def desk(bench: Bench) -> Desk:
    """The API's, before a studio of its own."""
    renders = studio(bench)
    return Desk(
        handler=bench.handler,
        stores=Stores.single(bench.main),
        budget=bench.machine().budget,
        max_job_cost_usd=10,
        gpus=["L40S"],
        timeout_s=1200,
        cache=ModelCache(bench.work_dir / "volume", bench.main),
        reload_models=lambda: None,
        pull=lambda _wanted: None,
        note_use=lambda _wanted: None,
        render=lambda order: renders.render(order, lambda: None),
    )


def render_job(**fields: Any) -> RenderJob:
    return RenderJob.model_validate({"kind": "render", "workflow": "w", **fields})


def test_a_render_of_the_api_is_as_its_job_asks(tmp_path: Path) -> None:
    """Names, formats and the limit, as in a batch."""
    limits_s: list[float] = []

    def script(work: Work, context: TaskContext) -> TaskOutput:
        limits_s.append(work.timeout_s)
        Image.new("RGB", (8, 8)).save(context.workdir / "a.png")
        return TaskOutput([LocalFile(context.workdir / "a.png", "a.png", "image/png")], seconds=1.0)

    door = desk(Bench(tmp_path, ScriptedHandler(script)))
    asked = {"name": "mine-{task}", "format": "webp"}
    (file,) = door(render_job(gpu="L40S", timeout_s=30, output=asked))["files"]
    assert (file["name"], file["media_type"], limits_s) == ("mine-0000.webp", "image/webp", [30])
    (plain,) = door(render_job())["files"]
    assert (plain["name"], limits_s[1:]) == ("a.png", [1200])


@pytest.mark.parametrize(
    "asked",
    [
        {"gpu": "H100"},
        {"timeout_s": 1201},
        {"output": {"sequence": "gif"}},
        {"output": {"contact_sheet": True}},
    ],
)
def test_what_the_apis_pool_does_not_have_is_refused(tmp_path: Path, asked: dict[str, Any]) -> None:
    """Before a GPU is rented, with where to get it; else it would be ignored."""
    with pytest.raises(JobInvalid) as caught:
        desk(Bench(tmp_path, ScriptedHandler()))(render_job(**asked))
    assert (caught.value.where, "POST /jobs" in str(caught.value.mend)) == (next(iter(asked)), True)
