"""An attached engine that is not there, or not yet."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from handlers.render.api import EngineUnreachable
from handlers.render.engine import EnginePool
from handlers.render.server import Server
from handlers.render.settings import RenderSettings
from processor.clock import SystemClock
from processor.errors import ErrorKind, TaskFailed
from processor.handler import Stop
from tests.support.rendering import builtin_settings
from tests.support.scripted import serve_scripted


def attached(root: Path, url: str, *, lost_s: float) -> EnginePool:
    settings: RenderSettings = replace(builtin_settings(root), comfyui_url=url, lost_server_s=lost_s)
    return EnginePool(settings, SystemClock())


@pytest.fixture(name="gone")
def _gone() -> str:
    """Where an engine was until a moment ago."""
    with serve_scripted() as engine:
        return engine.url


def test_one_that_is_not_there_is_no_fault_of_the_tasks(tmp_path: Path, gone: str) -> None:
    pool = attached(tmp_path, gone, lost_s=0.2)
    with pytest.raises(TaskFailed, match="COMFYUI_URL") as caught, pool.use():
        pass
    assert caught.value.kind is ErrorKind.NO_ENGINE


@pytest.mark.parametrize(("status", "kind"), [(401, ErrorKind.REFUSED), (404, ErrorKind.NO_ENGINE)])
def test_an_answer_that_is_none_of_comfyuis(tmp_path: Path, status: int, kind: ErrorKind) -> None:
    """A wrong password is told as such, at once; a tunnel to a ComfyUI that is off is waited for."""
    with serve_scripted() as engine:
        engine.stats_status = status
        pool = attached(tmp_path, engine.url, lost_s=60.0 if status == 401 else 0.2)
        with pytest.raises(TaskFailed, match=f"answers {status}.*COMFYUI_URL") as caught, pool.use():
            pass
    assert caught.value.kind is kind


def test_a_stop_ends_the_wait_for_it(tmp_path: Path, gone: str) -> None:
    pool, stop, began = attached(tmp_path, gone, lost_s=60.0), Stop(), time.monotonic()
    stop.set(ErrorKind.PREEMPTED)
    with pytest.raises(TaskFailed) as caught, pool.use(stop=stop):
        pass
    assert caught.value.kind is ErrorKind.PREEMPTED
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(("there", "kind"), [(True, ErrorKind.UNAVAILABLE), (False, ErrorKind.NO_ENGINE)])
def test_one_that_went_away_is_told_from_one_that_stumbled(
    tmp_path: Path, there: bool, kind: ErrorKind
) -> None:
    with serve_scripted() as engine:
        pool = attached(tmp_path, engine.url, lost_s=0.2)
        with pool.use() as used:
            pass
        if there:
            with pytest.raises(TaskFailed) as caught, pool.use():
                raise EngineUnreachable("it did not answer")
    if not there:
        with pytest.raises(TaskFailed) as caught, pool.use():
            used.api.system_stats()
    assert caught.value.kind is kind


def test_one_that_starts_while_its_pool_is_closed_ends_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would hold a GPU's memory until the process ends."""
    settings = builtin_settings(tmp_path)
    pool, start = EnginePool(settings, SystemClock()), Server.start

    def closing(server: Server) -> dict[str, Any]:
        pool.close()
        return start(server)

    monkeypatch.setattr(Server, "start", closing)
    for _ in range(2):
        with pytest.raises(TaskFailed) as caught, pool.use():
            pass
        assert caught.value.kind is ErrorKind.PREEMPTED
        assert not list(settings.work_dir.glob("engine-*"))
