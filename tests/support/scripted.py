"""A real HTTP and WebSocket server that answers prompts as a script says.

For what no engine does on demand: running out of memory, blocked execution, a reply that
gets lost, a server that forgets. Recorded exchanges of a real ComfyUI can be replayed.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import WSMsgType, web

RECORDINGS = Path(__file__).resolve().parents[3] / "shared" / "recordings" / "comfyui-0.3.64"
PROMPT_ID = "$prompt_id"


@dataclass
class Script:
    """How the server treats one prompt. `PROMPT_ID` stands for its id wherever it appears."""

    status: int = 200
    node_errors: dict[str, Any] = field(default_factory=dict)
    error: dict[str, Any] | None = None
    """The body of a 400."""
    messages: list[dict[str, Any]] = field(default_factory=list)
    history: dict[str, Any] | None = None
    """The entry that stands once the messages are sent."""
    cut_after: int | None = None
    """Break the socket after so many messages; the rest is never sent."""
    forget: bool = False
    """Then lose queue and history, as a restarted server does."""
    lose_reply: bool = False
    """Take the prompt, but break the connection instead of answering."""
    hold: bool = False
    """Stay running after the messages until interrupted."""
    mute: bool = False
    """Send nothing, though the socket is open."""
    goes_on_s: float = 0.0
    """Run for so long after the socket was cut."""


class ScriptedEngine:
    """The server's state: what it was asked, and what it will answer next."""

    def __init__(self) -> None:
        self.scripts: list[Script] = []
        self.prompts: list[dict[str, Any]] = []
        self.interrupts: list[str] = []
        self.deleted: list[str] = []
        self.freed = 0
        self.stats_status = 200
        self.sockets = 0
        self.files: dict[str, bytes] = {}
        self.uploads: list[tuple[str, str, bytes]] = []
        self.inputs: dict[str, bytes] = {}
        """What of the uploads is there, by subfolder and name."""
        self.object_info: dict[str, Any] = {}
        self.port = 0
        self._running: dict[str, Script] = {}
        self._history: dict[str, Any] = {}
        self._connections: dict[str, web.WebSocketResponse] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def app(self) -> web.Application:
        app = web.Application()
        app.add_routes(
            [
                web.get("/ws", self._socket),
                web.post("/prompt", self._prompt),
                web.get("/history/{id}", self._get_history),
                web.get("/queue", self._get_queue),
                web.post("/queue", self._post_queue),
                web.post("/interrupt", self._interrupt),
                web.post("/free", self._free),
                web.get("/system_stats", self._stats),
                web.get("/object_info", self._object_info),
                web.get("/view", self._view),
                web.post("/upload/image", self._upload),
            ]
        )
        return app

    async def _socket(self, request: web.Request) -> web.WebSocketResponse:
        connection = web.WebSocketResponse(timeout=0.1)  # a client that is gone answers no close
        await connection.prepare(request)
        self.sockets += 1
        self._connections[request.query.get("clientId", "")] = connection
        await connection.send_json(
            {"type": "status", "data": {"status": {"exec_info": {"queue_remaining": 0}}}}
        )
        async for message in connection:
            if message.type is WSMsgType.ERROR:
                break
        self._connections.pop(request.query.get("clientId", ""), None)  # as ComfyUI does, whosever it is
        return connection

    async def _prompt(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.prompts.append(body)
        script = self.scripts.pop(0)
        prompt_id = body["prompt_id"]
        if script.status != 200:
            return web.json_response(
                {"error": script.error, "node_errors": script.node_errors}, status=script.status
            )
        self._running[prompt_id] = script
        task = asyncio.get_running_loop().create_task(self._play(script, prompt_id, body["client_id"]))
        self._tasks.add(task)
        if script.lose_reply:
            assert request.transport is not None
            request.transport.abort()
        return web.json_response(
            {"prompt_id": prompt_id, "number": len(self.prompts), "node_errors": script.node_errors}
        )

    async def _play(self, script: Script, prompt_id: str, client_id: str) -> None:
        for number, message in enumerate(script.messages):
            if number == script.cut_after:
                break
            text = json.dumps(message).replace(PROMPT_ID, prompt_id)
            if (connection := self._connections.get(client_id)) is not None and not script.mute:
                await connection.send_str(text)
        if script.hold:
            return
        if script.goes_on_s:
            await self._connections[client_id].close()
            await asyncio.sleep(script.goes_on_s)
        if not script.forget and script.history is not None:
            self._history[prompt_id] = json.loads(json.dumps(script.history).replace(PROMPT_ID, prompt_id))
        self._running.pop(prompt_id, None)
        connection = self._connections.get(client_id)
        if connection is None or script.mute:
            return
        if script.cut_after is not None:
            await connection.close()
        else:
            await connection.send_json({"type": "executing", "data": {"node": None, "prompt_id": prompt_id}})

    async def _get_history(self, request: web.Request) -> web.Response:
        prompt_id = request.match_info["id"]
        return web.json_response({prompt_id: self._history[prompt_id]} if prompt_id in self._history else {})

    async def _get_queue(self, _request: web.Request) -> web.Response:
        return web.json_response({"queue_running": [[0, key] for key in self._running], "queue_pending": []})

    async def _post_queue(self, request: web.Request) -> web.Response:
        self.deleted += (await request.json()).get("delete", [])
        return web.Response()

    async def _interrupt(self, request: web.Request) -> web.Response:
        prompt_id = (await request.json())["prompt_id"]
        self.interrupts.append(prompt_id)
        self._running.pop(prompt_id, None)
        return web.Response()

    async def _free(self, _request: web.Request) -> web.Response:
        self.freed += 1
        return web.Response()

    async def _stats(self, _request: web.Request) -> web.Response:
        stats = {"system": {"comfyui_version": "0.3.64"}, "devices": [{"name": "cpu"}]}
        return web.json_response(stats, status=self.stats_status)

    async def _object_info(self, _request: web.Request) -> web.Response:
        return web.json_response(self.object_info)

    async def _view(self, request: web.Request) -> web.Response:
        key = f"{request.query['subfolder']}/{request.query['filename']}"
        files = self.inputs if request.query.get("type") == "input" else self.files
        return web.Response(body=files[key]) if key in files else web.Response(status=404)

    async def _upload(self, request: web.Request) -> web.Response:
        form = await request.post()
        image, subfolder = form["image"], str(form["subfolder"])
        assert isinstance(image, web.FileField)
        self.uploads.append((subfolder, image.filename, image.file.read()))
        self.inputs[f"{subfolder}/{image.filename}"] = self.uploads[-1][2]
        return web.json_response({"name": image.filename, "subfolder": subfolder, "type": "input"})


@contextmanager
def serve_scripted() -> Iterator[ScriptedEngine]:
    """A scripted engine on a free port of this machine."""
    engine = ScriptedEngine()
    ready, loop = threading.Event(), asyncio.new_event_loop()

    async def start() -> web.AppRunner:
        runner = web.AppRunner(engine.app(), shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        engine.port = runner.addresses[0][1]
        return runner

    def serve() -> None:
        asyncio.set_event_loop(loop)
        runner = loop.run_until_complete(start())
        ready.set()
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())
        loop.close()

    thread = threading.Thread(target=serve, name="scripted-engine", daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield engine
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)


def recording(name: str) -> dict[str, Any]:
    """A recorded exchange of a real ComfyUI."""
    value: dict[str, Any] = json.loads((RECORDINGS / f"{name}.json").read_text(encoding="utf-8"))
    return value


def replayed(name: str) -> Script:
    """A recorded exchange as a script."""
    record = recording(name)
    if record.get("response_status", 200) != 200:
        answer = record["response"]
        return Script(
            status=record["response_status"], error=answer["error"], node_errors=answer["node_errors"]
        )
    old = record["response"]["prompt_id"]

    def renamed(value: Any) -> Any:
        return json.loads(json.dumps(value).replace(old, PROMPT_ID))

    # The last message (executing null) follows the history, as it does on a real one.
    messages = [
        m for m in record["ws_messages"] if not (m["type"] == "executing" and m["data"].get("node") is None)
    ]
    return Script(
        node_errors=record["response"]["node_errors"],
        messages=renamed(messages),
        history=renamed(record["history"][old]) if record.get("history") else None,
    )
