"""The model cache: exactly what was named, whole, current, and nowhere else."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from handlers.model_cache import ModelCache, model_state, paths_yaml
from processor.errors import ErrorKind, TaskFailed
from processor.records import ModelFile
from processor.store.memory import MemoryStore

LORA = ModelFile(folder="loras", name="styles/ink.safetensors")
KEY = "comfy_models/loras/styles/ink.safetensors"


@pytest.fixture
def store() -> MemoryStore:
    store = MemoryStore()
    store.put(KEY, b"first")
    store.put("comfy_models/loras/other.safetensors", b"not asked for")
    return store


def files(root: Path) -> list[str]:
    return sorted(
        path.relative_to(root).as_posix()
        for path in root.rglob("*")
        if path.is_file() and not path.relative_to(root).as_posix().startswith(".dropbatch/")
    )


def test_only_what_is_named(store: MemoryStore, tmp_path: Path) -> None:
    assert ModelCache(tmp_path, store).ensure([LORA]) is False
    assert files(tmp_path) == ["loras/styles/ink.safetensors"]
    assert (tmp_path / "loras/styles/ink.safetensors").read_bytes() == b"first"


def test_new_version_of_the_same_size_replaces(store: MemoryStore, tmp_path: Path) -> None:
    """A LoRA trained again has the same name and the same size."""
    ModelCache(tmp_path, store).ensure([LORA])
    store.put(KEY, b"again")
    assert ModelCache(tmp_path, store).ensure([LORA]) is True
    assert (tmp_path / "loras/styles/ink.safetensors").read_bytes() == b"again"
    assert ModelCache(tmp_path, store).ensure([LORA]) is False


def test_what_lies_there_differs_once_it_was_replaced(store: MemoryStore, tmp_path: Path) -> None:
    """By whomever; a file and a folder alike, and one that is not there yet."""
    tree = ModelFile(folder="diffusers", name="sd")
    for name in ("model_index.json", "unet/model.safetensors"):
        store.put(f"comfy_models/diffusers/sd/{name}", b"1")
    cache = ModelCache(tmp_path, store)
    paths = [cache.path_of(model) for model in (LORA, tree)]
    assert [model_state(path) for path in paths] == [(), ()]
    cache.ensure([LORA, tree])
    before = [model_state(path) for path in paths]
    ModelCache(tmp_path, store).ensure([LORA, tree])
    assert [model_state(path) for path in paths] == before
    for path in (paths[0], paths[1] / "unet" / "model.safetensors"):
        later = path.stat().st_mtime + 10
        os.utime(path, (later, later))
    assert all(now != then for now, then in zip(map(model_state, paths), before, strict=True))


def test_what_is_lacking_is_known_without_bringing_it(store: MemoryStore, tmp_path: Path) -> None:
    """What is not there, is another version or cut off; nothing is written for the asking."""
    store.put("comfy_models/diffusers/sd/model_index.json", b"{}")
    store.put("comfy_models/diffusers/sd/unet/w.bin", b"weights")
    tree = ModelFile(folder="diffusers", name="sd")
    cache = ModelCache(tmp_path, store)
    assert cache.lacking([LORA, tree]) == [LORA, tree]
    assert not list(tmp_path.rglob("*"))
    cache.ensure([LORA, tree])
    assert cache.lacking([LORA, tree]) == []
    store.put(KEY, b"again")
    (tmp_path / "diffusers" / "sd" / "unet" / "w.bin").write_bytes(b"wei")
    assert cache.lacking([LORA, tree]) == [LORA, tree]
    by_hand = ModelFile(folder="loras", name="local.safetensors")
    (tmp_path / "loras" / "local.safetensors").write_bytes(b"x")
    assert cache.lacking([by_hand, ModelFile(folder="vae", name="nowhere")]) == [
        ModelFile(folder="vae", name="nowhere")
    ]


def test_file_put_there_by_hand_is_kept(store: MemoryStore, tmp_path: Path) -> None:
    """Of the right size it is taken as it is; absent in the store it is used, too."""
    path = tmp_path / "loras" / "styles" / "ink.safetensors"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"mine!")
    assert ModelCache(tmp_path, store).ensure([LORA]) is False
    assert path.read_bytes() == b"mine!"
    (tmp_path / "loras" / "local.safetensors").write_bytes(b"x")
    ModelCache(tmp_path, store).ensure([ModelFile(folder="loras", name="local.safetensors")])


def test_a_file_older_than_the_stores_is_fetched_once(store: MemoryStore, tmp_path: Path) -> None:
    """What rclone brought has no note: a LoRA trained again has its name and size. A copy that kept an
    old time costs one download."""
    path = tmp_path / "loras" / "styles" / "ink.safetensors"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"older")
    before = store.stat(KEY).modified.timestamp() - 10
    os.utime(path, (before, before))
    assert ModelCache(tmp_path, store).lacking([LORA]) == [LORA]
    assert [ModelCache(tmp_path, store).ensure([LORA]) for _ in range(2)] == [True, False]
    assert path.read_bytes() == b"first"


def test_a_file_put_over_what_we_brought_is_judged_by_its_time(store: MemoryStore, tmp_path: Path) -> None:
    """The note is of another file then: a sync that renewed it is not undone, nor is an old copy taken."""
    path = tmp_path / "loras" / "styles" / "ink.safetensors"
    ModelCache(tmp_path, store).ensure([LORA])
    store.put(KEY, b"again")
    for later_s, current in ((10, True), (-10, False)):
        at = store.stat(KEY).modified.timestamp() + later_s
        os.utime(path, (at, at))
        assert (ModelCache(tmp_path, store).lacking([LORA]) == []) is current


def test_wrong_size_is_fetched_again(store: MemoryStore, tmp_path: Path) -> None:
    """As a copy that broke off would be."""
    path = tmp_path / "loras" / "styles" / "ink.safetensors"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"fir")
    assert ModelCache(tmp_path, store).ensure([LORA]) is True
    assert path.read_bytes() == b"first"


def test_missing_names_folder_and_file(store: MemoryStore, tmp_path: Path) -> None:
    with pytest.raises(TaskFailed) as caught:
        ModelCache(tmp_path, store).ensure([ModelFile(folder="vae", name="gone.safetensors")])
    assert caught.value.kind is ErrorKind.MISSING_MODEL
    assert "comfy_models/vae/gone.safetensors" in str(caught.value)
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("loras", "../../x"),
        ("loras", "/etc/passwd"),
        ("../loras", "x"),
        ("loras", "a\\..\\..\\x"),
        ("loras", ""),
        ("", "x"),
    ],
)
def test_names_that_climb(store: MemoryStore, tmp_path: Path, folder: str, name: str) -> None:
    with pytest.raises(TaskFailed) as caught:
        ModelCache(tmp_path / "models", store).ensure([ModelFile(folder=folder, name=name)])
    assert caught.value.kind is ErrorKind.REFUSED


def test_diffusers_folder_comes_whole(store: MemoryStore, tmp_path: Path) -> None:
    for name in ("model_index.json", "unet/config.json", "vae/model.safetensors"):
        store.put(f"comfy_models/diffusers/sd/{name}", name.encode())
    store.put("comfy_models/diffusers/sd2/model_index.json", b"another")
    ModelCache(tmp_path, store).ensure([ModelFile(folder="diffusers", name="sd")])
    assert files(tmp_path) == [
        "diffusers/sd/model_index.json",
        "diffusers/sd/unet/config.json",
        "diffusers/sd/vae/model.safetensors",
    ]


def test_many_at_once_download_once(store: MemoryStore, tmp_path: Path) -> None:
    """Threads and processes wait for the one that fetches."""
    with ThreadPoolExecutor(8) as pool:
        replaced = list(pool.map(lambda _: ModelCache(tmp_path, store).ensure([LORA]), range(16)))
    assert not any(replaced)
    assert files(tmp_path) == ["loras/styles/ink.safetensors"]


def test_paths_file_quotes_any_path(tmp_path: Path) -> None:
    odd = tmp_path / "it's: a #1 “path”"
    config = json.loads(paths_yaml(odd, {"loras": "loras", "vae": "vae"}))
    assert config == {"dropbatch": {"base_path": str(odd), "loras": "loras", "vae": "vae"}}
