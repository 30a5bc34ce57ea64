"""One WebSocket for many prompts: its messages are given out by prompt id."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import structlog
from websockets.exceptions import WebSocketException
from websockets.sync.client import ClientConnection, connect

log = structlog.get_logger(__name__)

_OPEN_TIMEOUT_S: Final = 10.0
_CLOSE_TIMEOUT_S: Final = 1.0
"""Nothing is lost with a socket that an engine does not close for its part."""
_PING_S: Final = 20.0
_PONG_S: Final = 60.0
"""A busy engine answers pings late: Python code in a node holds the interpreter."""
_MAX_MESSAGE_BYTES: Final = 64 * 1024**2
_DELAYS_S: Final = (0.05, 0.2, 0.5, 1.0, 2.0)


@dataclass(frozen=True, slots=True)
class Message:
    """What the engine said of one prompt."""

    type: str
    data: dict[str, Any]


LOST: Final = Message("lost", {})
"""The socket broke: what was said meanwhile is gone."""
BACK: Final = Message("back", {})
"""The socket is open again, under another client id: of a prompt sent before, nothing is heard any more."""

Receive = Callable[[Message], None]
"""Called in the listener's thread with each message of a prompt; must return quickly."""


class Listener:
    """Keeps one socket open from the first `follow` to `close`, reconnecting as needed.

    Args:
        url_of: from a client id to `ws://…/ws?clientId=…`. Each connection gets an id of its own:
            ComfyUI forgets an id when any socket of it ends, so that one which it notices late
            to be dead would silence the one that took its place (ComfyUI #16010).
    """

    def __init__(self, url_of: Callable[[str], str], *, headers: dict[str, str] | None = None) -> None:
        self._url_of = url_of
        self._headers = headers or {}
        self._lock = threading.Lock()
        self._followers: dict[str, Receive] = {}
        self._thread: threading.Thread | None = None
        self._socket: ClientConnection | None = None
        self._open = threading.Event()
        self._closed = threading.Event()
        self.client_id = uuid.uuid4().hex
        """What prompts are to be sent under, to be heard of."""

    def follow(self, prompt_id: str, receive: Receive) -> None:
        """From now on, hand over this prompt's messages; call it before the prompt is sent."""
        with self._lock:
            self._followers[prompt_id] = receive
            if self._thread is None and not self._closed.is_set():
                self._thread = threading.Thread(target=self._listen, name="comfyui-socket", daemon=True)
                self._thread.start()

    def unfollow(self, prompt_id: str) -> None:
        with self._lock:
            self._followers.pop(prompt_id, None)

    def wait_open(self, timeout_s: float) -> bool:
        """Whether the socket is open, waiting up to `timeout_s` for it."""
        return self._open.wait(timeout_s)

    def hears(self, client_id: str) -> bool:
        """Whether messages to this client id reach us now."""
        return self._open.is_set() and client_id == self.client_id

    def drop(self) -> None:
        """Break the socket as a bad network would; it is opened again."""
        if (connection := self._socket) is not None:
            self._open.clear()  # whoever sends a prompt next waits for the new one
            with contextlib.suppress(OSError):  # it is broken already
                connection.socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._closed.set()
        if (connection := self._socket) is not None:
            connection.close()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(_OPEN_TIMEOUT_S)

    def _listen(self) -> None:
        failures = 0
        while not self._closed.is_set():
            client_id = uuid.uuid4().hex
            try:
                connection = connect(
                    self._url_of(client_id),
                    additional_headers=self._headers,
                    open_timeout=_OPEN_TIMEOUT_S,
                    close_timeout=_CLOSE_TIMEOUT_S,
                    ping_interval=_PING_S,
                    ping_timeout=_PONG_S,
                    max_size=_MAX_MESSAGE_BYTES,
                    compression=None,
                    proxy=None,
                )
            except (OSError, TimeoutError, WebSocketException) as error:
                self._closed.wait(_DELAYS_S[min(failures, len(_DELAYS_S) - 1)])
                failures += 1
                log.debug("comfyui.socket.unreachable", error=type(error).__name__, failures=failures)
                continue
            failures = 0
            self._receive(connection, client_id)

    def _receive(self, connection: ClientConnection, client_id: str) -> None:
        self._socket = connection
        self.client_id = client_id
        try:
            with connection:
                self._tell_all(BACK)
                self._open.set()
                if self._closed.is_set():  # while it was being opened: `close` has not seen it
                    return
                for text in connection:
                    # Binary frames are preview pictures.
                    if isinstance(text, str):
                        self._give_out(text)
        except (OSError, WebSocketException):
            pass
        finally:
            self._socket = None
            self._open.clear()
            self._tell_all(LOST)

    def _give_out(self, text: str) -> None:
        try:
            message = json.loads(text)
            data = message["data"]
            receive = self._followers.get(data.get("prompt_id"))
        except (ValueError, KeyError, AttributeError, TypeError):
            return
        if receive is not None:
            receive(Message(str(message.get("type")), data))

    def _tell_all(self, message: Message) -> None:
        with self._lock:
            followers = list(self._followers.values())
        for receive in followers:
            receive(message)
