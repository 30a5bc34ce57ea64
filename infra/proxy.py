"""A door on 127.0.0.1 to a guarded web endpoint: HTTP and WebSocket, with the headers added.

Only pages that this door served may use it: a request must name it as its host, so that another
site can't reach it through a name of its own, and as its origin where a browser tells one.

An endpoint that has ended is started again by a person, never by a page: ComfyUI's asks for its
socket every 300 ms for as long as its tab is open, and each time that would rent a GPU anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final
from urllib.parse import urlsplit

import aiohttp
from aiohttp import ClientSession, ClientTimeout, WSMsgType, web

from processor.errors import ConfigError

_HOP_BY_HOP: Final = frozenset(
    {
        *("connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailers"),
        *("transfer-encoding", "upgrade", "host", "origin", "accept-encoding"),
    }
)
_NOT_BACK: Final = _HOP_BY_HOP | {"content-encoding", "content-length"}
"""The client has decoded what comes back, so its length is another."""
_MAX_MESSAGE_BYTES: Final = 256 * 1024 * 1024
_CHUNK_BYTES: Final = 64 * 1024
_ENDED: Final = "the endpoint has ended; load the page anew to start it\n"
_LOCAL: Final = ("127.0.0.1", "localhost")


class Door:
    """Passes on what comes, both ways.

    Args:
        target: the endpoint's URL.
        headers: added to every request; never shown to the browser.
        ended: is told when the endpoint closed a socket; from then on nothing is passed on until
            somebody loads a page.
    """

    def __init__(
        self, target: str, headers: Mapping[str, str], *, ended: Callable[[], None] = lambda: None
    ) -> None:
        self._target = target.rstrip("/")
        self._headers = dict(headers)
        self._session: ClientSession | None = None
        self._ended = ended
        self._is_over = False
        self._life = 0
        """Which start of the endpoint it is: a late farewell of the last one must not end this one."""

    def app(self) -> web.Application:
        app = web.Application(client_max_size=_MAX_MESSAGE_BYTES)
        app.router.add_route("*", "/{path:.*}", self._handle)
        app.cleanup_ctx.append(self._connected)
        return app

    async def _connected(self, _app: web.Application):  # type: ignore[no-untyped-def]
        # No total limit: a WebSocket stays open, and a cold start takes minutes.
        timeout = ClientTimeout(total=None, sock_connect=30)
        async with ClientSession(timeout=timeout, auto_decompress=True) as session:
            self._session = session
            yield

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        if not _is_ours(request):
            return web.Response(status=403, text="only for pages of this address\n")
        if self._is_over:
            if not _is_navigation(request):
                return web.Response(status=503, text=_ENDED)
            self._is_over, self._life = False, self._life + 1
        try:
            if request.headers.get("Upgrade", "").lower() == "websocket":
                return await self._socket(request)
            return await self._http(request)
        except aiohttp.ClientError as error:
            return web.Response(status=502, text=f"the endpoint does not answer: {error}\n")

    async def _http(self, request: web.Request) -> web.StreamResponse:
        assert self._session is not None  # noqa: S101 - set before the first request
        body = request.content if request.can_read_body else None
        async with self._session.request(
            request.method,
            self._target + request.raw_path,
            headers=self._forwarded(request),
            data=body,
            allow_redirects=False,
        ) as answer:
            kept = {name: value for name, value in answer.headers.items() if name.lower() not in _NOT_BACK}
            if location := kept.get("Location"):
                kept["Location"] = self._local(location)
            reply = web.StreamResponse(status=answer.status, headers=kept)
            await reply.prepare(request)
            async for piece in answer.content.iter_chunked(_CHUNK_BYTES):
                await reply.write(piece)
            await reply.write_eof()
            return reply

    async def _socket(self, request: web.Request) -> web.StreamResponse:
        assert self._session is not None  # noqa: S101 - set before the first request
        url = self._target.replace("http", "ws", 1) + request.raw_path
        life = self._life
        async with self._session.ws_connect(
            url, headers=self._headers, max_msg_size=_MAX_MESSAGE_BYTES
        ) as there:
            here = web.WebSocketResponse(max_msg_size=_MAX_MESSAGE_BYTES)
            await here.prepare(request)
            out, back = asyncio.create_task(_pump(here, there)), asyncio.create_task(_pump(there, here))
            await asyncio.wait([out, back], return_when=asyncio.FIRST_COMPLETED)
            if not out.done() and life == self._life and not self._is_over:
                self._is_over = True
                self._ended()
            for pump in (out, back):
                pump.cancel()
            await here.close()
            return here

    def _local(self, location: str) -> str:
        """Where a redirect leads, seen from here: past this door a browser has no headers to show."""
        rest = location.removeprefix(self._target)
        if rest == location or rest[:1] not in ("", "/", "?", "#"):
            return location
        return rest if rest.startswith("/") else f"/{rest}"

    def _forwarded(self, request: web.Request) -> dict[str, str]:
        kept = {name: value for name, value in request.headers.items() if name.lower() not in _HOP_BY_HOP}
        return {**kept, **self._headers}


Socket = web.WebSocketResponse | aiohttp.ClientWebSocketResponse


async def _pump(source: Socket, target: Socket) -> None:
    async for message in source:
        with suppress(ConnectionError):
            if message.type is WSMsgType.TEXT:
                await target.send_str(message.data)
            elif message.type is WSMsgType.BINARY:
                await target.send_bytes(message.data)


def _is_ours(request: web.Request) -> bool:
    if urlsplit(f"//{request.host}").hostname not in _LOCAL:
        return False
    origin = request.headers.get("Origin")
    return origin is None or urlsplit(origin).netloc == request.host


def _is_navigation(request: web.Request) -> bool:
    """Whether a person loads a page, as the browser says; what says nothing means it with `GET /`."""
    mode = request.headers.get("Sec-Fetch-Mode")
    if mode is not None:
        return mode == "navigate"
    is_socket = request.headers.get("Upgrade", "").lower() == "websocket"
    return request.method == "GET" and request.path == "/" and not is_socket


def serve(
    target: str,
    *,
    port: int,
    headers: Mapping[str, str],
    ready: Callable[[str], None],
    ended: Callable[[], None] = lambda: None,
) -> None:
    """Listen on 127.0.0.1 until interrupted.

    Args:
        port: 0 takes a free one.
        ready: is told the local URL.
        ended: see `Door`.
    Raises:
        ConfigError: the port can't be had.
    """
    asyncio.run(_serve(Door(target, headers, ended=ended), port, ready))


async def _serve(door: Door, port: int, ready: Callable[[str], None]) -> None:
    runner = web.AppRunner(door.app(), access_log=None)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, "127.0.0.1", port).start()
        except OSError as error:
            raise ConfigError(
                f"port {port} of this machine can't be had: {error.strerror}",
                where="--port",
                mend="`--port 0` takes a free one",
            ) from None
        host, actual = runner.addresses[0][:2]
        ready(f"http://{host}:{actual}")
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()
