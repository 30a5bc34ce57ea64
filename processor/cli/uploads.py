"""Putting drops in the inbox: what a job needs goes first, the job or the marker last."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from processor.cli.job_files import JobFile
from processor.errors import AccessDenied, InvalidKey, NotFound
from processor.layout import DATASETS_INBOX, JOBS, NIGHTLY, RECURRING, job_id, slug
from processor.store import Store, check_key

READY = "_READY"
THREADS = 16
_MAX_NAME_BYTES = 200

Moved = Callable[[int], object]


@dataclass(frozen=True, slots=True)
class Dropped:
    """What now lies in the inbox. A dataset gets its job id when it is ingested, a template none."""

    key: str
    job_id: str | None = None
    files: int = 1


def drop_job(store: Store, job: JobFile, *, nightly: bool, moved: Moved) -> Dropped:
    """Upload a job, after the files that it reads; one with a `schedule` as a recurring template.

    Its key is always a new one: dropping a name again must never replace a drop that
    still waits, and without versions would be the same job.
    Cost: 1 request, 2 without versions, and 2 per file that it reads.
    """
    for key, path in job.uploads.items():
        _put_once(store, key, path)
        moved(path.stat().st_size)
    if job.recurring:
        # A template keeps its name: dropping it again replaces it.
        store.put(key := f"{RECURRING}{_name(job.source)}.json", job.data, media_type="application/json")
        moved(len(job.data))
        return Dropped(key)
    key = new_key(NIGHTLY if nightly else JOBS, _name(job.source))
    info = store.put(key, job.data, media_type="application/json")
    moved(len(job.data))
    return Dropped(key, job_id(key, info.version or store.stat(key).version))


def new_key(folder: str, name: str) -> str:
    """A key that nothing has had: `name.3f9a2c.json`. Pages leave the middle out (`gallery.job_name`)."""
    return f"{folder}{name}.{secrets.token_hex(3)}.json"


def drop_dataset(store: Store, folder: Path, files: Iterable[Path], *, name: str, moved: Moved) -> Dropped:
    """Upload a dataset folder in parallel, its `_READY` last.

    Raises:
        InvalidKey: the name or a file's can't be a key; nothing is uploaded then.
    Cost: 1 request per file, and 1.
    """
    prefix = f"{DATASETS_INBOX}{name}/"
    keys = {check_key(prefix + path.relative_to(folder).as_posix()): path for path in files}

    def upload(item: tuple[str, Path]) -> None:
        store.put(item[0], item[1])
        moved(item[1].stat().st_size)

    with ThreadPoolExecutor(THREADS) as pool:
        for _ in pool.map(upload, keys.items()):
            pass
    store.put(prefix + READY, b"")
    return Dropped(prefix, files=len(keys))


def _put_once(store: Store, key: str, path: Path) -> None:
    """The key names the content: what stands there needs no second upload."""
    try:
        if store.stat(key).size_bytes == path.stat().st_size:
            return
    except (NotFound, AccessDenied):  # some keys get 403 for what is missing; the put will tell
        pass
    store.put(key, path)


def _name(path: Path) -> str:
    """The file's own name as far as a key can hold it."""
    try:
        check_key(path.stem)
    except InvalidKey:
        return slug(path.stem)
    short = len(path.stem.encode()) <= _MAX_NAME_BYTES and "/" not in path.stem
    return path.stem if short else slug(path.stem)
