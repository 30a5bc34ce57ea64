"""Leases that survive their runner's sudden death on this machine.

A runner notes which leases it holds in a file that it keeps locked. The kernel drops the
lock when the process ends, however it ends, so whoever can take the lock knows that the
holder is dead and may carry on at once instead of waiting for the leases to run out.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Final

import structlog

from processor.clock import Clock
from processor.leases.lease import Lease, Leases
from processor.leases.protocol import LeaseStore

log = structlog.get_logger(__name__)

_LONG_AGO: Final = datetime.min.replace(tzinfo=UTC)
"""The end of a dead runner's lease: nobody may take it for one that still holds."""
_MANY = 1_000
"""Notes, after which the file is written anew with what is still held."""


class InheritedLeases(Leases):
    """Leases as in `Leases`, noted in a folder shared by this machine's runners.

    Args:
        folder: one per bucket; it must be on a local file system, where locks are kept.
    """

    def __init__(
        self, store: LeaseStore, clock: Clock, *, lease_s: float, margin_s: float, folder: Path
    ) -> None:
        super().__init__(store, clock, lease_s=lease_s, margin_s=margin_s)
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._said = False
        self._noted: dict[str, list[Lease]] = {}
        """What whoever reads the notes would find."""
        self._written = 0
        # What a job's dead holders had or asked for; which of them has it, the lease store knows.
        self._left = _take_over(folder)
        self._path = folder / f"{os.getpid()}-{os.urandom(4).hex()}.jsonl"
        self._notes = _open_locked(self._path)
        # Whoever inherits from us inherits these, should we die before they are taken.
        for lease in (each for left in self._left.values() for each in left):
            self._hold(lease.job_id, lease.epoch, lease.nonce)

    def acquire(self, job_id: str, *, nonce: str, heir_of: Lease | None = None) -> Lease | None:
        """As `Leases.acquire`; a lease that a dead runner of this machine held is inherited."""
        with self._lock:
            left = self._left.pop(job_id, [])
        # Noted before it is asked for: who dies before the reply may hold the epoch after the known one.
        self._hold(job_id, max((each.epoch for each in left), default=0), nonce)
        lease = None
        for heir in [heir_of] if heir_of or not left else reversed(left):
            lease = lease or super().acquire(job_id, nonce=nonce, heir_of=heir)
        if lease is None:
            self._note({"job": job_id, "released": True})
        else:
            self._hold(job_id, lease.epoch, nonce)
        return lease

    def release(self, lease: Lease) -> None:
        super().release(lease)
        self._note({"job": lease.job_id, "released": True})

    def close(self) -> None:
        """End on purpose: what is still held runs out by itself."""
        with suppress(OSError):  # what could not be written before can't be now
            self._notes.close()
        self._path.unlink(missing_ok=True)

    def _hold(self, job_id: str, epoch: int, nonce: str) -> None:
        self._note(_held(Lease(job_id, epoch, nonce, _LONG_AGO)))

    def _note(self, note: dict[str, object]) -> None:
        """Notes only save waiting, should we die: a disk that takes none must not end a job."""
        with self._lock:
            line = json.dumps(note) + "\n"
            _apply(self._noted, line)
            try:
                self._write(line)
            except OSError as error:
                if not self._said:
                    self._said = True
                    log.warning("lease.not_noted", path=str(self._path), why=str(error))

    def _write(self, line: str) -> None:
        self._written += 1
        if self._written > _MANY:
            # In place, for the lock is this file's. Who dies right here leaves leases that run out.
            self._written = 0
            self._notes.truncate(0)
            line = "".join(json.dumps(_held(lease)) + "\n" for left in self._noted.values() for lease in left)
        self._notes.write(line)
        self._notes.flush()


def _held(lease: Lease) -> dict[str, object]:
    return {"job": lease.job_id, "epoch": lease.epoch, "nonce": lease.nonce}


def _open_locked(path: Path) -> IO[str]:
    while True:
        notes = path.open("a", encoding="utf-8")
        fcntl.flock(notes, fcntl.LOCK_EX)
        if _stands(notes):
            return notes
        notes.close()  # before it was locked, a runner that starts as we do took it for a dead one's


def _stands(notes: IO[str]) -> bool:
    """Whether an open file still has its name."""
    return os.fstat(notes.fileno()).st_nlink > 0


def _take_over(folder: Path) -> dict[str, list[Lease]]:
    """What dead runners left, by job id, the latest last; taken once: their files are removed."""
    left: dict[str, list[Lease]] = {}
    for path in sorted(folder.glob("*.jsonl")):
        try:
            notes = path.open("r", encoding="utf-8")
        except OSError:
            continue  # taken over by a runner that starts as we do, or another user's
        with notes:
            try:
                fcntl.flock(notes, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                continue  # its runner is alive
            if not _stands(notes):
                continue  # taken over before we had the lock
            for line in notes:
                _apply(left, line)
            path.unlink(missing_ok=True)
    return left


def _apply(left: dict[str, list[Lease]], line: str) -> None:
    try:
        note = json.loads(line)
        if note.get("released"):
            left.pop(note["job"], None)
            return
        lease = Lease(note["job"], note["epoch"], note["nonce"], _LONG_AGO)
    except (ValueError, KeyError, TypeError):
        return  # the last line of a runner that died while it wrote
    # A runner notes what it asks for, then what it got, under one nonce.
    others = [each for each in left.get(lease.job_id, []) if each.nonce != lease.nonce]
    left[lease.job_id] = [*others, lease]
