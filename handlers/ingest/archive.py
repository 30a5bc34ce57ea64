"""Putting a checked folder away as a new version of its dataset."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from handlers.ingest.records import Dataset, DatasetFile, archived_name
from processor.datasets import Inventory
from processor.errors import NotFound, StoreError
from processor.handler import Stores
from processor.layout import dataset_prefix, dataset_record_key
from processor.parallel import each
from processor.records import dump
from processor.store import Store, read_bytes

MAX_RECORD_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Source:
    """Where a file of the new version comes from."""

    store: Store
    key: str
    version: str | None
    size_bytes: int


def load_dataset(store: Store, name: str, fingerprint: str) -> Dataset | None:
    """A dataset's version, or None if it is not there whole. Cost: 1 request."""
    key = dataset_record_key(name, fingerprint)
    try:
        return Dataset.model_validate_json(read_bytes(store, key, limit_bytes=MAX_RECORD_BYTES))
    except NotFound:
        return None


def sources(
    stores: Stores, inventory: Inventory, files: list[DatasetFile], joined: Dataset | None
) -> dict[str, Source]:
    """For each file of the new version: the frozen upload, else the version it is joined with."""
    found: dict[str, Source] = {}
    if joined is not None:
        prefix = dataset_prefix(joined.name, joined.fingerprint)
        for file in joined.files:
            found[file.name] = Source(stores.datasets, prefix + file.name, None, file.size_bytes)
    for frozen in inventory.files:
        key = inventory.folder + frozen.name
        found[archived_name(frozen.name)] = Source(stores.main, key, frozen.version, frozen.size_bytes)
    return {file.name: found[file.name] for file in files}


def store_dataset(
    stores: Stores,
    dataset: Dataset,
    wanted: dict[str, Source],
    *,
    workdir: Path,
    progress: Callable[[int], None],
) -> None:
    """Copy every file to the version's own prefix, then write its record: whole or not there.

    What an interrupted run copied is found by one listing and not copied again; the prefix
    is named by the content, so whoever writes there writes the same.

    Cost: 1 request per file (2 where datasets have a bucket of their own), 1 per 1,000, and 1.
    """
    store, prefix = stores.datasets, dataset_prefix(dataset.name, dataset.fingerprint)
    there = {item.key: item.size_bytes for page in store.list(prefix) for item in page.objects}

    def put(file: DatasetFile) -> None:
        target, source = prefix + file.name, wanted[file.name]
        if there.get(target) == file.size_bytes:
            return
        if source.store is store:
            size_bytes = store.copy(source.key, target, version=source.version).size_bytes
        else:
            size_bytes = _carry(source, store, target, workdir)
        if size_bytes != file.size_bytes:
            raise StoreError(f"the copy has {size_bytes} of {file.size_bytes} bytes", where=target)

    for done, _ in enumerate(each(put, dataset.files), start=1):
        progress(done)
    key = dataset_record_key(dataset.name, dataset.fingerprint)
    store.put(key, dump(dataset), media_type="application/json")


def _carry(source: Source, store: Store, target: str, workdir: Path) -> int:
    """Copy between buckets, through this machine's disk."""
    path = workdir / f"carry-{secrets.token_hex(8)}"
    try:
        with source.store.get(source.key, version=source.version) as download, path.open("wb") as stream:
            shutil.copyfileobj(download.body, stream, 1 << 20)
        return store.put(target, path).size_bytes
    finally:
        path.unlink(missing_ok=True)
