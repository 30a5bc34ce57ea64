"""Python processes that start warm: forked from one that has the libraries loaded already.

A container needs two seconds of CPU to import modal, boto3 and pydantic before it does anything, and a test
run starts two hundred. So they are forked from a process that imported those, and nothing of this
project: what they run, `python -m modal._container_entrypoint` or `python -m modal`, they then run as
`python -m` would, with an environment, a working directory, a session and a `sys.path` of their own.

`python tests/loopback/warm.py SOCKET` is that process. Each connection asks for one child, by a line of
JSON, and is told its pid and then its exit code; the process ends with its standard input.
"""

from __future__ import annotations

import asyncio
import atexit
import functools
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

_ENTRYPOINT = "modal._container_entrypoint"
_LIBRARIES = (
    _ENTRYPOINT,
    "modal.cli.entry_point",
    "boto3.session",
    "botocore.client",
    "botocore.httpsession",
    "s3transfer.manager",
    "pydantic",
    "pydantic_settings",
    "structlog",
    "jinja2",
    "typer",
    "rich.progress",
    "yaml",
    "aiohttp.web",
    "websockets.sync.client",
    "PIL.Image",
)
_READY_S = 60.0


@dataclass(frozen=True, slots=True)
class Command:
    """`python -m MODULE ARGUMENTS`."""

    module: str
    arguments: list[str]
    cwd: str
    env: dict[str, str]
    output: str
    """The file that standard output and error are appended to."""


class Child:
    """A process that was started here; its pid at once, its exit code when it ends."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pid: int) -> None:
        self._reader, self._writer, self.pid = reader, writer, pid

    async def wait(self) -> int:
        """As `Popen.returncode`."""
        line = await self._reader.readline()
        self._writer.close()
        return int(json.loads(line)["returncode"])


async def start(command: Command) -> Child:
    """Start a process without waiting for it."""
    reader, writer = await asyncio.open_unix_connection(_nursery())
    writer.write(_line(asdict(command)))
    return Child(reader, writer, int(json.loads(await reader.readline())["pid"]))


def run(command: Command, timeout_s: float) -> int:
    """Run a process to its end; its exit code.

    Raises:
        TimeoutError: it took longer, and is killed.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(_nursery())
        connection.sendall(_line(asdict(command)))
        connection.settimeout(timeout_s)
        with connection.makefile("rb") as replies:
            pid = int(json.loads(replies.readline())["pid"])
            try:
                return int(json.loads(replies.readline())["returncode"])
            except TimeoutError:
                os.killpg(pid, signal.SIGKILL)
                raise


@functools.cache
def _nursery() -> str:
    """The socket of the process that forks; there is one for this whole process."""
    folder = tempfile.mkdtemp(prefix="warm-", dir="/tmp")  # a unix socket's path has at most 107 bytes
    path = str(Path(folder) / "s")
    process = subprocess.Popen(
        [sys.executable, "-I", __file__, path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "MODAL_CONFIG_PATH": os.devnull},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdout.readline()  # until it listens
    process.stdout.close()

    def end() -> None:
        assert process.stdin is not None
        process.stdin.close()
        process.wait(_READY_S)
        Path(path).unlink(missing_ok=True)
        Path(folder).rmdir()

    atexit.register(end)
    return path


def _line(value: object) -> bytes:
    return json.dumps(value).encode() + b"\n"


# -- what follows runs in the process that forks, and in its children ------------------------------


def _serve(path: str) -> Command | None:
    """Fork until standard input ends. Returns None then, and in each child what it is to run."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(64)
    woken, wake = socket.socketpair()
    wake.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake.fileno())
    waiting: dict[int, socket.socket] = {}
    with selectors.DefaultSelector() as selector:
        for each in (listener, woken, sys.stdin):
            selector.register(each, selectors.EVENT_READ)
        os.write(sys.stdout.fileno(), b"ready\n")
        while True:
            ready = {key.fileobj for key, _ in selector.select()}
            if woken in ready:
                woken.recv(4096)
                _reap(waiting)
            if sys.stdin in ready:
                return None
            if listener in ready:
                connection, _ = listener.accept()
                with connection.makefile("rb") as lines:
                    command = Command(**json.loads(lines.readline()))
                if (pid := os.fork()) == 0:
                    signal.set_wakeup_fd(-1)
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    os.setsid()  # so that what it starts can be ended with it; before anyone knows the pid
                    connection.sendall(_line({"pid": os.getpid()}))
                    for each in (listener, woken, wake, connection, *waiting.values()):
                        each.close()
                    return command
                waiting[pid] = connection


def _reap(waiting: dict[int, socket.socket]) -> None:
    while waiting:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        with suppress(OSError), waiting.pop(pid) as connection:
            connection.sendall(_line({"returncode": os.waitstatus_to_exitcode(status)}))


def _become(command: Command, path: list[str]) -> None:
    """Turn this child into what `python -m` would have started."""
    for target, name, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, command.output, os.O_WRONLY | os.O_APPEND | os.O_CREAT),
        (2, command.output, os.O_WRONLY | os.O_APPEND | os.O_CREAT),
    ):
        opened = os.open(name, flags, 0o644)
        os.dup2(opened, target)
        os.close(opened)
    os.chdir(command.cwd)
    os.environ.clear()
    os.environ.update(command.env)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(write_through=True)  # type: ignore[union-attr]  # the interpreter's own
    given = [each for each in command.env.get("PYTHONPATH", "").split(os.pathsep) if each]
    sys.path[:] = [command.cwd, *given, *path]
    sys.argv[:] = [command.module, *command.arguments]
    # As the interpreter's start would: the first on the path.
    for each in given:
        if (custom := Path(each) / "sitecustomize.py").is_file():
            runpy.run_path(str(custom))
            break
    runpy.run_module(command.module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    for library in _LIBRARIES:
        importlib.import_module(library)
    # Imported for what it imports; runpy wants to find it untouched.
    del sys.modules[_ENTRYPOINT]
    gc.freeze()
    if (wanted := _serve(sys.argv[1])) is not None:
        _become(wanted, list(sys.path))
