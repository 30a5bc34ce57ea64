"""What a schedule did, as the bucket saw it: the evidence that invariants are judged on.

Some of them are judged at the very effect, since a later one may cover the traces.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from processor.datasets import is_inventory_key
from processor.handler import Work
from processor.layout import (
    AUTHORITY,
    BESIDE,
    DATASETS,
    DATASETS_INBOX,
    EMITTED,
    INBOX,
    NIGHTLY,
    NIGHTS,
    OUTPUTS,
    RECURRING,
    job_id,
)
from processor.leases.protocol import Record
from tests.simulation.bucket import Bucket, Dict
from tests.simulation.fleet import POLICY
from tests.simulation.folders import Folders
from tests.simulation.world import EPOCH, Actor, Process, World

_SWEEP_AGE_S = 25 * 3600.0


@dataclass
class Upload:
    """One version of a drop that a user put into the inbox."""

    key: str
    version: str
    at: float
    replaced_at: float | None = None
    """When the user uploaded the next version, or deleted it by name."""
    cancelled_at: float | None = None
    job_id: str = field(init=False)

    def __post_init__(self) -> None:
        self.job_id = job_id(self.key, self.version)


@dataclass
class Watch:
    """Everything that the invariants look at."""

    world: World
    bucket: Bucket
    leases: Dict
    ruler: str = ""
    """The backend in `state/authority.json`."""
    founded_at: float = math.inf
    """When that was written."""
    uploads: list[Upload] = field(default_factory=list)
    manifests: dict[str, bytes] = field(default_factory=dict)
    """The first bytes that stood as each job's manifest; what replaced them, where that is not
    promised never to happen."""
    replaced: set[str] = field(default_factory=set)
    """Jobs of which that happened."""
    stood_at: dict[str, float] = field(default_factory=dict)
    writers: dict[str, int] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)
    removed: dict[tuple[str, str], float] = field(default_factory=dict)
    """When each version left the inbox."""
    settled_at: dict[str, float] = field(default_factory=dict)
    """When each key last left the inbox."""
    hashes: dict[tuple[str, int], str] = field(default_factory=dict)
    """What each task of a job first was."""
    starts: dict[str, int] = field(default_factory=dict)
    """Executions submitted, by job."""
    began_late: dict[str, bool] = field(default_factory=dict)
    """Of each attempt's record, whether it came to stand after its lease had run out."""
    night_opens: datetime | None = None
    """When drops under `inbox/nightly/` may first begin."""
    folders: Folders = field(init=False)
    _parsed: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folders = Folders(self.bucket, self.violated)

    def violated(self, invariant: str, how: str) -> None:
        self.violations.append(f"{invariant}: {how} (at {self.world.now_s:.1f} s)")

    # --- told by the bucket and the launcher -------------------------------------------

    def wrote(self, actor: Actor | None, operation: str, key: str, data: bytes) -> None:
        """Judge one effect on the bucket."""
        if operation == "delete":
            self._deleted(key)
        elif key == AUTHORITY:
            self.ruler, self.founded_at = json.loads(data)["backend"], self.world.now_s
        elif key.startswith(OUTPUTS) and not key.startswith(NIGHTS):
            self._output(actor, key, data)
        elif key.startswith(EMITTED) and operation == "put":
            self._emitted(key, data)

    def submitted(self, process: Process, work: Work) -> None:
        """Judge the start of a task."""
        job = work.job_id
        self._under_its_lease(process, job, work.attempt)
        first = self.hashes.setdefault((job, work.task.index), work.task.hash)
        if first != work.task.hash and not self.leases.wipes:
            self.violated("a task is the same for ever", f"task {work.task.index} of {job}")
        self.starts[job] = self.starts.get(job, 0) + 1
        if not self.rules(process):
            self.violated("foreign authority starts nothing", f"{job} by {process.name}")
        epoch = int(work.attempt.split("-")[0])
        if (self.leases.wipes, job, epoch + 1) in process.noticed:
            self.violated("no task after a lost lease was noticed", f"{job} under {work.attempt}")
        leased_at, _ = process.leased.get(job, (-1.0, {}))
        if self.leases.written.get(f"commit/{job}", leased_at) < leased_at and not self.leases.wipes:
            self.violated("nothing elected runs again", job)
        actor = self.world.current
        read_at = actor.reads.get(f"{OUTPUTS}{job}/manifest.json", -1.0) if actor else -1.0
        if job in self.stood_at and self.stood_at[job] < read_at:
            self.violated("nothing settled runs", job)
        for upload in self.uploads:
            if upload.job_id == job:
                if not work.attempt.startswith("1-") and actor and upload.key not in actor.reads:
                    self.violated("who takes a job over reads its drop", f"{job} under {work.attempt}")
                self._superseded(upload, process, actor)

    def _superseded(self, upload: Upload, process: Process, actor: Actor | None) -> None:
        """Judge the start of a drop that its user has replaced by now."""
        leased_at, read_before = process.leased.get(upload.job_id, (-1.0, {}))
        own = actor.reads.get(upload.key) if actor else None
        read_at = read_before.get(upload.key, -1.0) if own is None else own
        if upload.replaced_at is not None and upload.replaced_at < read_at:
            self.violated("nothing superseded runs", f"{upload.key} {upload.version}")
        if self.removed.get((upload.key, upload.version), leased_at) < leased_at:
            self.violated("nothing superseded runs", f"{upload.key} {upload.version} was removed")

    def rules(self, process: Process) -> bool:
        """Whether a process is configured with the lease store that rules the bucket."""
        return process.backend == self.ruler

    def asked(self, process: Process, key: str, value: Record) -> None:
        """Judge an election as it is sent."""
        if not key.startswith("commit/"):
            return
        job, (epoch, _, nonce) = key.split("/")[1], str(value["nonce"]).partition("-")
        until = self.lease_end(job, int(epoch), nonce)
        if until is not None and self.world.now > until and not process.suspended_s:
            self.violated("nothing is elected after the lease ran out", f"{job} under {epoch}-{nonce}")

    def granted(self, process: Process, key: str, value: Record) -> None:
        """Judge a claim, or the freezing of a folder, as it succeeds."""
        if key.startswith("frozen/"):
            self.folders.frozen(value)
        if not key.startswith("lease/"):
            return
        _, job, epoch = key.split("/")
        self._in_its_night(job)
        before = self.leases.records.get(f"lease/{job}/{int(epoch) - 1}")
        if before is None:
            return
        until = self.lease_end(job, int(epoch) - 1, str(before["nonce"]))
        handed = process.name == "dispatch"
        if until is not None and self.world.now < until and not handed and not self.leases.wipes:
            self.violated("a lease is taken over only when it has run out", f"{job} {epoch}, until {until}")

    def _in_its_night(self, job: str) -> None:
        held = [upload for upload in self.uploads if upload.key.startswith(NIGHTLY)]
        if self.night_opens is not None and self.world.now < self.night_opens:
            for upload in held:
                if upload.job_id == job and upload.replaced_at is None:
                    self.violated("what is held begins in the night", job)

    def lease_end(self, job: str, epoch: int, nonce: str) -> datetime | None:
        """Until when a lease stands, by the lease store; None if it was given back, or forgotten."""
        records = self.leases.records
        entry = records.get(f"lease/{job}/{epoch}")
        if entry is None or entry["nonce"] != nonce:
            return None
        beat = records.get(f"beat/{job}/{epoch}/{nonce}", entry)
        if (job, epoch) in self.leases.released | self.leases.doubtful:
            return None
        return datetime.fromisoformat(str(beat["until"]))

    def _under_its_lease(self, process: Process, job: str, attempt: str) -> None:
        epoch, _, nonce = attempt.partition("-")
        entry = self.leases.records.get(f"lease/{job}/{epoch}")
        if entry is not None and entry["nonce"] != nonce and not self.leases.wipes:
            self.violated("only the owner of a lease starts tasks", f"{job} under {attempt}")
        beat = self.leases.records.get(f"beat/{job}/{epoch}/{nonce}") or entry
        if beat is not None and not process.suspended_s:  # whose clock stood still can't know
            over = datetime.fromisoformat(str(beat["until"])) + timedelta(seconds=POLICY.margin_s)
            if self.world.now > over:
                self.violated("nothing starts under a lease that ran out", f"{job} under {attempt}")
        following = self.leases.records.get(f"lease/{job}/{int(epoch) + 1}")
        beat_at = self.leases.written.get(f"beat/{job}/{epoch}/{nonce}", -1.0)
        if job in process.in_vain:
            return  # it could not ask; until its lease ends it goes on
        if following is not None and self.leases.written[f"lease/{job}/{int(epoch) + 1}"] < beat_at:
            self.violated("a renewal notices its successor", f"{job} under {attempt}")

    # --- judgements ---------------------------------------------------------------------

    def _output(self, actor: Actor | None, key: str, data: bytes) -> None:
        job, _, name = key[len(OUTPUTS) :].partition("/")
        if name == "manifest.json":
            if actor is not None and not self.rules(actor.process):
                self.violated("foreign authority commits nothing", job)
            if self.manifests.setdefault(job, data) != data:
                if self._unaware(actor, data):
                    self.replaced.add(job)
                    self.manifests[job] = data
                    self._parsed.pop(job, None)
                else:
                    self.violated("one outcome a drop", f"two manifests stood for {job}")
            self.stood_at.setdefault(job, self.world.now_s)
        elif name not in ("index.html", "training.html", *BESIDE) and actor is not None:
            # An execution is an actor; an attempt's own records are its dispatcher's.
            self._has_one_writer(key, actor)
        if name.endswith("/attempt.json") and key not in self.began_late:
            self.began_late[key] = self._begins_late(actor, job, name.partition("/")[0])

    def _begins_late(self, actor: Actor | None, job: str, attempt: str) -> bool:
        """Judge the record with which an attempt begins; it may be long on its way to the store."""
        epoch, _, nonce = attempt.partition("-")
        until = self.lease_end(job, int(epoch), nonce)
        if until is None:
            return False
        # Whose clock stood still can't know.
        if actor and not actor.process.suspended_s and EPOCH + timedelta(seconds=actor.sent_s) > until:
            self.violated("nothing begins under a lease that ran out", f"{job} under {attempt}")
        return self.world.now > until

    def _unaware(self, actor: Actor | None, data: bytes) -> bool:
        """Whether a first attempt commits on a laptop opened after its lease store was wiped: it has
        no reason to look what stands, and docs/reliability.md does not promise that it doesn't matter."""
        slept = self.leases.wipes and actor is not None and actor.process.suspended_s
        return bool(slept) and json.loads(data)["attempt"].startswith("1-")

    def _has_one_writer(self, key: str, actor: Actor) -> None:
        if self.writers.setdefault(key, actor.serial) != actor.serial:
            self.violated("no key has two writers", key)

    def _emitted(self, key: str, data: bytes) -> None:
        parent = json.loads(data)["origin"]["parent"]
        if is_inventory_key(parent) or parent.startswith(RECURRING):
            return  # a frozen folder, a template that is due: no job of theirs came before
        if parent.startswith(DATASETS):
            dataset, fingerprint = parent[len(DATASETS) :].strip("/").split("/")
            if not self._ingested(dataset, fingerprint):
                self.violated("effects follow a standing manifest", f"{key} before {parent} was ingested")
            return
        manifest = self.manifest(parent)
        if manifest is None or manifest["outcome"] != "done":
            self.violated("effects follow a standing manifest", f"{key} before its parent's stood")

    def _ingested(self, dataset: str, fingerprint: str) -> bool:
        for job in self.folders.ingests:
            manifest = self.manifest(job)
            if manifest is not None and manifest["outcome"] == "done":
                data = manifest["tasks"][0]["data"]
                if (data["dataset"], data["fingerprint"]) == (dataset, fingerprint):
                    return True
        return False

    def _deleted(self, key_version: str) -> None:
        key, _, version = key_version.rpartition("@")
        if key.startswith(INBOX):
            self.removed[key, version] = self.settled_at[key] = self.world.now_s
            self._left_inbox(key, version)
            if key.startswith(DATASETS_INBOX):
                self.folders.left(key, version)
        elif key.startswith(OUTPUTS) and "/checkpoints/" not in key:
            self._swept(key)  # a training prunes its own checkpoints

    def _left_inbox(self, key: str, version: str) -> None:
        for upload in self.uploads:
            pending = upload.replaced_at is None and upload.job_id not in self.stood_at
            if pending and (upload.key, upload.version) == (key, version):
                self.violated("nothing unread is deleted", f"{key} {version}")

    def _swept(self, key: str) -> None:
        job = key[len(OUTPUTS) :].partition("/")[0]
        stood_at = self.stood_at.get(job)
        if stood_at is None:
            self.violated("the sweep needs a standing manifest", key)
        elif self.world.now_s - stood_at < _SWEEP_AGE_S:
            self.violated("the sweep waits 25 hours", key)
        elif key in named_by(self.manifest(job)):
            self.violated("the sweep spares what a manifest names", key)

    def manifest(self, job: str) -> dict[str, Any] | None:
        """The manifest that stands, parsed."""
        data = self.manifests.get(job)
        if data is None:
            return None
        if job not in self._parsed:
            self._parsed[job] = json.loads(data)
        return self._parsed[job]


def named_by(manifest: dict[str, Any] | None) -> set[str]:
    """Every file that a manifest names as a result."""
    if manifest is None:
        return set()
    return {file["key"] for task in manifest.get("tasks", []) for file in task.get("files", [])}
