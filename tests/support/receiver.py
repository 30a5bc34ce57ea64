"""An HTTP server on loopback that keeps what it is sent: whoever is told of jobs."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Received:
    """What a server on loopback was sent, and what it answers."""

    url: str = ""
    answers: list[int] = field(default_factory=list)
    requests: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)


@contextmanager
def server(reply: Callable[[str, bytes], dict[str, Any]] | None = None) -> Iterator[Received]:
    """Answers `answers` one by one, then 200, with `reply`'s JSON."""
    received = Received()

    class Answering(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers.get("content-length", 0))
            body = self.rfile.read(length)
            received.requests.append((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
            status = received.answers.pop(0) if received.answers else 200
            answer = json.dumps(reply(self.path, body) if reply else {}).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_args: object) -> None:
            return

    http = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    received.url = f"http://127.0.0.1:{http.server_address[1]}"
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    try:
        yield received
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
