"""Uploads beside the training: the GPU does not wait for the bucket."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Sequence
from pathlib import Path

import structlog

from handlers.train.checkpoints import CheckpointStore, Snapshot
from processor.errors import StoreError

log = structlog.get_logger(__name__)


class Uploader:
    """Uploads snapshots and samples on a thread of its own.

    A bucket that is out of reach does not end a training: the next checkpoint is tried anew.
    Only the newest snapshot waits, so that a slow line never falls behind and the disk
    never fills with what waits.
    """

    def __init__(self, checkpoints: CheckpointStore) -> None:
        self._checkpoints = checkpoints
        self._changed = threading.Condition()
        self._waiting: Snapshot | None = None
        self._samples: list[Path] = []
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="checkpoints", daemon=True)
        self._thread.start()

    def add(self, snapshot: Snapshot) -> None:
        """Upload a snapshot, instead of an older one that still waits."""
        with self._changed:
            replaced, self._waiting = self._waiting, snapshot
            self._changed.notify()
        if replaced is not None:
            shutil.rmtree(replaced.folder, ignore_errors=True)

    def add_samples(self, samples: Sequence[Path]) -> None:
        """Upload sample pictures, and name them in the newest record."""
        with self._changed:
            self._samples.extend(samples)
            self._changed.notify()

    def close(self, timeout_s: float) -> bool:
        """Finish what was added; False if there was no time for all of it. Idempotent."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not (self._waiting or self._samples or self._closed):
                    self._changed.wait()
                snapshot, self._waiting = self._waiting, None
                samples, self._samples = self._samples, []
            if snapshot is None and not samples:
                return
            try:
                self._checkpoints.upload(snapshot, samples)
            except (StoreError, OSError) as error:
                log.warning("checkpoint.not_uploaded", step=snapshot and snapshot.step, why=str(error))
            finally:
                if snapshot is not None:
                    shutil.rmtree(snapshot.folder, ignore_errors=True)
