"""The engine's socket, where opening and closing it cross."""

from __future__ import annotations

import threading

from websockets.http11 import Request
from websockets.sync.server import ServerConnection, serve

from handlers.render.listener import Listener

PATIENCE_S = 5.0


def test_closing_while_the_socket_is_being_opened() -> None:
    """The socket that opens a moment later is closed again, not listened to."""
    asked, closing = threading.Event(), threading.Event()

    def answer_late(_connection: ServerConnection, _request: Request) -> None:
        asked.set()
        closing.wait(PATIENCE_S)

    def listen(connection: ServerConnection) -> None:
        for _ in connection:
            pass

    with serve(listen, "127.0.0.1", 0, process_request=answer_late) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = server.socket.getsockname()[1]
        listener = Listener(lambda client_id: f"ws://127.0.0.1:{port}/ws?clientId={client_id}")
        listener.follow("a", lambda _: None)
        assert asked.wait(PATIENCE_S)
        ending = threading.Thread(target=listener.close)
        ending.start()
        assert listener._closed.wait(PATIENCE_S)
        closing.set()
        ending.join(PATIENCE_S)
        assert not ending.is_alive()
