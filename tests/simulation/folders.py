"""Dataset folders and what follows from them: what users uploaded, and what must become of it."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from handlers.ingest.records import Dataset
from processor.datasets import LISTED, READY, Inventory
from processor.layout import (
    DATASETS,
    DATASETS_INBOX,
    DONE,
    FAILED,
    dataset_latest_key,
    dataset_prefix,
    emitted_job_id,
)
from processor.leases.protocol import Record
from processor.publishing import LORAS
from tests.simulation.bucket import Bucket

if TYPE_CHECKING:
    from tests.simulation.schedule import Schedule


@dataclass
class Uploaded:
    """One version of one file that a user put into a folder."""

    key: str
    version: str
    sha256: str
    replaced: bool = False


@dataclass
class Batch:
    """What a user uploads into a folder in one go."""

    dataset: str
    wanted: int
    """So many files it will have."""
    files: list[Uploaded] = field(default_factory=list)


@dataclass
class Folders:
    """Judges whatever happens to dataset folders, as it happens."""

    bucket: Bucket
    violated: Callable[[str, str], None]
    batches: list[Batch] = field(default_factory=list)
    ingests: dict[str, dict[str, str]] = field(default_factory=dict)
    """Ids of the jobs that folders were frozen into → the name and SHA-256 of every file frozen."""

    def frozen(self, value: Record) -> None:
        """Judge the freezing of a folder: every batch is in it whole, or not at all."""
        key = str(value["inventory"])
        inventory = Inventory.model_validate_json(self.bucket.read(key))
        known = {(file.key, file.version): file.sha256 for batch in self.batches for file in batch.files}
        self.ingests[emitted_job_id(key, inventory.dataset)] = {
            file.name: known[inventory.folder + file.name, file.version]
            for file in inventory.files
            if file.name != LISTED
        }
        taken = {(inventory.folder + file.name, file.version) for file in inventory.files}
        for batch in self.batches:
            inside = [file for file in batch.files if (file.key, file.version) in taken]
            pending = [file for file in batch.files if not file.replaced and file not in inside]
            if inside and (pending or len(batch.files) < batch.wanted):
                self.violated("a folder is taken whole", f"{len(inside)} of {batch.wanted} files")

    def left(self, key: str, version: str) -> None:
        """Judge the removal of a file from the inbox: its bytes have a place by then."""
        for file in (file for batch in self.batches for file in batch.files):
            if (file.key, file.version) == (key, version) and not file.replaced and not self.kept(file):
                self.violated("a folder's files are kept before they go", f"{key} {version}")

    def kept(self, file: Uploaded) -> bool:
        """Whether a file's bytes stand under its name in the archive, or where a drop settles."""
        name = file.key[len(DATASETS_INBOX) :].partition("/")[2]
        places = [
            key
            for prefix in (DATASETS, FAILED, DONE)
            for key in self.bucket.keys(prefix)
            if key.endswith(f"/{name}")
        ]
        return any(hashlib.sha256(self.bucket.read(key)).hexdigest() == file.sha256 for key in places)


# --- at rest ------------------------------------------------------------------------------------


def every_file_is_kept(schedule: Schedule) -> Iterator[str]:
    """Whatever was uploaded and not replaced is in the archive or in `failed/`."""
    folders = schedule.watch.folders
    for file in (file for batch in folders.batches for file in batch.files):
        if not file.replaced and not folders.kept(file):
            yield f"{file.key} {file.version} is nowhere"


def versions_are_whole(schedule: Schedule) -> Iterator[str]:
    """Each dataset version has every file of its record with its bytes, and what was frozen is in it."""
    bucket = schedule.bucket
    standing = set(bucket.keys(DATASETS))
    for key in standing:
        if key.endswith("/dataset.json"):
            dataset = Dataset.model_validate_json(bucket.read(key))
            prefix = dataset_prefix(dataset.name, dataset.fingerprint)
            for file in dataset.files:
                there = prefix + file.name in standing
                if not there or hashlib.sha256(bucket.read(prefix + file.name)).hexdigest() != file.sha256:
                    yield f"{prefix}{file.name} is not what its record says"
    for manifest in _done(schedule, "ingest"):
        data = manifest["tasks"][0]["data"]
        key = dataset_prefix(data["dataset"], data["fingerprint"]) + "dataset.json"
        if key not in standing:
            yield f"{manifest['job_id']} has no version"
            continue
        has = {file.name: file.sha256 for file in Dataset.model_validate_json(bucket.read(key)).files}
        frozen = schedule.watch.folders.ingests.get(manifest["job_id"], {})
        for name, sha256 in frozen.items():
            if has.get(name) != sha256:
                yield f"{name} in {key} is not what was frozen"


def one_version_trains_once(schedule: Schedule) -> Iterator[str]:
    """However often a content was ingested, one train job ran on it."""
    trained = Counter(
        (manifest["plan"]["shared"]["dataset"], manifest["plan"]["shared"]["fingerprint"])
        for manifest in _all(schedule, "train")
        if manifest.get("plan")
    )
    for version, times in trained.items():
        if times > 1:
            yield f"{version} was trained {times} times"


def loras_are_published(schedule: Schedule) -> Iterator[str]:
    """Each done training's LoRA stands where ComfyUI finds it; the pointer names the newest."""
    bucket, newest = schedule.bucket, {}
    for manifest in sorted(_done(schedule, "train"), key=lambda each: (each["finished_at"], each["job_id"])):
        (file,) = manifest["tasks"][0]["files"]
        key = LORAS + file["name"]
        if key not in bucket.keys(LORAS) or hashlib.sha256(bucket.read(key)).hexdigest() != file["sha256"]:
            yield f"{key} is not what {manifest['job_id']} made"
        newest[manifest["plan"]["shared"]["publish"]] = key
    for name, key in newest.items():
        if json.loads(bucket.read(f"{LORAS}{name}.latest.json"))["key"] != key:
            yield f"{name}.latest.json does not name {key}"


def latest_is_the_newest(schedule: Schedule) -> Iterator[str]:
    """A dataset's pointer names the version of the ingest that finished last."""
    newest = {}
    for manifest in sorted(_done(schedule, "ingest"), key=lambda each: (each["finished_at"], each["job_id"])):
        data = manifest["tasks"][0]["data"]
        newest[data["dataset"]] = dataset_prefix(data["dataset"], data["fingerprint"])
    for name, prefix in newest.items():
        if json.loads(schedule.bucket.read(dataset_latest_key(name)))["key"] != prefix:
            yield f"{name}/latest.json does not name {prefix}"


FOLDERS_AT_REST = (
    every_file_is_kept,
    versions_are_whole,
    one_version_trains_once,
    loras_are_published,
    latest_is_the_newest,
)


def emitted_by(schedule: Schedule, manifest: dict[str, Any]) -> set[str]:
    """Ids of the jobs that follow from an ingest's or a training's manifest."""
    result = manifest["tasks"][0] if manifest["tasks"] else {}
    if manifest["kind"] == "ingest" and (train := result["data"].get("train")):
        return {emitted_job_id(train["parent"], train["name"])}
    if manifest["kind"] == "train" and manifest["plan"]["shared"]["emit"]:
        return {emitted_job_id(manifest["job_id"], "lora-test")}
    return set()


def _all(schedule: Schedule, kind: str) -> Iterator[dict[str, Any]]:
    for job in schedule.watch.manifests:
        manifest = schedule.watch.manifest(job)
        if manifest is not None and manifest["kind"] == kind:
            yield manifest


def _done(schedule: Schedule, kind: str) -> Iterator[dict[str, Any]]:
    return (manifest for manifest in _all(schedule, kind) if manifest["outcome"] == "done")


Says = Literal["ready", "listed", "quiet"]
"""How a user tells that a folder is complete: a marker last, a list first, or by no more of it."""


def marker(says: Says, files: dict[str, bytes]) -> tuple[str, bytes]:
    """Name and content of what a user puts beside the files."""
    if says == "ready":
        return READY, b""
    return LISTED, json.dumps({"files": {name: len(data) for name, data in files.items()}}).encode()
