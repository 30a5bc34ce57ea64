"""Engines whose owner was killed: ended, and cleaned away.

A process that dies by SIGKILL can't stop its engine, which would keep a GPU's memory. A
guard, a process of its own, holds the end of a pipe from the owner, and kills the engine
when the pipe breaks. What a killed guard leaves is swept at the next start: each engine's
folder holds a lock of its owner, which the system drops when the owner dies.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO, Final

import structlog

log = structlog.get_logger(__name__)

_GUARD: Final = """
import os, signal, sys
if not sys.stdin.buffer.read(1):
    os.killpg(int(sys.argv[1]), signal.SIGKILL)
"""
"""Waits for a byte (the engine has ended) or the end of the pipe (its owner has)."""
_LOCK: Final = "owner.lock"
_PID: Final = "engine.pid"
PREFIX: Final = "engine-"


def guard(pid: int) -> subprocess.Popen[bytes]:
    """Have the engine's process group killed if we die; until `dismiss`."""
    # Python's pipes are not inherited, so no other child keeps this one open after us.
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _GUARD, str(pid)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={},
        start_new_session=True,
    )


def dismiss(process: subprocess.Popen[bytes]) -> None:
    """Tell a guard that its engine has ended."""
    with contextlib.suppress(OSError):
        process.communicate(b".")


def own(root: Path) -> IO[bytes]:
    """Mark an engine's folder as ours until the file is closed or we die."""
    file = (root / _LOCK).open("wb")
    fcntl.flock(file, fcntl.LOCK_EX)
    return file


def note_pid(root: Path, pid: int) -> None:
    """Remember which process runs in this folder."""
    (root / _PID).write_text(str(pid), encoding="ascii")


def sweep(work_dir: Path) -> int:
    """End the engines under `work_dir` whose owners are dead; how many folders went."""
    swept = 0
    for root in work_dir.glob(f"{PREFIX}*"):
        try:
            lock = (root / _LOCK).open("rb")
        except OSError:
            continue  # just being made
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                continue  # its owner lives
            _end(root)
            shutil.rmtree(root, ignore_errors=True)
            swept += 1
    return swept


def _end(root: Path) -> None:
    try:
        pid = int((root / _PID).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return
    # The id may be another process's by now; an engine names its folder on its command line.
    if str(root) in _command_of(pid):
        log.warning("engine.leftover", pid=pid)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)


def _command_of(pid: int) -> str:
    ps = shutil.which("ps")
    if ps is None:
        with contextlib.suppress(OSError):
            return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
        return ""
    command = [ps, "-ww", "-o", "command=", "-p", str(pid)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=10).stdout
