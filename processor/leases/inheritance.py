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
from datetime import datetime
from pathlib import Path
from typing import IO

from processor.clock import Clock
from processor.leases.lease import Lease, Leases
from processor.leases.protocol import LeaseStore


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
        self._left = _take_over(folder)
        self._path = folder / f"{os.getpid()}-{os.urandom(4).hex()}.jsonl"
        self._notes = _open_locked(self._path)

    def acquire(self, job_id: str, *, nonce: str, heir_of: Lease | None = None) -> Lease | None:
        """As `Leases.acquire`; a lease that a dead runner of this machine held is inherited."""
        with self._lock:
            left = self._left.pop(job_id, None)
        lease = super().acquire(job_id, nonce=nonce, heir_of=heir_of or left)
        if lease is not None:
            self._note(
                {"job": job_id, "epoch": lease.epoch, "nonce": nonce, "until": lease.until.isoformat()}
            )
        return lease

    def release(self, lease: Lease) -> None:
        super().release(lease)
        self._note({"job": lease.job_id, "released": True})

    def close(self) -> None:
        """End on purpose: what is still held runs out by itself."""
        self._notes.close()
        self._path.unlink(missing_ok=True)

    def _note(self, note: dict[str, object]) -> None:
        with self._lock:
            self._notes.write(json.dumps(note) + "\n")
            self._notes.flush()


def _open_locked(path: Path) -> IO[str]:
    notes = path.open("a", encoding="utf-8")
    fcntl.flock(notes, fcntl.LOCK_EX)
    return notes


def _take_over(folder: Path) -> dict[str, Lease]:
    """What dead runners left, by job id; their files are removed, so that it is taken once."""
    left: dict[str, Lease] = {}
    for path in sorted(folder.glob("*.jsonl")):
        with path.open("r", encoding="utf-8") as notes:
            try:
                fcntl.flock(notes, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                continue  # its runner is alive
            for line in notes:
                _apply(left, line)
            path.unlink(missing_ok=True)
    return left


def _apply(left: dict[str, Lease], line: str) -> None:
    try:
        note = json.loads(line)
        if note.get("released"):
            left.pop(note["job"], None)
        else:
            until = datetime.fromisoformat(note["until"])
            left[note["job"]] = Lease(note["job"], note["epoch"], note["nonce"], until)
    except (ValueError, KeyError, TypeError):
        return  # the last line of a runner that died while it wrote
