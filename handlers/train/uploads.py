"""Uploads beside the training: the GPU does not wait for the bucket."""

from __future__ import annotations

import queue
import shutil
import threading

import structlog

from handlers.train.checkpoints import Checkpoint, CheckpointStore, Snapshot
from processor.errors import StoreError

log = structlog.get_logger(__name__)


class Uploader:
    """Uploads snapshots one after another on a thread of its own.

    A bucket that is out of reach does not end a training: the next checkpoint is tried anew."""

    def __init__(self, checkpoints: CheckpointStore) -> None:
        self._checkpoints = checkpoints
        self._queue: queue.Queue[Snapshot | None] = queue.Queue()
        self._closed = False
        self.newest: Checkpoint | None = None
        """The last one that the bucket has whole."""
        self._thread = threading.Thread(target=self._work, name="checkpoints", daemon=True)
        self._thread.start()

    def add(self, snapshot: Snapshot) -> None:
        self._queue.put(snapshot)

    def close(self, timeout_s: float) -> bool:
        """Finish what was added; False if there was no time for all of it. Idempotent."""
        if not self._closed:
            self._closed = True
            self._queue.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while (snapshot := self._queue.get()) is not None:
            try:
                uploaded = self._checkpoints.upload(snapshot)
                self.newest = uploaded or self.newest
            except (StoreError, OSError) as error:
                log.warning("checkpoint.not_uploaded", step=snapshot.step, why=str(error))
            finally:
                shutil.rmtree(snapshot.folder, ignore_errors=True)
