"""Scratch folders that outlive no process: what a killed one leaves, the next one removes.

Each folder is locked for as long as it is used. The kernel drops the lock when the process
ends, however it ends, so whoever can take it knows that the folder is nobody's.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

_PREFIX = "scratch-"
"""Nothing else in the parent is ever touched."""
_LOCK = ".scratch-lock"
"""In the parent: whoever makes a folder and has not locked it yet holds this."""


class ScratchFolder:
    """A new empty folder of this process's own; close it to remove it and all that is in it.

    Args:
        parent: made if it is missing; on a local file system, where locks are kept.
    """

    def __init__(self, parent: Path) -> None:
        parent.mkdir(parents=True, exist_ok=True)
        with _locked(parent):
            # No underscore in the name: the trainer reads a meaning from some texts in a path.
            self.path = (parent / f"{_PREFIX}{secrets.token_hex(8)}").resolve()
            self.path.mkdir(mode=0o700)
            self._handle: int | None = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(self._handle, fcntl.LOCK_EX)

    def close(self) -> None:
        """Remove it. Idempotent."""
        handle, self._handle = self._handle, None
        if handle is not None:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(handle)


@contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """A `ScratchFolder` for the time of a block."""
    folder = ScratchFolder(parent)
    try:
        yield folder.path
    finally:
        folder.close()


class TaskFolders:
    """An empty folder for each of many small tasks, below one `ScratchFolder`. Thread-safe.

    The locks of one cost more than a small task does, and so does making a folder: what a
    task leaves empty, the next one gets.
    """

    def __init__(self, parent: Path) -> None:
        self._parent = parent
        self._lock = threading.Lock()
        self._numbers = count(1)
        self._free: list[Path] = []
        self._scratch: ScratchFolder | None = None

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """What is in it when the block ends is removed, with the folder itself."""
        path = self._take()
        try:
            yield path
        finally:
            if _is_empty(path):
                with self._lock:
                    self._free.append(path)
            else:
                shutil.rmtree(path, ignore_errors=True)

    def close(self) -> None:
        """Remove what is left. Idempotent."""
        with self._lock:
            scratch, self._scratch = self._scratch, None
            self._free.clear()
        if scratch is not None:
            scratch.close()

    def _take(self) -> Path:
        with self._lock:
            if self._free:
                return self._free.pop()
            if self._scratch is None:
                self._scratch = ScratchFolder(self._parent)
            path = self._scratch.path / str(next(self._numbers))
        path.mkdir(mode=0o700)
        return path


def _is_empty(path: Path) -> bool:
    try:
        with os.scandir(path) as entries:
            return next(entries, None) is None
    except OSError:
        return False


def remove_abandoned(parent: Path) -> int:
    """Remove the scratch folders whose processes are dead.

    Returns:
        How many.
    """
    if not parent.is_dir():
        return 0
    with _locked(parent):
        dead = [(path, handle) for path in parent.glob(f"{_PREFIX}*") if (handle := _take(path)) is not None]
    for path, handle in dead:
        shutil.rmtree(path, ignore_errors=True)
        os.close(handle)
    return len(dead)


def _take(path: Path) -> int | None:
    """An open handle of a folder that was locked by nobody, and is now by us."""
    with suppress(OSError):
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(handle)  # in use
        else:
            return handle
    return None


@contextmanager
def _locked(parent: Path) -> Iterator[None]:
    with (parent / _LOCK).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
