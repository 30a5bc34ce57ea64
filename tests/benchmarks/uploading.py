"""A dataset of 10,000 files: `dropbatch drop` against `rclone copy`."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from itertools import count
from pathlib import Path

from processor.parallel import THREADS
from tests.benchmarks.measure import Figure, alternate, seconds
from tests.benchmarks.servers import rclone_server
from tests.support.rclone import KEY_ID, SECRET, rclone_binary

_FILES = 10_000
_BYTES = 4096


def run(work: Path) -> list[Figure]:
    """Both as commands, with equal parallelism, to the same server, into new folders."""
    folder = work / "photos"
    folder.mkdir()
    content = random.Random(7).randbytes  # noqa: S311 - any bytes will do
    for number in range(_FILES // 2):
        (folder / f"{number:05}.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content(_BYTES))
        (folder / f"{number:05}.txt").write_text(f"a picture, number {number}")
    (work / "buckets" / "bench").mkdir(parents=True)
    numbers = count()
    with rclone_server(work / "buckets") as url:
        found = alternate(
            {
                "ours": lambda: seconds(lambda: _dropbatch(url, folder, next(numbers))),
                "rclone": lambda: seconds(lambda: _rclone(url, folder, next(numbers), work)),
            },
            rounds=2,
        )
    share = found["rclone"].median / found["ours"].median
    return [
        Figure(
            "Upload of a 10,000-file dataset",
            f"{share:.2f} × rclone's speed ({found['ours'].median:.1f} against "
            f"{found['rclone'].median:.1f} s)",
            "≥ 1.0 ×",
            share >= 1,
            f"{THREADS} at a time each, to `rclone serve s3`; `dropbatch drop` sends so many by rclone, too, "
            "and asks for nothing that a new folder can't have",
        )
    ]


def _dropbatch(url: str, folder: Path, number: int) -> None:
    command = [str(Path(sys.executable).parent / "dropbatch"), "drop", str(folder)]
    environment = os.environ | {
        "DROPBATCH_BUCKET": "s3://bench",
        "DROPBATCH_ENDPOINT_URL": url,
        "DROPBATCH_KEY_ID": KEY_ID,
        "DROPBATCH_KEY": SECRET,
    }
    subprocess.run([*command, "--name", f"ours-{number}"], check=True, env=environment, capture_output=True)


def _rclone(url: str, folder: Path, number: int, work: Path) -> None:
    target = f":s3:bench/inbox/datasets/rclone-{number}"
    flags = ["--s3-provider", "Other", "--s3-endpoint", url, "--s3-access-key-id", KEY_ID]
    flags += ["--s3-secret-access-key", SECRET, "--s3-region", "us-east-1", "--config", os.devnull]
    flags += ["--transfers", str(THREADS), "--checkers", str(THREADS)]
    subprocess.run(
        [str(rclone_binary()), "copy", str(folder), target, *flags],
        check=True,
        capture_output=True,
        env={"PATH": os.environ["PATH"], "HOME": str(work)},
    )
