"""The API's function and the little web framework below it, without a container."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import modal
import pytest

from infra.api import Api
from infra.asgi import Reply, Request, answer, asgi_app
from infra.waking import WINDOW_S, Waking
from processor.errors import StoreUnavailable
from processor.leases.memory import MemoryLeases
from processor.store import ObjectInfo
from processor.store.memory import MemoryStore

JOB = b'{"kind": "train", "dataset": "x"}'


def api(store: MemoryStore, wake: Any = lambda: None) -> Api:
    return Api(store, MemoryLeases(), lambda _job: {"files": []}, wake)


def post(door: Api, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
    reply = answer(door, Request("POST", path, body=body))
    return reply.status, json.loads(reply.body)


def dropped(store: MemoryStore) -> list[str]:
    return [item.key for page in store.list("inbox/") for item in page.objects]


def test_a_job_that_is_dropped_is_answered_for_whatever_fails_then() -> None:
    """An error would have the caller send it again, and each time is another job."""

    class Unread(MemoryStore):
        def stat(self, key: str, *, version: str | None = None) -> ObjectInfo:
            raise StoreUnavailable("503", where=key)

    def refuse() -> None:
        raise modal.exception.ServiceError("temporarily unavailable")

    store = Unread()
    status, said = post(api(store, refuse), "/jobs", JOB)
    assert (status, said["status"]) == (202, f"/jobs/{said['job']}")
    assert dropped(store) == [said["key"]]


def test_an_id_that_nobody_can_tell_is_not_made_up() -> None:
    """An S3 server without versions tells it only when it is asked."""

    class Plain(MemoryStore):
        answers = True

        def put(self, key: str, *args: Any, **more: Any) -> ObjectInfo:
            info = super().put(key, *args, **more)
            return ObjectInfo(key=key, version="", size_bytes=info.size_bytes, modified=info.modified)

        def stat(self, key: str, *, version: str | None = None) -> ObjectInfo:
            if not self.answers:
                raise StoreUnavailable("503", where=key)
            return super().stat(key, version=version)

    store = Plain()
    status, said = post(api(store), "/jobs", JOB)
    assert (status, said["status"]) == (202, f"/jobs/{said['job']}")
    store.answers = False
    status, said = post(api(store), "/jobs", JOB)
    assert (status, said["job"], said["status"]) == (202, None, None)
    assert said["key"] in dropped(store)


class Notes(dict[str, Any]):
    """The Dict of notes."""

    def put(self, key: str, value: Any, *, skip_if_exists: bool = False) -> bool:
        if skip_if_exists and key in self:
            return False
        self[key] = value
        return True

    def contains(self, key: str) -> bool:
        return key in self


def test_many_posts_make_one_tick() -> None:
    """At the end of the window, so that it sees them all; the next one has another."""
    now, delays = [30.5], list[float]()
    wake = Waking(Notes(), delays.append, lambda: now[0])
    door = api(MemoryStore(), wake)
    for at in (30.5, 31.0, 32.9, 33.0):
        now[0] = at
        assert post(door, "/jobs", JOB)[0] == 202
    assert delays == [WINDOW_S - 0.5, WINDOW_S]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b'{"workflow": {}, "files": {"a": "aGk="}, "inputs": null}', "inputs"),
        (b'{"workflow": {}, "files": {"a": "aGk="}, "inputs": [1]}', "inputs"),
        (b'{"workflow": {}, "files": {"a": "aGk="}, "inputs": "x"}', "inputs"),
        (b'{"workflow": {}, "files": {"a": 1}}', "files.a"),
        (b"[" * 200_000, "nested"),
        (b'{"a":' * 3000 + b"1" + b"}" * 3000, "nested"),
        (b"\xff", "UTF-8"),
    ],
)
@pytest.mark.parametrize("path", ["/render", "/jobs"])
def test_a_body_of_another_shape_is_the_callers_to_mend(path: str, body: bytes, says: str) -> None:
    """422 with where it is wrong, not 500; nothing is dropped."""
    store = MemoryStore()
    status, said = post(api(store), path, body)
    assert (status, says in said["error"]) == (422, True), said
    assert not dropped(store)


def test_requests_that_wait_keep_no_other_from_its_answer() -> None:
    """As many as Modal sends at once: a render waits for minutes, a look at the bucket must not."""
    at_once, gate = 50, threading.Event()

    def handle(request: Request) -> Reply:
        if request.path == "/render":
            gate.wait(30)
        return Reply(200, b"ok")

    app = asgi_app(handle, limit_bytes=100, threads=at_once)

    async def call(path: str) -> int:
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b""}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        await app({"type": "http", "method": "GET", "path": path, "headers": []}, receive, send)
        return int(sent[0]["status"])

    async def all_at_once() -> None:
        waiting = [asyncio.create_task(call("/render")) for _ in range(at_once - 1)]
        await asyncio.sleep(0)
        assert await asyncio.wait_for(call("/status"), 10) == 200
        gate.set()
        assert set(await asyncio.gather(*waiting)) == {200}

    asyncio.run(all_at_once())
