"""Thirty mixed drops through the command line, on a folder and on buckets, with and without kill -9."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from processor.records import Manifest, Outcome
from processor.store import Store
from processor.store.directory import DirectoryStore
from tests.acceptance.drops import EXAMPLES, IGNORED
from tests.support.b2like import B2Like
from tests.support.fixtures import KEY_ID, SECRET, make_bucket
from tests.support.moto import SerialMotoServer

_RUN_LIMIT_S = 240


@dataclass
class Place:
    """A bucket that the command line can be pointed at."""

    store: Store
    flags: list[str]
    env: dict[str, str]

    def run(self, *args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "processor.cli", *args, *self.flags],
            env=self.env,
            capture_output=True,
            text=True,
            timeout=_RUN_LIMIT_S,
            check=False,
        )

    def start(self, *args: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "processor.cli", *args, *self.flags],
            env=self.env,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def keys(self, prefix: str) -> list[str]:
        return [item.key for page in self.store.list(prefix) for item in page.objects]

    def read(self, key: str) -> bytes:
        with self.store.get(key) as download:
            return download.body.read()

    def manifests(self) -> dict[str, Manifest]:
        """By the key of the drop."""
        found = [key for key in self.keys("comfy_outputs/") if key.count("/") == 2]
        all_ = [Manifest.model_validate_json(self.read(k)) for k in found if k.endswith("/manifest.json")]
        assert len({manifest.drop.key for manifest in all_}) == len(all_)
        return {manifest.drop.key: manifest for manifest in all_}


@pytest.fixture(params=["folder", "s3", "b2"])
def place(
    request: pytest.FixtureRequest, tmp_path: Path, moto: SerialMotoServer, b2: B2Like
) -> Iterator[Place]:
    """A folder; S3 with versions and put-if-absent; S3 as B2 behaves."""
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "DROPBATCH_WORK_DIR": str(tmp_path / "work"),
        "DROPBATCH_KEY_ID": KEY_ID,
        "DROPBATCH_KEY": SECRET,
        "DROPBATCH_LEASE_S": "60",
        "DROPBATCH_RENEW_S": "10",
        "DROPBATCH_FOUNDING_GRACE_S": "0.1",
    }
    if request.param == "folder":
        folder = DirectoryStore(tmp_path / "bucket", create=True)
        yield Place(folder, ["--bucket", str(folder.root)], env)
        return
    endpoint = moto.url if request.param == "s3" else b2.url
    store = make_bucket(endpoint, versions=True)
    env["DROPBATCH_REGION"] = "us-east-1"
    url = store.url.replace("b2://", "s3://")
    yield Place(store, ["--bucket", url, "--endpoint-url", endpoint], env)
    store.close()


def fill(place: Place) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (8, 8), "teal").save(picture, "PNG")
    place.store.put("inputs/a.png", picture.getvalue())
    for key in IGNORED:
        place.store.put(key, b"not a job")
    for example in EXAMPLES:
        place.store.put(example.key, example.data)


def check_end_state(place: Place) -> None:
    """Every drop settled with the outcome it deserves; what manifests name is there."""
    manifests = place.manifests()
    assert manifests.keys() == {example.key for example in EXAMPLES}
    for example in EXAMPLES:
        manifest = manifests[example.key]
        said = json.dumps(manifest.model_dump(mode="json")["error"], ensure_ascii=False)
        assert (manifest.outcome, len(manifest.tasks)) == (example.outcome, example.tasks), said
        assert example.says in said
        assert "Traceback" not in said
        for file in (file for result in manifest.tasks for file in result.files):
            assert len(place.read(file.key)) == file.size_bytes
            assert file.key.startswith(f"comfy_outputs/{manifest.job_id}/")
            assert ".." not in file.key
    assert set(place.keys("inbox/")) == set(IGNORED)
    settled = place.keys("done/") + place.keys("failed/")
    for manifest in manifests.values():
        folder = f"{manifest.outcome.settles_in}/{manifest.finished_at:%Y-%m-%d}/{manifest.job_id}/"
        assert any(key.startswith(folder) for key in settled)
        assert (f"{folder}error.json" in settled) == (manifest.outcome.settles_in == "failed")
    assert not any(SECRET.encode() in place.read(key) for key in place.keys("comfy_outputs/"))


def test_every_drop_ends_in_done_or_failed_and_a_second_run_does_nothing(place: Place) -> None:
    """One pass takes everything to its end; the exit code says that some failed."""
    fill(place)
    first = place.run("run", "--once", "--json")
    assert first.returncode == 1, first.stderr
    counts = json.loads(first.stdout)["outcomes"]
    assert counts == _expected_counts()
    assert SECRET not in first.stderr + first.stdout
    check_end_state(place)
    before = _snapshot(place)
    second = place.run("run", "--once", "--json")
    assert second.returncode == 0, second.stderr
    assert json.loads(second.stdout)["outcomes"] == {}
    assert _snapshot(place) == before


def test_kill_9_in_the_middle_and_run_again_ends_the_same(place: Place) -> None:
    """A runner killed at work leaves nothing that the next one doesn't put right at once."""
    fill(place)
    victim = place.start("run", "--once")
    assert victim.stderr is not None
    for settled, line in enumerate(_lines_of_jobs(victim.stderr), start=1):
        assert line
        if settled == 6:
            break
    os.killpg(victim.pid, signal.SIGKILL)
    victim.wait(timeout=30)
    victim.stderr.close()
    second = place.run("run", "--once", "--json")
    assert second.returncode in (0, 1), second.stderr
    check_end_state(place)


def _lines_of_jobs(stream: Any) -> Iterator[str]:
    for line in stream:
        if json.loads(line).get("event") == "job":
            yield line


def _expected_counts() -> dict[str, int]:
    counts: dict[str, int] = {}
    for example in EXAMPLES:
        counts[example.outcome.value] = counts.get(example.outcome.value, 0) + 1
    return counts


def _snapshot(place: Place) -> dict[str, str]:
    """What stands, but for the machine's own probes and notes."""
    return {
        item.key: f"{item.size_bytes} {item.version}"
        for page in place.store.list("")
        for item in page.objects
        if not item.key.startswith("state/")
    }


def test_outcomes_cover_what_users_meet() -> None:
    """The examples are thirty, and both good and bad."""
    assert len(EXAMPLES) == 30
    assert {example.outcome for example in EXAMPLES} == {Outcome.DONE, Outcome.INVALID}
