"""The machine's own cost a job: requests on the wire and CPU, against a bare boto3 loop."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.parse import urlsplit

from botocore.httpsession import URLLib3Session

from processor.run import run as run_machine
from processor.store.s3 import S3Store
from processor.store.s3_quick import QuickClient
from tests.benchmarks.machines import machine
from tests.benchmarks.measure import Figure, alternate, cpu_seconds, ratio
from tests.benchmarks.servers import make_bucket, rclone_server, versioned_server

_JOBS = 40
_ROUNDS = 4
_JOB = json.dumps({"workflow": "noop"}).encode()
_RESULT = json.dumps({"index": 0, "status": "done", "files": [], "seconds": 0.0}).encode()


def run(work: Path) -> list[Figure]:
    """On a bucket with versions, as B2's are, and on one without."""
    with versioned_server() as url:
        figures = _on(make_bucket(url, versions=True), url, work / "versions", "with versions")
    with rclone_server(work / "buckets") as url:
        figures += _on(make_bucket(url), url, work / "plain", "without versions, rclone's server")
    return figures


def _on(store: S3Store, url: str, work: Path, where: str) -> list[Figure]:
    versions = store.capabilities.versions
    requests: dict[str, Counter[str]] = {}
    # Leases in a folder here: on B2 they are Modal's, which costs no request of the store.
    with machine(store.url, work, endpoint_url=url, lease_backend="directory") as runner:
        batch = iter(range(1_000_000))

        def ours() -> float:
            _drop(store, f"own-{next(batch)}")
            with _counted() as requests["own"]:
                return cpu_seconds(lambda: run_machine(runner, once=True)) / _JOBS

        def loop() -> float:
            name = f"loop-{next(batch)}"
            _drop(store, name, folder="loop")
            with _counted() as requests["loop"]:
                return cpu_seconds(lambda: _bare_loop(store, name)) / _JOBS

        ours()
        found = alternate({"ours": ours, "loop": loop}, rounds=_ROUNDS)
    kinds = {kind: count / _JOBS for kind, count in requests["own"].items()}
    # The tick's own, shared by all jobs that one look at the inbox finds.
    shared = sum(count for kind, count in kinds.items() if kind.startswith("LIST") or "state" in kind)
    per_job = sum(kinds.values()) - shared
    cpu_ratio = ratio(found["ours"], found["loop"])
    return [
        Figure(
            f"Store requests a one-task job, on the wire ({where})",
            f"{per_job:.2f}, and {shared:.2f} of the tick that found {_JOBS}",
            "≤ 8",
            per_job <= 8 if versions else None,
            ", ".join(f"{kind} {count:.2f}" for kind, count in sorted(kinds.items())),
        ),
        Figure(
            f"CPU a one-task job ({where})",
            f"{cpu_ratio:.2f} × the loop's ({1e3 * found['ours'].median:.1f} against "
            f"{1e3 * found['loop'].median:.1f} ms)",
            "≤ 2 ×",
            cpu_ratio <= 2,
            f"{_JOBS} jobs a round, {_ROUNDS} rounds; the loop makes {requests['loop'].total() / _JOBS:g} "
            "requests: get, put result, put manifest, copy, delete",
        ),
    ]


def _drop(store: S3Store, name: str, folder: str = "inbox/jobs") -> None:
    for number in range(_JOBS):
        store.put(f"{folder}/{name}-{number}.json", _JOB, media_type="application/json")


def _bare_loop(store: S3Store, name: str) -> None:
    """The least that must be said to the store, by boto3 as its documentation shows it."""
    client, bucket = store._client, store._bucket
    for number in range(_JOBS):
        key = f"loop/{name}-{number}.json"
        json.loads(client.get_object(Bucket=bucket, Key=key)["Body"].read())
        client.put_object(Bucket=bucket, Key=f"loop-out/{name}-{number}/result.json", Body=_RESULT)
        client.put_object(Bucket=bucket, Key=f"loop-out/{name}-{number}/manifest.json", Body=_RESULT)
        client.copy_object(
            Bucket=bucket,
            Key=f"loop-done/{name}-{number}.json",
            CopySource={"Bucket": bucket, "Key": key},
        )
        client.delete_object(Bucket=bucket, Key=key)


@contextmanager
def _counted() -> Iterator[Counter[str]]:
    """Counts what botocore's sessions and the quick client send while inside, a retry as one more."""
    counts: Counter[str] = Counter()
    send, get, put, delete = URLLib3Session.send, QuickClient.get, QuickClient.put, QuickClient.delete

    def counting(session: URLLib3Session, request: Any) -> Any:
        counts[_operation(request.method, request.url, request.headers)] += 1
        return send(session, request)

    def counting_get(quick: QuickClient, key: str, version: str | None, *, head: bool = False) -> Any:
        counts[_operation("HEAD" if head else "GET", f"/bucket/{key}", {})] += 1
        return get(quick, key, version, head=head)

    def counting_put(quick: QuickClient, key: str, body: bytes, *, media_type: str) -> Any:
        counts[_operation("PUT", f"/bucket/{key}", {})] += 1
        return put(quick, key, body, media_type=media_type)

    def counting_delete(quick: QuickClient, key: str) -> bool:
        counts[_operation("DELETE", f"/bucket/{key}", {})] += 1
        return delete(quick, key)

    with (
        patch.object(URLLib3Session, "send", counting),
        patch.object(QuickClient, "get", counting_get),
        patch.object(QuickClient, "put", counting_put),
        patch.object(QuickClient, "delete", counting_delete),
    ):
        yield counts


def _operation(method: str, url: str, headers: Any) -> str:
    parts = urlsplit(url)
    name = method
    if any(each.lower() == "x-amz-copy-source" for each in headers):
        name = "COPY"
    elif parts.path.count("/") == 1 or "list-type=" in parts.query or "versions" in parts.query.split("&"):
        name = "LIST"
    if "/state/leases/" in parts.path:
        return f"{name} lease"
    return f"{name} state" if "/state/" in parts.path else name
