"""The engine's output: the last lines in memory, more of it in a bounded file."""

from __future__ import annotations

import threading
from collections import deque
from pathlib import Path
from typing import IO, Final

from processor.redact import redact

_LINES: Final = 4_000
_LINE_CHARS: Final = 2_000
_FILE_BYTES: Final = 16 * 1024**2


class EngineLog:
    """Captures a child's output from its pipe; the lines of any moment can be had back.

    The file holds at most twice 16 MiB: it is rotated once full.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._lines: deque[str] = deque(maxlen=_LINES)
        self._count = 0
        self._thread: threading.Thread | None = None

    def follow(self, pipe: IO[bytes]) -> None:
        """Read the pipe to its end in a thread of its own, which keeps the child from blocking."""
        self._thread = threading.Thread(target=self._read, args=(pipe,), name="engine-log", daemon=True)
        self._thread.start()

    def join(self, timeout_s: float) -> None:
        if self._thread is not None:
            self._thread.join(timeout_s)

    def mark(self) -> int:
        """A moment, for `since`."""
        with self._lock:
            return self._count

    def since(self, mark: int) -> str:
        """The lines after a moment, as far as they are still kept, without secrets."""
        with self._lock:
            wanted = min(self._count - mark, len(self._lines))
            lines = list(self._lines)[len(self._lines) - wanted :] if wanted > 0 else []
        return redact("\n".join(lines))

    def tail(self, lines: int = 20) -> list[str]:
        """The last lines, without secrets."""
        with self._lock:
            return [redact(line) for line in list(self._lines)[-lines:]]

    def _read(self, pipe: IO[bytes]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file, written = self.path.open("wb"), 0
        try:
            with pipe:
                for raw in iter(lambda: pipe.readline(64 * 1024), b""):
                    # A progress bar redraws its line: only its last state is worth a line.
                    text = raw.decode("utf-8", "replace").rstrip("\r\n").rpartition("\r")[2].rstrip()
                    if not text:
                        continue
                    with self._lock:
                        self._lines.append(text[:_LINE_CHARS])
                        self._count += 1
                    line = redact(text[:_LINE_CHARS]).encode() + b"\n"
                    if written + len(line) > _FILE_BYTES:
                        file.close()
                        self.path.replace(self.path.with_suffix(".1.log"))
                        file, written = self.path.open("wb"), 0
                    file.write(line)
                    file.flush()
                    written += len(line)
        finally:
            file.close()
