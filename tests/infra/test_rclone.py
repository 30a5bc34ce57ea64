"""Models between bucket and Volume by the real rclone: what is copied, left alone, or counts as current."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from handlers.model_cache import ModelCache
from infra import rclone
from infra.settings import Deployment, deployable
from processor.config import load_without_file
from processor.errors import ConfigError
from processor.records import ModelFile
from processor.store.s3 import S3Store
from tests.support.fixtures import KEY_ID, SECRET, make_bucket
from tests.support.moto import SerialMotoServer

MIB = 1024**2
LORA = ModelFile(folder="loras", name="zoe.safetensors")
LORA_KEY = "comfy_models/loras/zoe.safetensors"
EARLIER_S = 100.0


class Both:
    """A bucket with versions, and a Volume in a folder."""

    def __init__(self, store: S3Store, root: Path) -> None:
        self.store, self.volume = store, root / "volume"
        self._uploads = root / "upload"
        self.volume.mkdir()
        self.deployed: Deployment = deployable(
            load_without_file(
                bucket=store.url, endpoint_url=store._client.meta.endpoint_url, region="us-east-1"
            )
        )

    def copy(self, path: str, *, push: bool) -> int:
        """How many files were copied."""
        stats = rclone.copy(self.deployed, path, self.volume, push=push, progress=lambda _: None)
        return int(stats["transfers"])

    def upload(self, key: str, data: bytes) -> None:
        """As a file, so that a big one comes in parts; what is on the Volume is then older by a while."""
        for path in self.volume.rglob("*"):
            if path.is_file():
                then = path.stat().st_mtime - EARLIER_S
                os.utime(path, (then, then))
        self._uploads.write_bytes(data)
        self.store.put(key, self._uploads)

    def read(self, key: str) -> bytes:
        with self.store.get(key) as found:
            return bytes(found.body.read())

    def write(self, name: str, data: bytes) -> Path:
        path = self.volume / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path


@pytest.fixture
def both(moto: SerialMotoServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Both]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY_ID)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    store: Any = make_bucket(moto.url, versions=True, part_bytes=5 * MIB)
    yield Both(store, tmp_path)
    store.close()


@pytest.mark.parametrize("size_bytes", [1000, 6 * MIB])
def test_a_lora_trained_again_is_synced_again(both: Both, size_bytes: int) -> None:
    """Of the same name and size; one that came in parts has no hash to tell by. And only once."""
    both.upload(LORA_KEY, b"1" * size_bytes)
    assert [both.copy("loras", push=False) for _ in range(2)] == [1, 0]
    both.upload(LORA_KEY, b"2" * size_bytes)
    assert [both.copy("loras", push=False) for _ in range(2)] == [1, 0]
    assert (both.volume / "loras/zoe.safetensors").read_bytes()[:1] == b"2"


def test_a_job_takes_what_was_synced_until_the_bucket_has_a_newer_one(both: Both) -> None:
    """Before and after it was brought by a job itself."""
    both.upload(LORA_KEY, b"1")
    both.copy("", push=False)
    assert ModelCache(both.volume, both.store).lacking([LORA]) == []
    for content in (b"2", b"3"):
        both.upload(LORA_KEY, content)
        assert ModelCache(both.volume, both.store).lacking([LORA]) == [LORA]
        assert ModelCache(both.volume, both.store).ensure([LORA])
        assert (both.volume / "loras/zoe.safetensors").read_bytes() == content


def test_a_push_brings_what_the_bucket_lacks_and_takes_nothing_back(both: Both) -> None:
    """Neither a model that somebody replaced since, nor what `latest` points to."""
    pointer = "comfy_models/loras/zoe.latest.json"
    both.upload(LORA_KEY, b"old")
    both.copy("loras", push=False)
    both.upload(LORA_KEY, b"newer")
    both.upload(pointer, b"newer")
    both.write("loras/zoe.latest.json", b"old")
    both.write("loras/mia.latest.json", b"made here")
    both.write("loras/from-manager.safetensors", b"x")
    assert [both.copy("", push=True) for _ in range(2)] == [1, 0]
    assert [both.read(key) for key in (LORA_KEY, pointer)] == [b"newer"] * 2
    keys = {item.key for page in both.store.list("comfy_models/") for item in page.objects}
    assert keys == {LORA_KEY, pointer, "comfy_models/loras/from-manager.safetensors"}


def test_a_file_named_in_full_is_pushed_and_synced(both: Both) -> None:
    """Over what the bucket has; its time alone makes no new version."""
    both.upload(LORA_KEY, b"1" * 6 * MIB)
    assert both.copy("loras/zoe.safetensors", push=False) == 1
    path = both.write("loras/zoe.safetensors", b"2" * 6 * MIB)
    assert both.copy("loras/zoe.safetensors", push=True) == 1
    assert both.read(LORA_KEY)[:1] == b"2"
    version = both.store.stat(LORA_KEY).version
    os.utime(path)
    assert both.copy("loras/zoe.safetensors", push=True) == 0
    assert both.store.stat(LORA_KEY).version == version


def test_a_pointer_is_not_pushed_even_by_name(both: Both) -> None:
    both.write("loras/zoe.latest.json", b"old")
    with pytest.raises(ConfigError, match="only publishing moves"):
        both.copy("loras/zoe.latest.json", push=True)
