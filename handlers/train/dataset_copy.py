"""A dataset's version on local disk: a run's own copy, since the trainer writes into it."""

from __future__ import annotations

import codecs
import hashlib
from collections.abc import Callable
from pathlib import Path

from handlers.ingest.archive import load_dataset
from handlers.ingest.records import Dataset, DatasetFile
from processor.errors import ErrorKind, TaskFailed
from processor.layout import dataset_prefix
from processor.parallel import each
from processor.store import Store, check_key


def copy_dataset(
    store: Store, name: str, fingerprint: str, folder: Path, *, progress: Callable[[int, int], None]
) -> Dataset:
    """Download every file of a version and compare it with its record.

    Raises:
        TaskFailed: BAD_INPUT if a file is not what was archived.
        StoreError: it could not be read.
    Cost: 1 request per file, and 1.
    """
    dataset = load_dataset(store, name, fingerprint)
    prefix = dataset_prefix(name, fingerprint)
    if dataset is None:
        raise TaskFailed(ErrorKind.BAD_INPUT, "this version of the dataset is gone", where=prefix)

    def fetch(file: DatasetFile) -> None:
        path = folder / check_key(prefix + file.name)[len(prefix) :]
        path.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        with store.get(prefix + file.name) as download, path.open("wb") as stream:
            while chunk := download.body.read(1 << 20):
                digest.update(chunk)
                stream.write(chunk)
        if digest.hexdigest() != file.sha256:
            raise TaskFailed(
                ErrorKind.BAD_INPUT,
                "the archived file is not what it was",
                where=prefix + file.name,
                mend="Drop the folder again with `replace: true`",
            )
        if file.kind == "caption":
            _drop_mark(path)

    folder.mkdir(parents=True, exist_ok=True)
    for done, _ in enumerate(each(fetch, dataset.files), start=1):
        progress(done, len(dataset.files))
    return dataset


def _drop_mark(caption: Path) -> None:
    """Without the byte-order mark that some editors put first: the trainer takes it for text."""
    data = caption.read_bytes()
    if data.startswith(codecs.BOM_UTF8):
        caption.write_bytes(data.removeprefix(codecs.BOM_UTF8))
