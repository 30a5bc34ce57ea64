"""The WebSockets: who listens, and messages on their way to them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any
from uuid import uuid4

from aiohttp import WSMsgType, web


class Hub:
    """Delivers messages in order, each socket at its own pace.

    Args:
        greeting: the first status for someone who connects.
        backlog: messages kept for a socket that does not read; then it is closed, so that a stalled
            client costs neither memory nor the others' time.
    """

    def __init__(self, greeting: Callable[[], dict[str, Any]], backlog: int) -> None:
        self._greeting = greeting
        self._backlog = backlog
        self._outboxes: dict[str, asyncio.Queue[str | None]] = {}

    async def serve(
        self, request: web.Request, *, current_node: Callable[[str], str | None]
    ) -> web.WebSocketResponse:
        """Answer `/ws` for as long as the client stays.

        Args:
            current_node: what runs now for a client id, told to one who comes back.
        """
        socket = web.WebSocketResponse(heartbeat=None)
        await socket.prepare(request)
        client_id = request.query.get("clientId") or uuid4().hex
        outbox: asyncio.Queue[str | None] = asyncio.Queue(self._backlog)
        self._outboxes[client_id] = outbox  # a client that comes back replaces its earlier socket
        outbox.put_nowait(_message("status", {"status": self._greeting(), "sid": client_id}))
        node = current_node(client_id)
        if node is not None:
            outbox.put_nowait(_message("executing", {"node": node}))
        writer = asyncio.create_task(_write(socket, outbox))
        try:
            async for message in socket:
                if message.type == WSMsgType.TEXT and '"feature_flags"' in message.data[:100]:
                    self.send("feature_flags", {"supports_preview_metadata": False}, client_id)
        finally:
            writer.cancel()
            if self._outboxes.get(client_id) is outbox:
                del self._outboxes[client_id]
        return socket

    def send(self, event: str, data: dict[str, Any], client_id: str | None) -> None:
        """Hand a message to one client, or (None) to all. On the event loop's thread; never waits."""
        if client_id is None:
            outboxes = list(self._outboxes.values())
        else:
            outboxes = [self._outboxes[client_id]] if client_id in self._outboxes else []
        if outboxes:
            text = _message(event, data)
            for outbox in outboxes:
                _post(outbox, text)


def _message(event: str, data: dict[str, Any]) -> str:
    return json.dumps({"type": event, "data": data})


def _post(outbox: asyncio.Queue[str | None], text: str) -> None:
    try:
        outbox.put_nowait(text)
    except asyncio.QueueFull:
        outbox.get_nowait()
        outbox.put_nowait(None)


async def _write(socket: web.WebSocketResponse, outbox: asyncio.Queue[str | None]) -> None:
    while (text := await outbox.get()) is not None:
        try:
            await socket.send_str(text)
        except ConnectionError:
            return
    await socket.close(code=1008, message=b"the client does not read")
