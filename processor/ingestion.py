"""What follows from an ingest manifest: the folder leaves the inbox, its training is dropped."""

from __future__ import annotations

import json
from contextlib import suppress

from pydantic import TypeAdapter, ValidationError

from processor.datasets import LISTED, FrozenFile, Inventory
from processor.dropping import drop
from processor.errors import NotFound, StoreError, VersionMismatch
from processor.folders import read_inventory
from processor.layout import dataset_latest_key, dataset_prefix, job_prefix, settled_prefix
from processor.machine import Machine
from processor.models import IngestJob, Job
from processor.parallel import each
from processor.pointers import Pointer, advance
from processor.records import Manifest, Outcome, TaskResult
from processor.settle import kept_name
from processor.store import Store

_JOB: TypeAdapter[Job] = TypeAdapter(Job)

REPORTS = ("report.json", "report.txt")
"""What an ingest leaves beside its receipt."""


def ingested(machine: Machine, manifest: Manifest) -> None:
    """Finish what an ingest job began, from its manifest alone.

    Done: the dataset's pointer moves forward, exactly one train job is dropped, the folder
    is swept. Otherwise the folder's files move to `failed/` (a cancelled one's to `done/`),
    so that nothing a person uploaded is lost. A receipt stays either way.

    Cost: 1 request per file, 2 for one that moves; and 6.
    """
    if manifest.kind != "ingest" or manifest.job is None:
        return
    job = IngestJob.model_validate(manifest.job)
    try:
        inventory = read_inventory(machine, job.inventory)
    except NotFound:
        return  # swept by an earlier pass, to the end
    except ValidationError:
        return  # not an inventory of ours: a forged job has failed, and nothing else follows
    prefix = settled_prefix(manifest.outcome, manifest.finished_at, manifest.job_id)
    result = manifest.tasks[0] if manifest.tasks else None
    if manifest.outcome is Outcome.DONE and result is not None:
        _point(machine, manifest, job, result)
        _drop_training(machine, result)
    else:
        _keep_files(machine.stores.main, inventory, f"{prefix}{job.dataset}/")
        _keep_report(machine.stores.main, manifest, prefix)
    _write_receipt(machine.stores.main, manifest, inventory, prefix)
    sweep_folder(machine.stores.main, inventory)


def sweep_folder(store: Store, inventory: Inventory) -> None:
    """Remove exactly the versions that an inventory names; what came later stays.

    `_READY` goes first and newer versions after older ones, so that whatever is left at
    any moment neither looks complete nor shows an older version.

    Cost: 1 request per file and version.
    """
    folder = inventory.folder

    def remove(file: FrozenFile) -> None:
        with suppress(VersionMismatch):
            store.delete(folder + file.name, version=file.version)

    first = inventory.markers[:1]
    for group in (first, inventory.older, inventory.markers[1:], inventory.files):
        for _ in each(remove, group):
            pass


def _point(machine: Machine, manifest: Manifest, job: IngestJob, result: TaskResult) -> None:
    fingerprint = str(result.data["fingerprint"])
    pointer = Pointer(
        key=dataset_prefix(job.dataset, fingerprint),
        job_id=manifest.job_id,
        at=manifest.finished_at,
        # The options, too: whoever drops more pictures later need not say them again.
        facts={"fingerprint": fingerprint, "options": result.data.get("options")},
    )
    advance(machine, machine.stores.datasets, dataset_latest_key(job.dataset), pointer)


def _drop_training(machine: Machine, result: TaskResult) -> None:
    """Drop the train job that the manifest holds.

    Its id follows from the dataset's version and the options, not from this ingest: the
    same content dropped again is the same job, which has run and runs no more.
    """
    train = result.data.get("train")
    if train is None:
        return
    drop(machine, _JOB.validate_python(train["job"]), parent=str(train["parent"]), name=str(train["name"]))


def _keep_files(store: Store, inventory: Inventory, prefix: str) -> None:
    def keep(file: FrozenFile) -> None:
        with suppress(NotFound):  # moved by an earlier pass, or replaced since
            copy = store.copy(
                inventory.folder + file.name, prefix + kept_name(file.name), version=file.version
            )
            if copy.size_bytes != file.size_bytes:
                raise StoreError(f"the copy has {copy.size_bytes} of {file.size_bytes} bytes", where=copy.key)

    # A list of sizes is no data, and would hold up the folder once it is put right and dropped again.
    for _ in each(keep, (file for file in inventory.files if file.name != LISTED)):
        pass


def _keep_report(store: Store, manifest: Manifest, prefix: str) -> None:
    """Copy the report that a failed check wrote to where the drop goes."""
    error = manifest.error
    key = error.where if error else None
    if key is None or not key.startswith(job_prefix(manifest.job_id)):
        return
    folder = key.rpartition("/")[0] + "/"
    for name in REPORTS:
        with suppress(NotFound):
            store.copy(folder + name, prefix + name)


def _write_receipt(store: Store, manifest: Manifest, inventory: Inventory, prefix: str) -> None:
    """Say what was in the folder and what became of it."""
    data = manifest.tasks[0].data if manifest.tasks else {}
    receipt = {
        "dataset": inventory.dataset,
        "job_id": manifest.job_id,
        "outcome": manifest.outcome.value,
        "said": data.get("text"),
        "fingerprint": data.get("fingerprint"),
        "files": [
            {"name": file.name, "size_bytes": file.size_bytes, "version": file.version}
            for file in inventory.files
        ],
    }
    body = json.dumps(receipt, ensure_ascii=False, indent=1) + "\n"
    store.put(prefix + "receipt.json", body.encode(), media_type="application/json")
