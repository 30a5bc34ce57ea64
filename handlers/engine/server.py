"""The HTTP side: ComfyUI's routes over one queue, one worker thread and one hub of WebSockets."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

from aiohttp import web

from handlers.engine import VERSION
from handlers.engine.executor import Executor
from handlers.engine.files import Folders
from handlers.engine.hub import Hub
from handlers.engine.jobs import Job, JobQueue, QueueFull
from handlers.engine.nodes import NODES
from handlers.engine.schema import Settings
from handlers.engine.storage import add_storage_routes
from handlers.engine.validation import MalformedPrompt, validate_prompt

log = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class EngineServer:
    """The engine behind its protocol.

    `app` is an aiohttp application; the worker thread starts and ends with it.
    """

    def __init__(self, folders: Folders, settings: Settings) -> None:
        self._folders = folders
        self._settings = settings
        self._loop: asyncio.AbstractEventLoop | None = None
        self._queue = JobQueue(changed=self._tell_queue, capacity=settings.limits.pending)
        self._hub = Hub(self._queue_info, settings.limits.socket_backlog)
        self._executor = Executor(NODES, folders, settings, self._send)
        self._worker = threading.Thread(target=self._work, name="worker", daemon=True)
        self._next_number = 0
        self.app = web.Application(
            client_max_size=settings.limits.upload_bytes, middlewares=[_same_origin_only]
        )
        self.app.on_startup.append(self._start)
        self.app.on_shutdown.append(self._stop)
        self._add_routes()

    def _add_routes(self) -> None:
        routes: list[tuple[str, str, Handler]] = [
            ("GET", "/ws", self._get_ws),
            ("GET", "/prompt", self._get_prompt),
            ("POST", "/prompt", self._post_prompt),
            ("GET", "/queue", self._get_queue),
            ("POST", "/queue", self._post_queue),
            ("GET", "/history", self._get_history),
            ("GET", "/history/{prompt_id}", self._get_history_entry),
            ("POST", "/history", self._post_history),
            ("POST", "/interrupt", self._post_interrupt),
            ("POST", "/free", self._post_free),
            ("GET", "/system_stats", self._get_system_stats),
            ("GET", "/features", self._get_features),
            ("GET", "/object_info", self._get_object_info),
            ("GET", "/object_info/{name}", self._get_object_info),
        ]
        for prefix in ("", "/api"):  # ComfyUI serves both
            for method, path, handler in routes:
                self.app.router.add_route(method, prefix + path, handler)
            add_storage_routes(self.app, prefix, self._folders)

    async def _start(self, _: web.Application) -> None:
        self._loop = asyncio.get_running_loop()
        self._worker.start()

    async def _stop(self, _: web.Application) -> None:
        self._executor.interrupt()
        self._queue.close()
        await asyncio.to_thread(self._worker.join, 5.0)

    def _work(self) -> None:
        """The worker thread: one prompt after the other."""
        try:
            while self._work_once():
                pass
        except BaseException:
            # what a graph does is an outcome; this is a fault of ours, and a crash is seen where a queue
            # that no longer moves is not
            log.critical("the worker failed", exc_info=True)
            os._exit(os.EX_SOFTWARE)

    def _work_once(self) -> bool:
        """Run the next prompt; False at the end."""
        job, forget = self._queue.take()
        if forget:
            self._executor.forget_results()
        if job is None:
            return forget
        begun = time.perf_counter()
        self._queue.finish(job, self._executor.run(job))
        if job.client_id is not None:
            self._send("executing", {"node": None, "prompt_id": job.prompt_id}, job.client_id)
        log.info("Prompt executed in %.2f seconds", time.perf_counter() - begun)
        return True

    def _send(self, event: str, data: dict[str, Any], client_id: str | None) -> None:
        """Hand a message to the event loop, from any thread."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._hub.send, event, data, client_id)

    def _tell_queue(self) -> None:
        self._send("status", {"status": self._queue_info()}, None)

    def _queue_info(self) -> dict[str, Any]:
        return {"exec_info": {"queue_remaining": self._queue.remaining()}}

    async def _get_ws(self, request: web.Request) -> web.WebSocketResponse:
        def current_node(client_id: str) -> str | None:
            running = self._queue.running
            return self._executor.current_node() if running and running.client_id == client_id else None

        return await self._hub.serve(request, current_node=current_node)

    async def _get_prompt(self, _: web.Request) -> web.Response:
        return web.json_response(self._queue_info())

    async def _post_prompt(self, request: web.Request) -> web.Response:
        log.info("got prompt")
        body = await _json(request)
        try:
            number = self._number(body)
            if "prompt" not in body:
                return _refusal(_plain_error("no_prompt", "No prompt provided", "No prompt provided"), {})
            prompt = body["prompt"]
            verdict = validate_prompt(
                prompt, NODES, self._folders, self._settings.limits, body.get("partial_execution_targets")
            )
            extra_data = dict(body.get("extra_data") or {})
        except (MalformedPrompt, TypeError, ValueError, AttributeError) as error:
            log.warning("malformed request: %s", error)
            raise _bare_500() from error
        if verdict.error is not None:
            log.warning("invalid prompt: %s", verdict.error)
            return _refusal(verdict.error, verdict.node_errors)
        if "client_id" in body:
            extra_data["client_id"] = body["client_id"]
        prompt_id = str(body.get("prompt_id", uuid4()))
        try:
            self._queue.put(Job(number, prompt_id, prompt, extra_data, verdict.outputs))
        except QueueFull as full:
            return _refusal(_plain_error("queue_full", "The queue is full", str(full)), {}, status=503)
        answer = {"prompt_id": prompt_id, "number": number, "node_errors": verdict.node_errors}
        return web.json_response(answer)

    def _number(self, body: dict[str, Any]) -> float:
        """The prompt's place in the queue: as asked, at the front, or the next."""
        if "number" in body:
            return float(body["number"])
        number = self._next_number
        self._next_number += 1
        return -number if body.get("front") else number

    async def _get_queue(self, _: web.Request) -> web.Response:
        return web.json_response(self._queue.listed())

    async def _post_queue(self, request: web.Request) -> web.Response:
        body = await _json(request)
        if body.get("clear"):
            self._queue.clear()
        for prompt_id in body.get("delete", []):
            self._queue.delete(prompt_id)
        return web.Response()

    async def _get_history(self, request: web.Request) -> web.Response:
        try:
            max_items = int(request.query["max_items"]) if "max_items" in request.query else None
            offset = int(request.query.get("offset", -1))
        except ValueError as error:
            raise _bare_500() from error
        return web.json_response(self._queue.history(max_items, offset))

    async def _get_history_entry(self, request: web.Request) -> web.Response:
        return web.json_response(self._queue.history_entry(request.match_info["prompt_id"]))

    async def _post_history(self, request: web.Request) -> web.Response:
        body = await _json(request)
        if body.get("clear"):
            self._queue.forget()
        for prompt_id in body.get("delete", []):
            self._queue.forget(str(prompt_id))
        return web.Response()

    async def _post_interrupt(self, request: web.Request) -> web.Response:
        """Stop what runs; with a `prompt_id`, only if it is that prompt."""
        prompt_id = (await _json(request)).get("prompt_id") if request.can_read_body else None
        running = self._queue.running
        if running is not None and prompt_id in (None, "", running.prompt_id):
            self._executor.interrupt()
        return web.Response()

    async def _post_free(self, request: web.Request) -> web.Response:
        if (await _json(request)).get("free_memory"):
            self._queue.forget_results()
        return web.Response()

    async def _get_system_stats(self, _: web.Request) -> web.Response:
        """The machine, and plainly that this is no ComfyUI: `dropbatch_engine` for its version."""
        total, free = _memory_bytes()
        memory = {"vram_total": total, "vram_free": free, "torch_vram_total": 0, "torch_vram_free": 0}
        system = {
            "os": os.name,
            "ram_total": total,
            "ram_free": free,
            "dropbatch_engine": VERSION,
            "python_version": sys.version,
            "embedded_python": False,
            "argv": sys.argv,
        }
        devices = [{"name": "cpu", "type": "cpu", "index": None, **memory}]
        return web.json_response({"system": system, "devices": devices})

    async def _get_features(self, _: web.Request) -> web.Response:
        limit = self._settings.limits.upload_bytes
        return web.json_response({"supports_preview_metadata": False, "max_upload_size": limit})

    async def _get_object_info(self, request: web.Request) -> web.Response:
        name = request.match_info.get("name")
        names = [name] if name is not None else list(NODES)
        info = {name: NODES[name].object_info(self._folders) for name in names if name in NODES}
        return web.json_response(info)


async def _json(request: web.Request) -> dict[str, Any]:
    """The body as an object; what is none is answered as ComfyUI answers it."""
    try:
        body = await request.json()
    except (ValueError, RecursionError) as error:
        raise _bare_500() from error
    if body == []:
        return {}
    if not isinstance(body, dict):
        raise _bare_500()
    return body


def _bare_500() -> web.HTTPInternalServerError:
    """What ComfyUI answers, through aiohttp, when a request makes its handler stumble."""
    return web.HTTPInternalServerError(text="500 Internal Server Error\n\nServer got itself in trouble")


def _plain_error(kind: str, message: str, details: str) -> dict[str, Any]:
    return {"type": kind, "message": message, "details": details, "extra_info": {}}


def _refusal(error: dict[str, Any], node_errors: dict[str, Any], status: int = 400) -> web.Response:
    return web.json_response({"error": error, "node_errors": node_errors}, status=status)


def _memory_bytes() -> tuple[int, int]:
    """The machine's memory and what is free of it; zeros where the system does not say."""
    try:
        page = os.sysconf("SC_PAGE_SIZE")
        return page * os.sysconf("SC_PHYS_PAGES"), page * os.sysconf("SC_AVPHYS_PAGES")
    except (ValueError, OSError):  # macOS does not know SC_AVPHYS_PAGES
        return 0, 0


@web.middleware
async def _same_origin_only(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse what a web page elsewhere makes a browser send to a server on loopback."""
    origin, host = request.headers.get("Origin"), request.headers.get("Host", "")
    if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
        return web.Response(status=403)
    return await handler(request)
