"""The real app on the loopback, with a bucket on an S3 server: what these tests share."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any

import modal  # the client under test
import urllib3

from infra.handover import to_json
from processor.attempt import Claim
from processor.inbox import Drop
from processor.leases.lease import Lease
from processor.records import Manifest
from processor.store import Store
from tests.loopback import Loopback
from tests.support.fixtures import KEY_ID, SECRET, make_bucket

APP = "dropbatch"
SMALL: dict[str, Any] = {
    "engine": "builtin",
    "render_containers": 2,
    "dispatch_containers": 2,
    "jobs_per_dispatch": 8,
    "claims_per_tick": 16,
    "render_scaledown_s": 30,
}
"""The built-in engine and few containers: the tests' machine has two cores."""


@dataclass
class Deployed:
    """A loopback with the app on it, and its bucket."""

    loopback: Loopback
    store: Store
    env: dict[str, str]

    def tick(self, timeout_s: float = 60) -> dict[str, Any]:
        """Let the cron fire and wait for it."""
        return dict(self.loopback.trigger("tick").get(timeout=timeout_s))

    def function(self, name: str) -> modal.Function[..., Any, Any]:
        return modal.Function.from_name(APP, name)

    def put_job(self, name: str, job: Any) -> str:
        key = f"inbox/jobs/{name}.json"
        self.store.put(key, json.dumps(job).encode())
        return key

    def keys(self, prefix: str) -> list[str]:
        return [item.key for page in self.store.list(prefix) for item in page.objects]

    def read(self, key: str) -> bytes:
        with self.store.get(key) as download:
            return download.body.read()

    def manifests(self) -> dict[str, Manifest]:
        """By the key of the drop; two for one drop are an error."""
        found = [key for key in self.keys("comfy_outputs/") if key.count("/") == 2]
        all_ = [Manifest.model_validate_json(self.read(k)) for k in found if k.endswith("/manifest.json")]
        assert len({manifest.drop.key for manifest in all_}) == len(all_)
        return {manifest.drop.key: manifest for manifest in all_}

    def leases(self) -> list[str]:
        """The keys of the lease store."""
        return [str(key) for key in modal.Dict.from_name(f"{APP}-leases").keys()]  # noqa: SIM118  (no dict)

    def leased_jobs(self) -> set[str]:
        """Ids of the jobs that lie in the inbox and were leased."""
        ids = {key.split("/")[1] for key in self.leases() if key.startswith("lease/")}
        settled = {key.split("/")[2] for key in (*self.keys("done/"), *self.keys("failed/"))}
        return ids - settled

    def claim_of(self, key: str, job_id: str) -> dict[str, Any]:
        """The claim that a tick handed over, as a second delivery would bring it."""
        entry = json.loads(modal.Dict.from_name(f"{APP}-leases").get(f"lease/{job_id}/1"))
        info = self.store.stat(key)
        drop = Drop(key, info.version, info.size_bytes, info.modified)
        lease = Lease(job_id, 1, entry["nonce"], datetime.fromisoformat(entry["until"]))
        return to_json(Claim(drop, lease))

    def run_until_empty(self, ignored: tuple[str, ...] = (), timeout_s: float = 150) -> int:
        """Tick as the cron does, until nothing but what is ignored lies in the inbox; how many ticks."""
        ticks, next_look = 0, 0.0

        def empty() -> bool:
            nonlocal ticks, next_look
            if any(container.inputs for container in self.loopback.containers("Dispatcher", state="running")):
                return False
            if time.monotonic() < next_look:
                return False
            if set(self.keys("inbox/")) <= set(ignored):
                return True
            claimed = self.tick()["claimed"]
            ticks += 1
            # Looking is most of what a test costs: where all is leased, once a second will do.
            next_look = time.monotonic() + (0.0 if claimed else 1.0)
            return False

        self.loopback.wait_until(empty, timeout_s, "an empty inbox")
        return ticks

    def check_whole(self) -> None:
        """What manifests name is there with its size; no secret is anywhere to be read."""
        for manifest in self.manifests().values():
            for file in (file for result in manifest.tasks for file in result.files):
                assert len(self.read(file.key)) == file.size_bytes
        assert SECRET not in self.loopback.logs(tail_bytes=10_000_000)


def ask(here: Deployed, method: str, path: str, value: Any = None, *, auth: bool = True) -> Any:
    """The headless API's reply."""
    key, secret = here.loopback.proxy_auth
    headers = {"Modal-Key": key, "Modal-Secret": secret} if auth else {}
    body = None if value is None else json.dumps(value).encode()
    url = here.loopback.url_of("api") + path
    return urllib3.request(method, url, body=body, headers=headers, timeout=90, retries=False)


@contextmanager
def deployed(
    root: Path,
    endpoint_url: str,
    *,
    secrets: dict[str, dict[str, str]] | None = None,
    container_env: dict[str, str] | None = None,
    more: dict[str, str] | None = None,
    lease_s: int = 120,
    engine_args: Sequence[str] = (),
    **modal_settings: Any,
) -> Iterator[Deployed]:
    """The app, deployed as a user does, on a new bucket of that server.

    Args:
        more: further variables of the one who deploys.
        lease_s: short where a test waits for one to run out; else long enough for a busy machine.
    """
    store = make_bucket(endpoint_url, versions=True)
    env = {
        "DROPBATCH_BUCKET": store.url.replace("b2://", "s3://"),
        "DROPBATCH_ENDPOINT_URL": endpoint_url,
        "DROPBATCH_REGION": "us-east-1",
        "DROPBATCH_LEASE_S": str(lease_s),
        "DROPBATCH_RENEW_S": str(lease_s // 5),
        "DROPBATCH_FOUNDING_GRACE_S": "0.1",
        "DROPBATCH_COMFYUI_ARGS": ",".join(engine_args),
        "DROPBATCH_MODAL": json.dumps(SMALL | modal_settings),
        **(more or {}),
    }
    with Loopback(root / "modal", container_env=container_env) as running:
        for name, values in (secrets or {}).items():
            running.set_secret(name, values)
        running.set_secret("b2-credentials", {"AWS_ACCESS_KEY_ID": KEY_ID, "AWS_SECRET_ACCESS_KEY": SECRET})
        running.deploy("-m", "infra.app", env=env)
        yield Deployed(running, store, env)
    store.close()


@contextmanager
def deadline(seconds: int) -> Iterator[None]:
    """No test may hang: Modal's own calls wait without end for a container that never answers."""

    def late(_signal: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"the test took longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
