"""`dropbatch drop --watch`: what appears in a folder is dropped, once it is whole.

A file is sent when its size and time have not changed for a moment and it reads as a job;
a subfolder of pictures when it holds `_READY`. What was sent is remembered in the folder,
so that a restart sends nothing twice.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import watchfiles

from processor.cli import console
from processor.cli.exits import UsageError
from processor.cli.job_files import Changes, dataset_files, read_job_file
from processor.cli.uploads import READY, Dropped, drop_dataset, drop_job
from processor.errors import JobInvalid, StoreUnavailable
from processor.inbox import is_marker
from processor.report import error_line, error_report
from processor.store import Store

SENT = ".dropbatch-sent"
"""One JSON line per drop: name, size, time, key."""

_STABLE_S = 1.0
_PATIENCE_S = 10.0
"""A file that doesn't read as a job may still be being written for this long."""

Signature = tuple[int, int]
"""Size and modification time in ns; of a folder its number of files and newest time."""


def keep_dropping(
    store: Store,
    folders: list[Path],
    changes: Changes,
    *,
    nightly: bool,
    limit_bytes: int,
    stop: threading.Event | None = None,
) -> None:
    """Watch folders until interrupted, or `stop` is set.

    Raises:
        UsageError: a path is no folder.
    """
    for folder in folders:
        if not folder.is_dir():
            raise UsageError("only a folder can be watched", where=str(folder))
    watched = [HotFolder(store, folder, changes, nightly, limit_bytes) for folder in folders]
    console.note(f"watching {', '.join(map(str, folders))}; Ctrl-C ends it")
    # The timeout looks again at files that were too young at their last change.
    for _ in watchfiles.watch(
        *folders, stop_event=stop, yield_on_timeout=True, rust_timeout=500, debounce=200, step=50
    ):
        for hot in watched:
            for item in hot.look():
                print(item.job_id or item.key, flush=True)


class HotFolder:
    """One watched folder."""

    def __init__(self, store: Store, folder: Path, changes: Changes, nightly: bool, limit_bytes: int) -> None:
        self._store = store
        self._folder = folder
        self._changes = changes
        self._nightly = nightly
        self._limit_bytes = limit_bytes
        self._sent = self._read_sent()
        self._seen: dict[str, tuple[Signature, float]] = {}

    def look(self) -> Iterator[Dropped]:
        """Drop what has become whole since the last look."""
        now = time.monotonic()
        for path in sorted(self._folder.iterdir()):
            signature = self._signature(path)
            if signature is None or self._sent.get(path.name) == signature:
                continue
            known, since = self._seen.get(path.name, (None, now))
            if known != signature:
                self._seen[path.name] = (signature, now)
            elif now - since >= _STABLE_S and (item := self._try(path, signature, now - since)):
                yield item

    def _signature(self, path: Path) -> Signature | None:
        """None for what is nothing to drop."""
        if path.name.startswith(".") or is_marker(path.name):
            return None
        try:
            if path.is_dir() and (path / READY).exists():
                stats = [file.stat() for file in dataset_files(path)]
                return len(stats), max((stat.st_mtime_ns for stat in stats), default=0)
            if path.is_file() and path.suffix.lower() in (".json", ".png"):
                stat = path.stat()
                return stat.st_size, stat.st_mtime_ns
        except FileNotFoundError:  # moved away since it was listed
            pass
        return None

    def _try(self, path: Path, signature: Signature, age_s: float) -> Dropped | None:
        try:
            item = self._drop(path)
        except JobInvalid as error:
            if age_s < _PATIENCE_S:
                return None
            console.warn(f"not dropped: {error_line(error_report(error))}")
            self._sent[path.name] = signature
            return None
        except FileNotFoundError:
            return None
        except StoreUnavailable as error:
            console.warn(f"will try again: {error}")
            return None
        self._remember(path, signature, item)
        return item

    def _drop(self, path: Path) -> Dropped:
        if path.is_dir():
            return drop_dataset(self._store, path, dataset_files(path), name=path.name, moved=_unseen)
        job = read_job_file(path, self._changes, limit_bytes=self._limit_bytes)
        return drop_job(self._store, job, nightly=self._nightly, moved=_unseen)

    def _remember(self, path: Path, signature: Signature, item: Dropped) -> None:
        self._sent[path.name] = signature
        line = {"name": path.name, "size": signature[0], "mtime_ns": signature[1], "key": item.key}
        with (self._folder / SENT).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def _read_sent(self) -> dict[str, Signature]:
        sent: dict[str, Signature] = {}
        path = self._folder / SENT
        for line in path.read_text("utf-8").splitlines() if path.exists() else ():
            try:
                entry = json.loads(line)
                sent[entry["name"]] = (entry["size"], entry["mtime_ns"])
            except (ValueError, KeyError, TypeError):  # a line that a crash cut short
                continue
        return sent


def _unseen(_count: int) -> None:
    """Nobody watches single uploads here."""
