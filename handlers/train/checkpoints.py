"""Checkpoints in the bucket: streamed there while it trains, restored from there after a death.

One checkpoint is `<step>.safetensors`, `<step>.optimizer.pt` and `<step>.json`, written in
this order under a prefix that only this execution writes to. The record is what counts: it
holds size and SHA-256 of both files, the losses so far, and which samples there are.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Final

import structlog
from pydantic import ValidationError

from handlers.train.weights import BadWeights, read_header
from processor.errors import NotFound, StoreError
from processor.layout import job_prefix
from processor.models import Model
from processor.records import dump
from processor.store import Store, read_bytes

log = structlog.get_logger(__name__)

_RECORD: Final = re.compile(r"\d+-[0-9a-f]+/(?P<index>\d{5,})-[0-9a-f]+/checkpoints/(?P<step>\d{9})\.json")
_MAX_RECORD_BYTES: Final = 4 * 1024 * 1024
_CHUNK_BYTES: Final = 1 << 20


class KeptFile(Model):
    """A file in the bucket, and how to know that it arrived whole."""

    key: str
    name: str
    size_bytes: int
    sha256: str


class Checkpoint(Model):
    """The record of one checkpoint."""

    step: int
    hash: str
    """Of the task: another config's checkpoint must not be gone on from."""
    weights: KeptFile
    optimizer: KeptFile | None = None
    samples: list[KeptFile] = []
    losses: list[tuple[int, float]] = []
    """Step and loss, from the beginning on, over all attempts."""
    seconds: float = 0.0
    """Of the trainer until here, over all attempts."""
    inherited_s: float = 0.0
    """Of those, what the job paid for that this one retries."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A checkpoint on disk, out of the trainer's reach."""

    step: int
    folder: Path
    """Holds `weights.safetensors` and maybe `optimizer.pt`; removed after the upload."""
    losses: list[tuple[int, float]] = field(default_factory=list)
    seconds: float = 0.0


WEIGHTS: Final = "weights.safetensors"
OPTIMIZER: Final = "optimizer.pt"


class CheckpointStore:
    """The checkpoints of one task, over all attempts of its job, and of the jobs that it retries.

    Args:
        retried: those jobs, the nearest first: theirs are read, and never pruned.
        prefix: where this execution writes, and no other does.
        keep: how many of the newest stay.
    """

    def __init__(
        self,
        store: Store,
        *,
        job_id: str,
        index: int,
        task_hash: str,
        prefix: str,
        keep: int,
        retried: Sequence[str] = (),
    ) -> None:
        self._store = store
        self._job_id = job_id
        self._index = index
        self._hash = task_hash
        self._prefix = f"{prefix}checkpoints/"
        self._keep = keep
        self._retried = retried
        self._inherited_s = 0.0
        self._known: list[tuple[int, str]] = []
        """Step and key of every record of this job's, oldest step first."""
        self._newest: Checkpoint | None = None
        """The last one that this execution wrote."""
        self.samples: list[KeptFile] = []
        """All samples in the bucket so far."""

    def restore(self, folder: Path) -> Checkpoint | None:
        """Bring the newest checkpoint that is whole into a folder; None if there is none.

        Whole means: the record reads, both files have its size and hash, the weights open
        and say the same step. One that isn't is passed over for the one before.

        Cost: 1 request per 1,000 files of the job and of each that it retries, and 3 for each
            looked at.
        """
        self._known = self._list(self._job_id)
        theirs = [found for job_id in reversed(self._retried) for found in self._list(job_id)]
        # Of equal steps the own one is looked at first, then the nearest job's.
        for _, key in sorted([*theirs, *self._known], key=itemgetter(0))[::-1]:
            with suppress(NotFound, ValidationError):
                record = Checkpoint.model_validate_json(
                    read_bytes(self._store, key, limit_bytes=_MAX_RECORD_BYTES)
                )
                if record.hash == self._hash and self._fetch(record, folder):
                    if not key.startswith(job_prefix(self._job_id)):
                        record = record.model_copy(update={"inherited_s": record.seconds})
                    self.samples, self._inherited_s = list(record.samples), record.inherited_s
                    return record
            log.warning("checkpoint.passed_over", job_id=self._job_id, key=key)
        return None

    def upload(self, snapshot: Snapshot | None, samples: Sequence[Path] = ()) -> None:
        """Put a snapshot into the bucket, its record last; then prune to the newest.

        A snapshot that is not whole is let go.

        Args:
            snapshot: None to add samples to the newest record alone.
            samples: new sample pictures.
        Cost: 3 requests, 1 per new sample, 6 for what is pruned.
        """
        self.samples += [self._put(path, f"samples/{path.name}", path.name) for path in samples]
        if snapshot is None:
            if self._newest is not None:
                self._record(self._newest.model_copy(update={"samples": self.samples}))
            return
        weights, optimizer = snapshot.folder / WEIGHTS, snapshot.folder / OPTIMIZER
        try:
            step = read_header(weights).step
        except (BadWeights, OSError) as error:
            log.warning("checkpoint.not_whole", step=snapshot.step, why=str(error))
            return
        name = f"{snapshot.step:09d}"
        self._record(
            Checkpoint(
                step=snapshot.step if step is None else step,
                hash=self._hash,
                weights=self._put(weights, f"{name}.safetensors", WEIGHTS),
                optimizer=self._put(optimizer, f"{name}.{OPTIMIZER}", OPTIMIZER)
                if optimizer.exists()
                else None,
                samples=self.samples,
                losses=snapshot.losses,
                seconds=snapshot.seconds,
                inherited_s=self._inherited_s,
            )
        )
        self._prune()

    def _record(self, record: Checkpoint) -> None:
        key = f"{self._prefix}{record.step:09d}.json"
        self._store.put(key, dump(record), media_type="application/json")
        self._newest = record
        if (record.step, key) not in self._known:
            self._known.append((record.step, key))
            self._known.sort()

    def fetch_sample(self, sample: KeptFile, target: Path) -> bool:
        """Bring a sample of an earlier attempt here; whether it arrived whole."""
        return _download(self._store, sample, target)

    def _list(self, job_id: str) -> list[tuple[int, str]]:
        prefix = job_prefix(job_id)
        found = []
        for page in self._store.list(prefix):
            for item in page.objects:
                match = _RECORD.fullmatch(item.key[len(prefix) :])
                if match and int(match["index"]) == self._index:
                    found.append((int(match["step"]), item.modified, item.key))
        return [(step, key) for step, _, key in sorted(found)]

    def _fetch(self, record: Checkpoint, folder: Path) -> bool:
        weights = folder / WEIGHTS
        try:
            whole = _download(self._store, record.weights, weights) and read_header(weights).step in (
                record.step,
                None,
            )
        except BadWeights:
            whole = False
        if not whole:
            weights.unlink(missing_ok=True)
            return False
        # The trainer survives without its optimizer's state, so this one may be missing.
        if record.optimizer is None or not _download(self._store, record.optimizer, folder / OPTIMIZER):
            (folder / OPTIMIZER).unlink(missing_ok=True)
        return True

    def _put(self, path: Path, name: str, shown: str) -> KeptFile:
        with path.open("rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        key = self._prefix + name
        self._store.put(key, path)
        return KeptFile(key=key, name=shown, size_bytes=path.stat().st_size, sha256=sha256)

    def _prune(self) -> None:
        """Remove all but the newest; the record first, so that none names what is gone."""
        while len(self._known) > self._keep:
            _, key = self._known.pop(0)
            stem = key.removesuffix(".json")
            for name in (key, f"{stem}.safetensors", f"{stem}.{OPTIMIZER}"):
                try:
                    self._store.delete(name, version=self._store.stat(name).version)
                except NotFound:
                    continue
                except StoreError as error:
                    log.warning("checkpoint.not_pruned", key=name, why=str(error))


def _download(store: Store, file: KeptFile, target: Path) -> bool:
    """Whether a file arrived with the size and hash that its record says."""
    digest = hashlib.sha256()
    try:
        with store.get(file.key) as download, target.open("wb") as stream:
            if download.info.size_bytes != file.size_bytes:
                return False
            while chunk := download.body.read(_CHUNK_BYTES):
                digest.update(chunk)
                stream.write(chunk)
    except NotFound:
        return False
    return digest.hexdigest() == file.sha256


def take_snapshot(weights: Path, optimizer: Path | None, folder: Path) -> None:
    """Copy a save out of the trainer's reach, which prunes the one and overwrites the other."""
    folder.mkdir(parents=True)
    try:
        # A step's weights get a file of their own, so a second name for it is enough.
        (folder / WEIGHTS).hardlink_to(weights)
    except OSError:
        shutil.copyfile(weights, folder / WEIGHTS)
    if optimizer is not None and optimizer.exists():
        shutil.copyfile(optimizer, folder / OPTIMIZER)
