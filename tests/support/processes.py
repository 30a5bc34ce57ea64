"""Runners as processes of their own, and what is left of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path


def start_runner(bucket: Path, *, environ: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
    """`dropbatch run --once` on a folder-bucket, in a session of its own."""
    with log.open("ab") as stream:
        return subprocess.Popen(
            [sys.executable, "-m", "processor.cli", "run", "--once", "--plain", "--bucket", str(bucket)],
            cwd=bucket.parent,
            env={**os.environ, **environ},
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def kill(process: subprocess.Popen[bytes]) -> None:
    """kill -9, as a machine that goes away does it: nobody gets to say a word."""
    process.send_signal(signal.SIGKILL)
    process.wait(30)


def running_in(folder: Path) -> list[int]:
    """Ids of the processes that work in a folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if (entry / "cwd").readlink() == folder and b"run.py" in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def wait_until(condition: Callable[[], bool], *, timeout_s: float, what: str) -> None:
    """Poll until something is so.

    Raises:
        AssertionError: it was not so in time.
    """
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {timeout_s:g} s")
        time.sleep(0.02)
