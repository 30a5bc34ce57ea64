"""The tick's look at dataset folders: remember, freeze once, hand on as an ingest job.

A folder is frozen generation by generation, each elected on the lease store, so that two
runners that see it complete at the same moment make one job of it. While that job has
not left the inbox, nothing of the folder is frozen again.
"""

from __future__ import annotations

from typing import Literal

import structlog
from pydantic import ValidationError

from processor import datasets
from processor.commit import standing
from processor.datasets import Frozen, Inventory, Sighting
from processor.dropping import drop
from processor.errors import JobInvalid, NotFound, StoreError
from processor.inbox import DatasetFolder, Inbox
from processor.layout import emitted_job_id, emitted_key
from processor.leases.protocol import Record
from processor.machine import Machine
from processor.models import IngestJob
from processor.parallel import each
from processor.records import dump
from processor.store import read_bytes

log = structlog.get_logger(__name__)

Look = Literal["soon", "waiting", "frozen", "busy", "ignored"]
"""`soon`: complete as soon as the next listing agrees. `waiting`: for quiet, or for files.
`frozen`: just handed on. `busy`: its ingest job is under way. `ignored`: no possible name."""

_MAX_STATE_BYTES = 64 * 1024
MAX_INVENTORY_BYTES = 256 * 1024 * 1024


def look_at_folders(machine: Machine, inbox: Inbox) -> dict[str, Look]:
    """Take each dataset folder of a scan one step further. One folder's trouble stays its own.

    Cost: 1 request per folder with something in it, 1 more when it changed; once it is
        complete 1 per 1,000 files and 4. Without versions 1 per file, too.
    """
    looks: dict[str, Look] = {}
    for folder in inbox.datasets.values():
        if folder.files == 0 and not folder.ready:
            continue
        try:
            looks[folder.name] = _Look(machine, inbox, folder).take()
        except StoreError as error:
            log.warning("dataset.not_looked_at", dataset=folder.name, why=str(error))
        except Exception:  # one folder never keeps a tick from its drops
            log.exception("dataset.defect", dataset=folder.name)
    return looks


class _Look:
    """One folder in one tick."""

    def __init__(self, machine: Machine, inbox: Inbox, folder: DatasetFolder) -> None:
        self._machine = machine
        self._store = machine.stores.main
        self._now = inbox.date
        self._folder = folder
        self._name = folder.name

    def take(self) -> Look:
        if not datasets.is_dataset_name(self._name):
            return "ignored"
        seen = self._read_state()
        settled = False
        if seen is not None and seen.frozen is not None and not seen.settled:
            settled = self._has_settled(seen.frozen)
            if not settled:
                return "busy"
        sighting = datasets.sight(
            seen,
            dataset=self._name,
            digest=self._folder.digest,
            ready=self._folder.ready,
            now=self._now,
            settled=settled,
        )
        if seen is None or sighting != seen:
            self._write_state(sighting)
            # A folder with a list differs at every look while it goes up.
            soon = self._folder.ready or (self._folder.listed and not datasets.is_restless(sighting))
            look: Look = "soon" if soon else "waiting"
        else:
            look = self._complete(sighting)
        if look in ("soon", "waiting"):
            limit_s = self._machine.policy.dataset_deadline_s
            late = datasets.overdue(sighting, now=self._now, deadline_s=limit_s, listed=self._folder.listed)
            if late is not None:
                return self._freeze(sighting, problem=late)
        return look

    def _complete(self, seen: Sighting) -> Look:
        """A second listing agrees: is that enough?"""
        if self._folder.listed:
            if seen.missing:
                return "waiting"
            return self._freeze(seen)
        if self._folder.ready or datasets.quiet_s(seen, self._now) >= self._machine.policy.settle_s:
            return self._freeze(seen)
        return "waiting"

    def _has_settled(self, frozen: Frozen) -> bool:
        """Whether the ingest job of an earlier generation has left the inbox."""
        try:
            self._store.stat(emitted_key(frozen.job_id))
        except NotFound:
            if standing(self._machine, frozen.job_id) is not None:
                return True
            self._emit(frozen)  # whoever froze it died before this
        return False

    def _freeze(self, seen: Sighting, *, problem: str | None = None) -> Look:
        inventory = self._inventory()
        if problem is None and inventory.digest != self._folder.digest:
            return "soon"
        if problem is None and self._folder.listed:
            missing, problem = self._missing(inventory)
            if missing:
                self._write_state(seen.model_copy(update={"missing": missing}))
                return "waiting"
        if seen.frozen is not None:
            inventory = self._less_swept(inventory, seen.frozen)
            if not inventory.files and not inventory.markers:
                return "waiting"
        inventory = self._with_versions(inventory)
        data = dump(inventory)
        key = datasets.inventory_key(data)
        self._store.put(key, data, media_type="application/json")
        generation = seen.generation + 1
        frozen = self._elect(generation, Frozen(job_id=self._job_id(key), inventory=key, problem=problem))
        update = {"generation": generation, "frozen": frozen, "settled": False, "missing": []}
        self._write_state(seen.model_copy(update=update))
        self._emit(frozen)
        if seen.frozen is not None and seen.frozen.inventory != frozen.inventory:
            self._forget(seen.frozen)
        log.info("dataset.frozen", dataset=self._name, job_id=frozen.job_id, files=len(inventory.files))
        return "frozen"

    def _elect(self, generation: int, ours: Frozen) -> Frozen:
        """What this generation of the folder is, whoever froze it first."""
        vote: Record = {
            "nonce": self._machine.nonce(),
            "inventory": ours.inventory,
            "problem": ours.problem or "",
        }
        winner = self._machine.leases.store.create(
            f"frozen/{datasets.state_name(self._name)}/{generation}", vote
        )
        key = str(winner["inventory"])
        return Frozen(job_id=self._job_id(key), inventory=key, problem=str(winner["problem"]) or None)

    def _emit(self, frozen: Frozen) -> None:
        job = IngestJob(
            kind="ingest",
            name=self._name,
            dataset=self._name,
            inventory=frozen.inventory,
            problem=frozen.problem,
        )
        drop(self._machine, job, parent=frozen.inventory, name=self._name)

    def _forget(self, earlier: Frozen) -> None:
        """Remove the inventory of a generation that has settled: its receipt says the same."""
        try:
            self._store.delete(earlier.inventory, version=self._store.stat(earlier.inventory).version)
        except NotFound:
            return

    def _job_id(self, inventory_key: str) -> str:
        # The inventory names folder and versions, so its hash is the folder's identity.
        return emitted_job_id(inventory_key, self._name)

    def _inventory(self) -> Inventory:
        versions = self._store.capabilities.versions
        pages = self._store.list(datasets.folder_key(self._name), versions=versions)
        return datasets.take_inventory(self._name, pages)

    def _less_swept(self, inventory: Inventory, frozen: Frozen) -> Inventory:
        """Without what an earlier generation took, should a listing lag behind its sweep."""
        try:
            return inventory.without(read_inventory(self._machine, frozen.inventory))
        except NotFound:
            return inventory

    def _missing(self, inventory: Inventory) -> tuple[list[str], str | None]:
        """What the folder's own manifest names and the folder lacks; or what is wrong with it."""
        key = datasets.folder_key(self._name) + datasets.LISTED
        try:
            data = read_bytes(self._store, key, limit_bytes=datasets.MAX_LISTED_BYTES)
            return datasets.missing_files(datasets.parse_listed(data, where=key), inventory), None
        except JobInvalid as error:
            return [], str(error)

    def _with_versions(self, inventory: Inventory) -> Inventory:
        """Versions where the listing tells none: asked for one by one.

        Cost: none, or 1 request per file.
        """
        if self._store.capabilities.versions:
            return inventory

        def versioned(file: datasets.FrozenFile) -> datasets.FrozenFile:
            info = self._store.stat(inventory.folder + file.name)
            return file.model_copy(update={"version": info.version, "size_bytes": info.size_bytes})

        files = [file for _, file in each(versioned, inventory.files)]
        markers = [file for _, file in each(versioned, inventory.markers)]
        return inventory.model_copy(update={"files": files, "markers": markers})

    def _read_state(self) -> Sighting | None:
        key = datasets.state_key(self._name)
        try:
            data = read_bytes(self._store, key, limit_bytes=_MAX_STATE_BYTES)
            return Sighting.model_validate_json(data)
        except NotFound:
            return None
        except ValidationError:
            log.warning("dataset.state_unreadable", key=key)
            return None

    def _write_state(self, sighting: Sighting) -> None:
        key = datasets.state_key(self._name)
        self._store.put(key, dump(sighting), media_type="application/json")


def read_inventory(machine: Machine, key: str) -> Inventory:
    """A frozen inventory. Raises NotFound. Cost: 1 request."""
    data = read_bytes(machine.stores.main, key, limit_bytes=MAX_INVENTORY_BYTES)
    return Inventory.model_validate_json(data)
