"""The interactive ComfyUI: when its GPU is idle, and the door to it on this machine."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from subprocess import Popen
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from infra import ui
from infra.proxy import Door, serve
from infra.ui import Keeper
from processor.errors import AccessDenied, ConfigError
from processor.store import ObjectInfo
from processor.store.memory import MemoryStore
from tests.support.rendering import builtin_settings


class Full(MemoryStore):
    """A bucket at its daily cap, until it is another day."""

    full = True

    def put(self, key: str, *args: Any, **more: Any) -> ObjectInfo:
        if self.full:
            raise AccessDenied("daily cap exceeded", where=key)
        return super().put(key, *args, **more)


def test_a_prompt_that_cant_be_kept_is_no_use_of_the_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is tried again at each look, and the container ends all the same when nobody runs anything."""
    now, store = [0.0], Full()
    keeper = Keeper("http://localhost", tmp_path, store, now=lambda: now[0])
    prompt = {"prompt": [0, "p1", {"1": {"class_type": "A", "inputs": {}}}], "outputs": {}}
    answers: dict[str, Any] = {"/queue": {"queue_running": []}, "/history?max_items=100": {"p1": prompt}}
    monkeypatch.setattr(keeper, "_get", answers.__getitem__)
    idle_s = []
    for at in (0.0, 600.0, 1200.0):
        now[0] = at
        idle_s.append(keeper.look())
    assert idle_s == [0.0, 600.0, 1200.0]
    store.full = False
    assert keeper.look() == 1200.0
    assert [item.key for page in store.list("") for item in page.objects], "kept once it could be"
    answers["/history?max_items=100"] = {"p1": prompt, "p2": prompt}
    assert keeper.look() == 0.0


class Typed(MemoryStore):
    """A bucket that tells what it was told to serve an object as."""

    def __init__(self) -> None:
        super().__init__()
        self.media_types: dict[str, Any] = {}

    def put(self, key: str, *args: Any, **more: Any) -> ObjectInfo:
        self.media_types[key] = more.get("media_type")
        return super().put(key, *args, **more)


def made(tmp_path: Path, graph: object, *names: str) -> dict[str, Any]:
    """The server's answers once a prompt wrote these files."""
    files = []
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
        subfolder, _, filename = name.rpartition("/")
        files.append({"filename": filename, "subfolder": subfolder, "type": "output"})
    prompt = {"prompt": [0, "p1", graph], "outputs": {"9": {"images": files}}}
    return {"/queue": {"queue_running": []}, "/history?max_items=100": {"0a1b2c3d-p1": prompt}}


@pytest.mark.parametrize(
    "names",
    [
        [f"summer-campaign-lighthouse-at-dusk-variant_0000{n}_.png" for n in range(1, 5)],
        ["hires/x_00001_.png", "lowres/x_00001_.png"],
        ["肖像_00001_.png", "風景_00001_.png"],
        ["a\n.png", "a\t.png"],
        ["/".join(["d" * 250] * 3 + [f"{n}.png"]) for n in range(2)],
    ],
)
def test_every_file_is_kept(names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under its own name, as what a browser shows: the container's disk goes with it."""
    store = Typed()
    keeper = Keeper("http://localhost", tmp_path, store)
    monkeypatch.setattr(keeper, "_get", made(tmp_path, {}, *names).__getitem__)
    keeper.look()
    items = [item.key for page in store.list("comfy_outputs/ui/") for item in page.objects]
    assert sorted(store.get(key).body.read() for key in items) == sorted(name.encode() for name in names)
    assert {store.media_types[key] for key in items} == {"image/png"}


@pytest.mark.parametrize("value", ["half an emoji \ud83d", float("nan")])
def test_a_graph_that_is_no_text_of_a_job_is_kept_all_the_same(
    value: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = MemoryStore()
    keeper = Keeper("http://localhost", tmp_path, store)
    graph = {"1": {"class_type": "A", "inputs": {"x": value}}}
    monkeypatch.setattr(keeper, "_get", made(tmp_path, graph, "a.png").__getitem__)
    keeper.look()
    assert sum(len(page.objects) for page in store.list("")) == 2


class Running(Popen[bytes]):
    """A server's process that ends when it is told to."""

    def __init__(self) -> None:  # nothing is started
        self.told = False
        self.returncode: int | None = None

    def poll(self) -> int | None:
        return self.returncode

    def terminate(self) -> None:
        self.told, self.returncode = True, 0

    def wait(self, timeout: float | None = None) -> int:
        del timeout
        return 0

    def __del__(self) -> None:
        """Nothing to reap."""


def silent(_path: str) -> dict[str, Any]:
    raise ValueError("no answer")


def test_a_server_that_hangs_does_not_hold_the_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Busy for a while it may be; and while it starts nobody can have used it."""
    now = [0.0]
    keeper = Keeper("http://localhost", tmp_path, MemoryStore(), now=lambda: now[0])

    def looked(at_s: float, get: Callable[[str], dict[str, Any]]) -> float:
        now[0] = at_s
        monkeypatch.setattr(keeper, "_get", get)
        return keeper.look()

    answers = made(tmp_path, {}, "a.png").__getitem__
    assert [looked(at_s, silent) for at_s in (0.0, 500.0, 1000.0)] == [0.0, 0.0, 400.0], "it never came up"
    assert [looked(1000.0, answers), looked(1500.0, answers)] == [0.0, 500.0]
    assert [looked(1500.0, silent), looked(2000.0, silent)] == [0.0, 500.0]
    assert looked(2010.0, answers) == 1010.0, "an answer that nobody used it since"


@pytest.mark.parametrize("error", [None, ConnectionError("reset")])
def test_an_idle_server_ends_whatever_modal_answers(
    error: Exception | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And whatever can't be kept: the GPU costs by the second."""
    now = iter(range(0, 10_000, 100))
    keeper = Keeper("http://localhost", tmp_path, MemoryStore(), now=lambda: float(next(now)))
    answers = made(tmp_path, {}) | {"/history?max_items=100": {"p1": "no prompt"}}
    monkeypatch.setattr(keeper, "_get", answers.__getitem__)
    monkeypatch.setattr(ui, "_EVERY_S", 0.0)
    process = Running()

    def end() -> None:
        if error is not None:
            raise error

    with suppress(ConnectionError):
        ui._watch(keeper, process, 0.0, end)
    assert process.told


def test_the_deployments_flags_hold_in_the_browser_too(tmp_path: Path) -> None:
    """Beside those without which nobody could reach it."""
    settings = replace(builtin_settings(tmp_path), extra_args=("--lowvram", "--listen", "127.0.0.1"))
    found = ui._reachable(settings, tmp_path).extra_args
    assert found[:1] == ("--lowvram",)
    assert found[-4:] == ("--listen", "0.0.0.0", "--user-directory", str(tmp_path))


@pytest.mark.parametrize(
    ("sent", "seen"),
    [
        ("{far}/?__modal_function_call_id=fc-1", "/?__modal_function_call_id=fc-1"),
        ("{far}", "/"),
        ("{far}?a=b", "/?a=b"),
        ("/queue", "/queue"),
        ("{far}0/queue", "{far}0/queue"),
        ("https://elsewhere.example/", "https://elsewhere.example/"),
    ],
)
def test_a_redirect_to_the_endpoint_leads_to_its_door(sent: str, seen: str) -> None:
    """Modal answers what takes over 150 s with one; beyond the door a browser would get a 401."""

    async def redirected() -> tuple[str, str]:
        async def moved(_request: web.Request) -> web.Response:
            return web.Response(status=303, headers={"Location": sent.format(far=base)})

        app = web.Application()
        app.router.add_get("/", moved)
        async with TestServer(app) as far:
            base = str(far.make_url("")).rstrip("/")
            async with (
                TestServer(Door(base, {}).app()) as door,
                aiohttp.ClientSession() as session,
                session.get(door.make_url("/"), allow_redirects=False) as answer,
            ):
                return answer.headers["Location"], seen.format(far=base)

    found, expected = asyncio.run(redirected())
    assert found == expected


def test_a_port_that_is_taken_is_said_so() -> None:
    """A ComfyUI of this machine has the same one."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match="--port 0"):
            serve("http://localhost", port=port, headers={}, ready=lambda _url: None)
