"""`dropbatch drop --watch`: what appears in a folder is dropped, once it is whole.

A file is sent when its size and time have not changed for a moment and it reads as a job, and
the files that it reads have not changed for as long; a subfolder of pictures when it holds
`_READY`, and again when that is a newer one: each change of a caption would be a training. What was
sent is remembered in the folder, so that a restart sends nothing twice.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import watchfiles

from processor.cli import console
from processor.cli.exits import UsageError
from processor.cli.job_files import Changes, dataset_files, files_beside, read_job_file
from processor.cli.uploads import Dropped, drop_dataset, drop_job
from processor.datasets import READY
from processor.errors import CapReached, InvalidKey, JobInvalid, StoreUnavailable
from processor.inbox import is_marker
from processor.report import error_line, error_report
from processor.store import Store

SENT = ".dropbatch-sent"
"""One JSON line per drop: name, size, times, key."""

_STABLE_S = 1.0
_PATIENCE_S = 10.0
"""A file that doesn't read as a job may still be being written for this long."""
_AGAIN_S = 30.0
"""Until the next try after the store was not there, or a daily cap was used up."""

Signature = tuple[int, int, int]
"""Size and modification time in ns, and 0; of a folder its number of files, newest time, and `_READY`'s."""


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
            for item in hot.look(time.monotonic()):
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
        self._left: dict[str, Signature] = {}
        """What is not to be sent as long as it stays as it is."""
        self._told: set[str] = set()
        self._again_s = 0.0
        """Nothing is tried before; 0 while the store takes what it is given."""
        self._reads: dict[Path, tuple[Signature, frozenset[Path]]] = {}
        """Job file → the files beside it that it reads, whether they are there yet or not."""
        self._seen: dict[Path, tuple[Signature, float]] = {}
        self._beside: dict[Path, list[Path]] = {}
        """Job file → the files that it was held back for, at the last look."""
        self._remembers = True

    def look(self, now_s: float) -> Iterator[Dropped]:
        """Drop what has become whole since the last look.

        Args:
            now_s: monotonic.
        """
        inputs: set[Path] | None = None
        for path in sorted(self._folder.iterdir()):
            signature = self._signature(path)
            if signature is None or self._is_done(path, signature):
                continue
            age_s = self._unchanged_s(path, signature, now_s)
            if age_s < _STABLE_S or now_s < self._again_s:
                continue
            if path.suffix.lower() == ".png":
                inputs = self._inputs() if inputs is None else inputs
                if {path, Path(os.path.normpath(path))} & inputs:
                    self._left[path.name] = signature
                    continue
            if item := self._try(path, signature, age_s, now_s):
                yield item

    def _is_done(self, path: Path, signature: Signature) -> bool:
        sent = self._sent.get(path.name)
        if signature in (sent, self._left.get(path.name)):
            return True
        if sent is None or not signature[2] or sent[2] != signature[2]:
            return False
        self._tell_once(f"{path.name} has changed since it was sent; a new {READY} in it sends it again")
        return True

    def _tell_once(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            console.warn(text)

    def _unchanged_s(self, path: Path, signature: Signature, now_s: float) -> float:
        known, since_s = self._seen.get(path, (None, now_s))
        if known != signature:
            self._seen[path] = (signature, now_s)
            return 0.0
        return now_s - since_s

    def _signature(self, path: Path) -> Signature | None:
        """None for what is nothing to drop."""
        if path.name.startswith(".") or is_marker(path.name):
            return None
        try:
            if path.is_dir() and (path / READY).exists():
                stats = [file.stat() for file in dataset_files(path)]
                newest_ns = max((stat.st_mtime_ns for stat in stats), default=0)
                return len(stats), newest_ns, (path / READY).stat().st_mtime_ns
            if path.is_file() and path.suffix.lower() in (".json", ".png"):
                return _file_signature(path)
        except FileNotFoundError:  # moved away since it was listed
            pass
        except OSError as error:
            # Not marked as sent: that would forget what was sent before, and send it again.
            self._tell_once(f"can't be looked at: {error_line(error_report(error))}")
        return None

    def _try(self, path: Path, signature: Signature, age_s: float, now_s: float) -> Dropped | None:
        try:
            item = self._drop(path, now_s)
        except FileNotFoundError:
            return None
        except (StoreUnavailable, CapReached) as error:
            if not self._again_s:
                console.warn(f"will try again: {error}")
            self._again_s = now_s + _AGAIN_S
            return None
        # One file that can't be read, or whose name can't be a key, must not keep the others waiting.
        except (JobInvalid, InvalidKey, OSError) as error:
            if age_s < _PATIENCE_S:
                return None
            console.warn(f"not dropped: {error_line(error_report(error))}")
            self._left[path.name] = signature
            return None
        if item is not None:
            self._again_s = 0.0
            self._remember(path, signature, item)
        return item

    def _drop(self, path: Path, now_s: float) -> Dropped | None:
        """None while a file that the job reads may still be being written."""
        if path.is_dir():
            return drop_dataset(self._store, path, dataset_files(path), name=path.name, moved=_unseen)
        # To read a job is to hash what goes up with it: not at every look at a file that still grows.
        if self._holds_back(path, [file for file in self._beside.get(path, ()) if file.exists()], now_s):
            return None
        job = read_job_file(path, self._changes, limit_bytes=self._limit_bytes)
        if self._nightly:
            job.hold_for_the_night()
        # And after: the hash must be of the bytes that go up.
        if self._holds_back(path, list(job.uploads.values()), now_s):
            return None
        return drop_job(self._store, job, nightly=self._nightly, moved=_unseen)

    def _inputs(self) -> set[Path]:
        """The files that are there for jobs beside them, and so no jobs of their own."""
        found = set(self._changes.inputs.values())
        for job in self._folder.glob("*.json"):
            if not is_marker(job.name):
                with suppress(OSError):  # gone since it was listed
                    found |= self._read_by(job)
        return found

    def _read_by(self, job: Path) -> frozenset[Path]:
        signature = _file_signature(job)
        known, reads = self._reads.get(job, (None, frozenset[Path]()))
        if known != signature:
            reads = frozenset(files_beside(job, limit_bytes=self._limit_bytes))
            self._reads[job] = signature, reads
        return reads

    def _holds_back(self, path: Path, beside: list[Path], now_s: float) -> bool:
        """Whether a file beside a job has changed more lately than the job file itself may have."""
        ages_s = [self._unchanged_s(file, _file_signature(file), now_s) for file in beside]
        held = any(age_s < _STABLE_S for age_s in ages_s)
        self._beside[path] = beside if held else []
        return held

    def _remember(self, path: Path, signature: Signature, item: Dropped) -> None:
        self._sent[path.name] = signature
        size, mtime_ns, ready_ns = signature
        line = {"name": path.name, "size": size, "mtime_ns": mtime_ns, "ready_ns": ready_ns, "key": item.key}
        try:
            with (self._folder / SENT).open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        except OSError as error:
            # It is dropped all the same; to end here would drop it again at each restart.
            if self._remembers:
                self._remembers = False
                said = error_line(error_report(error))
                console.warn(f"what is sent can't be written down, so a restart would send it again: {said}")

    def _read_sent(self) -> dict[str, Signature]:
        sent: dict[str, Signature] = {}
        path = self._folder / SENT
        for line in path.read_text("utf-8").splitlines() if path.exists() else ():
            try:
                entry = json.loads(line)
                sent[entry["name"]] = (entry["size"], entry["mtime_ns"], entry.get("ready_ns", 0))
            except (ValueError, KeyError, TypeError):  # a line that a crash cut short
                continue
        return sent


def _file_signature(path: Path) -> Signature:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns, 0


def _unseen(_count: int) -> None:
    """Nobody watches single uploads here."""
