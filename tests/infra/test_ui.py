"""The interactive ComfyUI: when its GPU is idle, and the door to it on this machine."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from infra.proxy import Door, serve
from infra.ui import Keeper
from processor.errors import AccessDenied, ConfigError
from processor.store import ObjectInfo
from processor.store.memory import MemoryStore


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
