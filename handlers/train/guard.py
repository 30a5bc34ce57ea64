"""Runs a command and ends it when whoever started this is gone.

A killed runner can't end its trainer, which would train on as a zombie, for nobody and at
full price. The runner holds the other end of our standard input; when it closes, however
that came, the whole process group goes. Run as a script, with nothing but the standard
library: `python -I guard.py command…`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading

GRACE_S = 10.0


def main(command: list[str]) -> int:
    """Returns the command's exit code; 128 + n if signal n ended it."""
    signal.signal(signal.SIGTERM, lambda *_: None)  # meant for the command, which is in our group
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    threading.Thread(target=_watch, args=(child,), daemon=True).start()
    code = child.wait()
    os.killpg(0, signal.SIGTERM)  # what the command started and left behind
    return code if code >= 0 else 128 - code


def _watch(child: subprocess.Popen[bytes]) -> None:
    while os.read(0, 1024):
        pass
    os.killpg(0, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(GRACE_S)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
