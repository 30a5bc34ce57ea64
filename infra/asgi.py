"""The least of a web framework: one function from request to reply, as an ASGI app.

The doors take a few kinds of small requests; a framework would be one more dependency of every
container. Handlers are plain functions and are tested as such.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qsl

import structlog

from processor.errors import ConfigError, DropbatchError, ErrorKind, JobInvalid, NotFound, TaskFailed

log = structlog.get_logger(__name__)

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[Message, Receive, Send], Awaitable[None]]

JSON: Final = "application/json"


@dataclass(frozen=True)
class Request:
    """One request, whole. Header names are in lower case."""

    method: str
    path: str
    query: dict[str, str] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass(frozen=True)
class Reply:
    status: int
    body: bytes = b""
    media_type: str = "text/plain; charset=utf-8"
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of_json(cls, value: Any, status: int = 200) -> Reply:
        return cls(status, json.dumps(value, ensure_ascii=False).encode(), JSON)


Handle = Callable[[Request], Reply]


def asgi_app(handle: Handle, *, limit_bytes: int, threads: int) -> AsgiApp:
    """The function as an ASGI app; it runs in a thread, so that it may wait.

    Args:
        limit_bytes: larger bodies are answered with 413, without being read to their end.
        threads: as many as requests may come at once; of fewer a request that waits would take them all.
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix="door")

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            # ASGI's way to say that there is no lifespan and no WebSocket here.
            raise NotImplementedError(scope["type"])
        body = await _body(receive, limit_bytes)
        if body is None:
            reply = Reply.of_json({"error": f"more than {limit_bytes:,} bytes"}, 413)
        else:
            running = asyncio.get_running_loop()
            reply = await running.run_in_executor(pool, answer, handle, _request(scope, body))
        headers = {"content-type": reply.media_type, "content-length": str(len(reply.body)), **reply.headers}
        raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": reply.status, "headers": raw})
        await send({"type": "http.response.body", "body": reply.body})

    return app


def answer(handle: Handle, request: Request) -> Reply:
    """The handler's reply, or what its exception means to a caller."""
    try:
        return handle(request)
    except (JobInvalid, TaskFailed) as error:
        value = {"error": str(error), "kind": error.kind.value, "details": error.details}
        return Reply.of_json(value, status_of(error.kind))
    except NotFound as error:
        return Reply.of_json({"error": str(error)}, 404)
    except ConfigError as error:
        return Reply.of_json({"error": str(error)}, 501)
    except DropbatchError as error:
        log.warning("door.unavailable", path=request.path, why=str(error))
        return Reply.of_json({"error": str(error)}, 503)
    except Exception:
        log.exception("door.defect", path=request.path)
        return Reply.of_json({"error": "internal error; it is in the log"}, 500)


def status_of(kind: ErrorKind) -> int:
    """What a failure means to a caller: 422 where the request must change, else when to come again."""
    return {ErrorKind.OVER_BUDGET: 429, ErrorKind.UNAVAILABLE: 503}.get(kind, 422)


async def _body(receive: Receive, limit_bytes: int) -> bytes | None:
    parts, size_bytes = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        part = message.get("body", b"")
        size_bytes += len(part)
        if size_bytes > limit_bytes:
            return None
        parts.append(part)
        if not message.get("more_body"):
            return b"".join(parts)


def _request(scope: Message, body: bytes) -> Request:
    headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
    query = dict(parse_qsl(scope.get("query_string", b"").decode("latin-1")))
    return Request(scope["method"], scope["path"], query, headers, body)
