"""Putting drops in the inbox: what a job needs goes first, the job or the marker last."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from processor import rclone
from processor.cli.job_files import JobFile
from processor.config import Settings, credentials
from processor.datasets import LISTED, READY, check_dataset_name, write_listed
from processor.errors import AccessDenied, InvalidKey, NotFound, StoreUnavailable
from processor.layout import DATASETS_INBOX, JOBS, NIGHTLY, RECURRING, job_id, slug
from processor.parallel import each
from processor.store import ObjectInfo, Store, check_key

_MAX_NAME_BYTES: Final = 200
_RCLONES_QUOTE: Final = "\u201b"
"""Whatever its encodings are set to, rclone 1.75 doesn't find a file with this in its name."""
_MANY: Final = 500
"""Files; for fewer, another program's start isn't worth it."""
_RCLONE_FLAGS: Final = (
    *("--stats", "500ms", "--copy-links"),
    # The folder is a new drop: what lies there is not asked for, before or after.
    *("--no-traverse", "--no-check-dest", "--s3-no-head"),
    # Nor is it known on a second try, which would send all again for the sake of one.
    *("--retries", "1"),
)

Moved = Callable[[int], object]
Copier = Callable[[Path, list[str], str, Moved], list[str]]
"""Copies a folder's files of these relative names below a prefix of the store. It returns the names of
those that failed, whose bytes it has told, too."""


@dataclass(frozen=True, slots=True)
class Dropped:
    """What now lies in the inbox. A dataset gets its job id when it is ingested, a template none; a key
    that may only write is told none."""

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
    return Dropped(key, id_of(store, info))


def id_of(store: Store, info: ObjectInfo) -> str | None:
    """A drop's job id; None to a key that may write and no more, which can't ask for the version.

    The job lies in the inbox all the same: who is told that it failed drops it twice.
    """
    try:
        return job_id(info.key, info.version or store.stat(info.key).version)
    except AccessDenied:
        return None


def new_key(folder: str, name: str) -> str:
    """A key that nothing has had: `name.3f9a2c.json`. Pages leave the middle out (`gallery.job_name`)."""
    return f"{folder}{name}.{secrets.token_hex(3)}.json"


def drop_dataset(
    store: Store,
    folder: Path,
    files: Iterable[Path],
    *,
    name: str,
    moved: Moved,
    copier: Copier | None = None,
) -> Dropped:
    """Upload a dataset folder in parallel: what it will hold first, its `_READY` last.

    Args:
        copier: brings many files into the same store faster than we can, if there is one.
    Raises:
        JobInvalid: no dataset can be called that; nothing is uploaded then.
        InvalidKey: a file's name can't be a key; nothing is uploaded then.
    Cost: 1 request per file, and 3.
    """
    prefix = f"{DATASETS_INBOX}{check_dataset_name(name)}/"
    keys = {check_key(prefix + path.relative_to(folder).as_posix()): path for path in files}
    files_sent = len(keys)
    if (own := keys.pop(prefix + LISTED, None)) is not None:
        announce(store, prefix, own)
        moved(own.stat().st_size)
    else:
        sizes = {key.removeprefix(prefix): path.stat().st_size for key, path in keys.items()}
        announce(store, prefix, write_listed(sizes))
    left: set[str] = set()
    if copier is not None and len(keys) >= _MANY:
        names = [key.removeprefix(prefix) for key in keys if _RCLONES_QUOTE not in key]
        left = {prefix + name for name in copier(folder, names, prefix, moved)}
        keys = {key: path for key, path in keys.items() if _RCLONES_QUOTE in key or key in left}
    for (key, path), _ in each(lambda item: store.put(item[0], item[1]), keys.items()):
        moved(0 if key in left else path.stat().st_size)
    store.put(prefix + READY, b"")
    return Dropped(prefix, files=files_sent)


def announce(store: Store, prefix: str, listed: bytes | Path) -> None:
    """Make sure that a part of what goes up now is never taken as the whole, however it ends.

    The `_READY` of an earlier drop that still waits in this folder is removed; a key that may not
    remove it has to do without. The list of what will be there takes the place of an earlier one.

    Args:
        listed: the `_manifest.json`.
    Cost: 2 requests, 2 more for each version of the `_READY`.
    """
    _withdraw_ready(store, prefix)
    store.put(prefix + LISTED, listed, media_type="application/json")


def _withdraw_ready(store: Store, prefix: str) -> None:
    with suppress(NotFound, AccessDenied):  # some keys get 403 for what is missing
        while True:
            store.delete(prefix + READY, version=store.stat(prefix + READY).version)


def rclone_copier(settings: Settings) -> Copier | None:
    """By rclone, where it is installed and the bucket is no folder.

    It sends each file once with its MD5, which the store checks, and asks for nothing back.
    """
    key, program = credentials(os.environ), rclone.binary()
    if key is None or program is None or not settings.store_url.startswith(("b2:", "s3:")):
        return None
    from processor.store.opening import locate

    endpoint_url, region = locate(
        settings.store_url, endpoint_url=settings.endpoint_url, region=settings.region
    )
    environ = rclone.environment(endpoint_url=endpoint_url, region=region, key=key)

    def copy(folder: Path, names: list[str], prefix: str, moved: Moved) -> list[str]:
        done_bytes, total_bytes = 0, sum((folder / name).stat().st_size for name in names)
        failed: set[str] = set()

        def tell(sent_bytes: int) -> None:
            nonlocal done_bytes
            # rclone counts what it sends again, too.
            more_bytes = max(0, min(sent_bytes, total_bytes) - done_bytes)
            done_bytes += more_bytes
            moved(more_bytes)

        target = rclone.remote_path(settings.store_url, prefix)
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=".txt") as listed:
            listed.write("\n".join(names))
            listed.flush()
            command = [program, "copy", str(folder), target, *rclone.FLAGS, *_RCLONE_FLAGS]
            command += ["--files-from-raw", listed.name]
            stats = rclone.run(command, environ, lambda stats: tell(stats["bytes"]), failed=failed)
        left = [name for name in names if name in failed]
        if (sent := stats["transfers"]) < len(names) - len(left):
            raise StoreUnavailable(
                f"rclone sent {sent} of {len(names)} files", where=prefix, mend="Drop it again."
            )
        tell(total_bytes)
        return left

    return copy


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
