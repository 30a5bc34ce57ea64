"""The trainer as a child process: scrubbed environment, own process group, output by lines."""

from __future__ import annotations

import codecs
import os
import queue
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Final

from handlers.train.trainlog import Pieces, is_bar
from processor.redact import redact

_PASSED_ON: Final = (
    "CUDA_VISIBLE_DEVICES",
    "CUDA_HOME",
    "LD_LIBRARY_PATH",
    "NVIDIA_VISIBLE_DEVICES",
    "NVIDIA_DRIVER_CAPABILITIES",
    "OMP_NUM_THREADS",
    "SSL_CERT_FILE",
)
"""All that the trainer sees of our environment: how to use the GPU, nothing secret."""
_KEPT_LINES: Final = 4000
_KEPT_CHARS: Final = 2000
_CHUNK: Final = 65_536


def scrubbed_environment(home: Path, **more: str) -> dict[str, str]:
    """An environment with nothing of ours in it.

    Args:
        home: a private directory: caches and settings of other runs are out of reach.
    """
    passed = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    return {
        "PATH": "/usr/local/cuda/bin:/usr/local/bin:/usr/bin:/bin",
        "HOME": str(home),
        "TMPDIR": str(home),
        "LANG": "C.UTF-8",
        "PYTHONUNBUFFERED": "1",
        "PYTHONNOUSERSITE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_ALBUMENTATIONS_UPDATE": "1",
        **passed,
        **more,
    }


class Child:
    """A running child; lines come out of `next`, whichever stream they were on.

    Its process group ends with this process, however that ends (see `guard`).
    """

    def __init__(self, command: Sequence[str], *, cwd: Path, env: Mapping[str, str]) -> None:
        guard = Path(__file__).with_name("guard.py")
        self._process = subprocess.Popen(
            [sys.executable, "-I", str(guard), *command],
            cwd=cwd,
            env=dict(env),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._kept: deque[str] = deque(maxlen=_KEPT_LINES)
        self._open = 2
        for stream in (self._process.stdout, self._process.stderr):
            if stream is not None:
                threading.Thread(
                    target=self._read, args=(stream,), name="trainer-output", daemon=True
                ).start()

    @property
    def pid(self) -> int:
        """Of its process group."""
        return self._process.pid

    @property
    def log(self) -> str:
        """What it printed, its end if it was much, without progress bars and secrets."""
        return redact("\n".join(self._kept))

    def next(self, timeout_s: float) -> str | None:
        """The next line; None if none came in time, or none will come: see `ended`."""
        try:
            line = self._lines.get(timeout=timeout_s)
        except queue.Empty:
            return None
        if line is None:
            self._open -= 1
            return None
        if not is_bar(line):
            self._kept.append(line[:_KEPT_CHARS])
        return line

    @property
    def ended(self) -> bool:
        """Whether it has exited and all its output was read."""
        return self._open == 0 and self._process.poll() is not None

    def exit_code(self) -> int:
        """Of the ended command, negative for a signal."""
        code = self._process.wait()
        return 128 - code if code > 128 else code

    def stop(self, grace_s: float) -> None:
        """End the whole group: asked first, then killed. Idempotent."""
        if self._process.poll() is None:
            self._signal(signal.SIGTERM)
            try:
                self._process.wait(grace_s)
            except subprocess.TimeoutExpired:
                self._signal(signal.SIGKILL)
                self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()

    def _signal(self, number: signal.Signals) -> None:
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            return

    def _read(self, stream: IO[bytes]) -> None:
        pieces, decoder = Pieces(), codecs.getincrementaldecoder("utf-8")("replace")
        while chunk := os.read(stream.fileno(), _CHUNK):
            for piece in pieces.feed(decoder.decode(chunk)):
                self._lines.put(piece)
        for piece in pieces.end():
            self._lines.put(piece)
        self._lines.put(None)
        stream.close()
