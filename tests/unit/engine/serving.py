"""A server that speaks ComfyUI's protocol, and a plain client that notes everything it says."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

import urllib3
from websockets.sync.client import ClientConnection, connect

DEADLINE_S = 300.0

Graph = dict[str, Any]


@dataclass(frozen=True)
class Reply:
    """An HTTP answer, whatever its status."""

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Server:
    """Where one answers, and where its files are (None for one that someone else started)."""

    url: str
    folder: Path | None
    is_engine: bool

    def request(self, path: str, body: Any = None, *, raw: bytes | None = None, **headers: str) -> Reply:
        """GET, or POST when there is a body."""
        if body is not None:
            raw = json.dumps(body).encode()
        method = "GET" if raw is None else "POST"
        answer = urllib3.request(
            method,
            self.url + path,
            body=raw,
            headers={"Content-Type": "application/json", **headers},
            timeout=DEADLINE_S,
            retries=False,
        )
        return Reply(answer.status, answer.data, dict(answer.headers))

    def view(self, item: dict[str, str]) -> bytes:
        """The content of a file that the history names."""
        return self.request("/view?" + urllib.parse.urlencode(item)).body

    @contextmanager
    def listener(self, client_id: str | None = None) -> Iterator[Listener]:
        """A client with an open WebSocket."""
        client_id = client_id or uuid4().hex
        url = self.url.replace("http", "ws", 1) + f"/ws?clientId={client_id}"
        # unread messages must not keep the socket from closing
        with connect(url, max_size=None, max_queue=None) as socket:
            yield Listener(self, socket, client_id)


@dataclass
class Listener:
    """A client: what it sends, and all that it is told."""

    server: Server
    socket: ClientConnection
    client_id: str
    messages: list[dict[str, Any]] = field(default_factory=list)

    def until(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Note messages up to the first that is wanted."""
        while True:
            received = self.socket.recv(timeout=DEADLINE_S)
            if isinstance(received, str):
                self.messages.append(json.loads(received))
                if wanted(self.messages[-1]):
                    return self.messages[-1]

    def until_idle(self) -> None:
        """Note messages up to the one that ends a prompt."""
        self.until(lambda message: message["type"] == "executing" and message["data"]["node"] is None)

    def post(self, graph: Any, **more: Any) -> Reply:
        """Queue a prompt."""
        return self.server.request("/prompt", {"prompt": graph, "client_id": self.client_id} | more)

    def run(self, graph: Graph, **more: Any) -> dict[str, Any]:
        """Run a prompt to its end; its history entry."""
        reply = self.post(graph, **more)
        assert reply.status == 200, reply.body
        self.until_idle()
        entry: dict[str, Any] = self.server.request(f"/history/{reply.json['prompt_id']}").json[
            reply.json["prompt_id"]
        ]
        return entry


@contextmanager
def engine(folder: Path, *options: str) -> Iterator[Server]:
    """The built-in engine as a child process, by the command line that a supervisor uses."""
    command = [sys.executable, "-m", "handlers.engine", "--port", "0", *_folders(folder), *options]
    with _child(command, Path.cwd(), lambda line: "listening on" in line) as line:
        yield Server(line.split()[-1], folder, is_engine=True)


@contextmanager
def comfyui(folder: Path) -> Iterator[Server]:
    """The real one of `COMFYUI_DIR` as a child process, or that of `COMFYUI_URL`."""
    if url := os.environ.get("COMFYUI_URL"):
        yield Server(url.rstrip("/"), None, is_engine=False)
        return
    home = Path(os.environ["COMFYUI_DIR"])
    python = os.environ.get("COMFYUI_PYTHON") or str(home / ".venv/bin/python")
    flags = ["--cpu", "--disable-api-nodes", "--database-url", "sqlite:///:memory:"]
    port = "18188"
    command = [python, "main.py", "--listen", "127.0.0.1", "--port", port, *flags, *_folders(folder)]
    with _child(command, home, lambda line: "To see the GUI" in line):
        yield Server(f"http://127.0.0.1:{port}", folder, is_engine=False)


def _folders(folder: Path) -> list[str]:
    flags = []
    for kind in ("input", "output", "temp", "user"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        flags += [f"--{kind}-directory", str(folder / kind)]
    return flags


@contextmanager
def _child(command: list[str], home: Path, is_ready: Callable[[str], bool]) -> Iterator[str]:
    """Start it, give the line that says it answers, and stop it in the end."""
    environment = {"PATH": os.environ["PATH"], "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(Path.cwd())}
    with subprocess.Popen(
        command, cwd=home, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            assert process.stdout is not None
            yield _await_line(process.stdout, is_ready)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()


def _await_line(output: IO[str], is_ready: Callable[[str], bool]) -> str:
    said = []
    for line in output:
        said.append(line)
        if is_ready(line):
            # whatever it says later must not fill the pipe
            threading.Thread(target=lambda: [None for _ in output], daemon=True).start()
            return line.strip()
    raise AssertionError("the server ended:\n" + "".join(said[-20:]))


def node(class_type: str, **inputs: Any) -> Graph:
    """A node of a prompt."""
    return {"class_type": class_type, "inputs": inputs}


def save(source: str, prefix: str = "picture", slot: int = 0) -> Graph:
    """A SaveImage node."""
    return node("SaveImage", images=[source, slot], filename_prefix=prefix)


def empty(color: int = 255, side: int = 16, batch_size: int = 1) -> Graph:
    """An EmptyImage node."""
    return node("EmptyImage", width=side, height=side, batch_size=batch_size, color=color)
