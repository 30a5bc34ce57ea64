"""The HTTP side: blobs and volume blocks for the client, and each web endpoint on its own port."""

import asyncio
import hashlib
import hmac
import pickle
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import WSMsgType, web
from modal._serialization import deserialize_data_format, serialize_data_format  # the wire's own codec
from modal_proto import api_pb2 as pb

from tests.loopback.apps import Registered
from tests.loopback.calls import Call, Calls
from tests.loopback.files import Blobs, Volumes, inside

BIGGEST_BYTES = 1 << 30
SYNC = pb.FUNCTION_CALL_INVOCATION_TYPE_SYNC


async def listen(app: web.Application, runners: list[web.AppRunner]) -> str:
    """Serve on a free port of 127.0.0.1 and return its URL."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    runners.append(runner)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    return f"http://{host}:{port}"


@dataclass
class Store:
    """PUT and GET of blobs, GET of volume ranges, POST of `/trigger/<function>` for demos."""

    blobs: Blobs
    volumes: Volumes
    trigger: Callable[[str], str]

    def app(self) -> web.Application:
        app = web.Application(client_max_size=BIGGEST_BYTES)
        app.add_routes(
            [
                web.put("/blob/{name}", self.put_blob),
                web.get("/blob/{name}", self.get_blob),
                web.get("/volume/{volume}/{path:.+}", self.get_range),
                web.post("/trigger/{function}", self.post_trigger),
            ]
        )
        return app

    async def put_blob(self, request: web.Request) -> web.Response:
        data = await request.read()
        self.blobs.put(request.match_info["name"], data)
        etag = hashlib.md5(data, usedforsecurity=False).hexdigest()  # what S3 answers and the client checks
        return web.Response(headers={"ETag": f'"{etag}"'})

    async def get_blob(self, request: web.Request) -> web.StreamResponse:
        return web.FileResponse(self.blobs.path(request.match_info["name"]))

    async def get_range(self, request: web.Request) -> web.Response:
        root: Path = self.volumes.folder(request.match_info["volume"])
        start, end = int(request.query["start"]), int(request.query["end"])
        with inside(root, request.match_info["path"]).open("rb") as file:
            file.seek(start)
            return web.Response(body=file.read(end - start))

    async def post_trigger(self, request: web.Request) -> web.Response:
        return web.Response(text=self.trigger(request.match_info["function"]))


@dataclass
class Front:
    """Turns HTTP and WebSocket requests into inputs of a web function, as Modal's front does."""

    calls: Calls
    proxy_auth: tuple[str, str]
    runners: list[web.AppRunner] = field(default_factory=list)

    async def open(self, registered: Registered, method: str, config: pb.WebhookConfig) -> str:
        """Give a web function a port of its own and return its URL."""
        key = config.requires_proxy_auth

        async def handle(request: web.Request) -> web.StreamResponse:
            if key and not self._authorized(request):
                return web.Response(status=401, text="modal-http: missing or wrong Modal-Key, Modal-Secret\n")
            if request.headers.get("Upgrade", "").lower() == "websocket":
                return await self._websocket(request, registered, method)
            return await self._http(request, registered, method)

        app = web.Application(client_max_size=BIGGEST_BYTES)
        app.router.add_route("*", "/{path:.*}", handle)
        return await listen(app, self.runners)

    def _authorized(self, request: web.Request) -> bool:
        given = (request.headers.get("Modal-Key", ""), request.headers.get("Modal-Secret", ""))
        pairs = zip(given, self.proxy_auth, strict=True)
        return all(hmac.compare_digest(a.encode(), b.encode()) for a, b in pairs)

    def _start(self, request: web.Request, registered: Registered, name: str, **extra: Any) -> Call:
        scope = {
            "http_version": "1.1",
            "path": request.path,
            "raw_path": request.raw_path.split("?")[0].encode(),
            "query_string": request.query_string.encode(),
            "headers": [(name.lower(), value) for name, value in request.raw_headers],
            "client": (request.remote or "127.0.0.1", 0),
            **extra,
        }
        payload = pb.FunctionInput(
            args=pickle.dumps(((scope,), {})), data_format=pb.DATA_FORMAT_PICKLE, method_name=name or None
        )
        call = self.calls.open(self.calls.apps.pool(registered.function_id), SYNC)
        self.calls.put(call, [pb.FunctionPutInputsItem(idx=0, input=payload)])
        return call

    async def _http(self, request: web.Request, registered: Registered, method: str) -> web.StreamResponse:
        call = self._start(
            request, registered, method, type="http", method=request.method, scheme=request.scheme
        )
        body = await request.read()
        _tell(call, {"type": "http.request", "body": body, "more_body": False})
        response: web.StreamResponse | None = None
        async for message in _messages(call):
            if message["type"] == "http.response.start":
                headers = [(name.decode(), value.decode()) for name, value in message.get("headers", [])]
                response = web.StreamResponse(status=message["status"])
                response.headers.extend(headers)
                await response.prepare(request)
            elif message["type"] == "http.response.body" and response:
                await response.write(message.get("body", b""))
        if response is None:
            return web.Response(status=500, text="modal-http: internal error: the function failed\n")
        await response.write_eof()
        return response

    async def _websocket(
        self, request: web.Request, registered: Registered, method: str
    ) -> web.StreamResponse:
        protocols = [
            p.strip() for p in request.headers.get("Sec-WebSocket-Protocol", "").split(",") if p.strip()
        ]
        call = self._start(request, registered, method, type="websocket", scheme="ws", subprotocols=protocols)
        _tell(call, {"type": "websocket.connect"})
        messages = _messages(call)
        first = await anext(messages, {"type": "websocket.close"})
        if first["type"] != "websocket.accept":
            return web.Response(status=403)
        chosen = [first["subprotocol"]] if first.get("subprotocol") else []
        socket = web.WebSocketResponse(protocols=chosen)
        await socket.prepare(request)
        pump = asyncio.create_task(self._pump(messages, socket))
        async for frame in socket:
            if frame.type is WSMsgType.TEXT:
                _tell(call, {"type": "websocket.receive", "text": frame.data})
            elif frame.type is WSMsgType.BINARY:
                _tell(call, {"type": "websocket.receive", "bytes": frame.data})
        _tell(call, {"type": "websocket.disconnect", "code": socket.close_code or 1005})
        await pump
        return socket

    async def _pump(self, messages: AsyncIterator[dict[str, Any]], socket: web.WebSocketResponse) -> None:
        async for message in messages:
            if message["type"] == "websocket.send" and message.get("text") is not None:
                await socket.send_str(message["text"])
            elif message["type"] == "websocket.send":
                await socket.send_bytes(message["bytes"])
            elif message["type"] == "websocket.close":
                break
        await socket.close()


def _tell(call: Call, message: dict[str, Any]) -> None:
    chunk = pb.DataChunk(
        index=len(call.data_in.chunks) + 1,
        data_format=pb.DATA_FORMAT_ASGI,
        data=serialize_data_format(message, pb.DATA_FORMAT_ASGI),
    )
    call.data_in.put([chunk])


async def _messages(call: Call) -> AsyncIterator[dict[str, Any]]:
    async for chunk in call.data_out.read():
        yield deserialize_data_format(chunk.data, chunk.data_format, None)
