"""Base models: from the bucket, else downloaded by the one process that sees a token."""

from __future__ import annotations

import os
import stat
import sys
import time
from pathlib import Path

import pytest

from handlers.train.base_models import BaseModels, hub_download
from handlers.train.presets import BaseModel
from processor.errors import ErrorKind, StoreUnavailable, TaskFailed
from processor.store import Download
from processor.store.memory import MemoryStore
from processor.testing.clock import ManualClock
from processor.testing.counting import CountingStore

BARE = BaseModel(name="FLUX", diffusers=False)
"""One whose files nobody can know."""
BASE = BaseModel(name="FLUX", repo="someone/FLUX", licence="a strict one", gated=True)


def hub(folder: Path, answer: str, *, info: str = "pass", weights: str = "abc") -> Path:
    """A Python whose huggingface_hub answers as told and writes down its token."""
    package = folder / "site" / "huggingface_hub"
    package.mkdir(parents=True)
    (package / "errors.py").write_text(
        "class GatedRepoError(Exception): pass\nclass RepositoryNotFoundError(Exception): pass\n"
    )
    (package / "__init__.py").write_text(
        "import os, pathlib, types\n"
        "from huggingface_hub.errors import *\n"
        "class HfApi:\n"
        "    def model_info(self, repo, files_metadata):\n"
        f"        {info}\n"
        "        sizes = {'model_index.json': 2, 'unet/a.safetensors': 3, 'flax.msgpack': 5}\n"
        "        files = [types.SimpleNamespace(rfilename=n, size=s) for n, s in sizes.items()]\n"
        "        return types.SimpleNamespace(sha='abc', siblings=files)\n"
        "def snapshot_download(repo, revision, local_dir, **_):\n"
        "    assert revision == 'abc'\n"
        f"    pathlib.Path({str(folder / 'seen')!r}).write_text(repr(dict(os.environ)))\n"
        f"    {answer}\n"
        "    folder = pathlib.Path(local_dir)\n"
        "    (folder / 'unet').mkdir(exist_ok=True)\n"
        "    (folder / 'model_index.json').write_text('{}')\n"
        f"    (folder / 'unet' / 'a.safetensors').write_text({weights!r})\n"
    )
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={folder / "site"} exec {sys.executable} "$@"\n')
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    return python


def test_the_bucket_is_asked_first_and_files_are_fetched_once(tmp_path: Path) -> None:
    """A second run finds them as they are noted."""
    store = CountingStore(MemoryStore())
    for name in ("model_index.json", "unet/a.safetensors"):
        store.put(f"models/FLUX/{name}", b"{}")
    models = BaseModels(tmp_path, None)
    folder = models.ensure(store, BASE)
    assert (folder / "unet" / "a.safetensors").read_bytes() == b"{}"
    store.reset()
    models.ensure(store, BASE)
    assert store.counts == {"list": 1}


@pytest.mark.parametrize("versions", [True, False])
def test_a_file_replaced_by_one_of_its_size_is_fetched_again(tmp_path: Path, versions: bool) -> None:
    """Weights trained further have the same size; the bucket's version, or else time, tells."""
    clock = ManualClock()
    store = CountingStore(MemoryStore(versions=versions, clock=clock))
    store.put("models/FLUX/model_index.json", b"{}")
    store.put("models/FLUX/unet/a.safetensors", b"old")
    models = BaseModels(tmp_path, None)
    folder = models.ensure(store, BASE)
    clock.advance(60)
    store.put("models/FLUX/unet/a.safetensors", b"new")
    store.reset()
    models.ensure(store, BASE)
    assert (folder / "unet" / "a.safetensors").read_bytes() == b"new"
    models.ensure(store, BASE)
    assert store.counts == {"list": 2, "get": 1}


def test_what_is_gone_from_the_bucket_goes_here(tmp_path: Path) -> None:
    """One big file became two shards: the trainer must not find the old one beside them."""
    store = MemoryStore()
    store.put("models/FLUX/unet/whole.safetensors", b"w")
    store.put("models/FLUX/old/config.json", b"{}")
    models = BaseModels(tmp_path, None)
    folder = models.ensure(store, BARE)
    for key in ("models/FLUX/unet/whole.safetensors", "models/FLUX/old/config.json"):
        store.hide(key)
    store.put("models/FLUX/unet/1.safetensors", b"1")
    store.put("models/FLUX/old", b"now a file")
    models.ensure(store, BARE)
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {name for name in found if not name.startswith(".dropbatch-")} == {"unet/1.safetensors", "old"}


def test_a_folder_without_a_note_is_judged_by_its_times(tmp_path: Path) -> None:
    """Made before there were notes: not fetched anew, unless the bucket's file is newer."""
    clock = ManualClock()
    store = CountingStore(MemoryStore(clock=clock))
    for name in ("a", "b"):
        store.put(f"models/FLUX/{name}", b"1")
    folder = tmp_path / "FLUX"
    folder.mkdir()
    for name, late_s in (("a", 60), ("b", -60)):
        (folder / name).write_bytes(b"0")
        written_at = clock.now().timestamp() + late_s
        os.utime(folder / name, (written_at, written_at))
    store.reset()
    BaseModels(tmp_path, None).ensure(store, BARE)
    assert ((folder / "a").read_bytes(), (folder / "b").read_bytes()) == (b"0", b"1")
    assert store.counts == {"list": 1, "get": 1}


def test_a_replacement_that_breaks_off_is_not_taken_for_whole(tmp_path: Path) -> None:
    """The mark is away while two models are mixed; the next call fetches what is missing only."""
    store = MemoryStore()
    for name in ("a", "b"):
        store.put(f"models/FLUX/{name}", b"old")
    models = BaseModels(tmp_path, None)
    folder = models.ensure(store, BARE)
    assert (folder / ".dropbatch-whole").exists()
    for name in ("a", "b"):
        store.put(f"models/FLUX/{name}", b"new")
    broken = BreaksOff(store, "models/FLUX/b")
    with pytest.raises(StoreUnavailable):
        models.ensure(broken, BARE)
    assert not (folder / ".dropbatch-whole").exists()
    counting = CountingStore(store)
    models.ensure(counting, BARE)
    assert counting.counts == {"list": 1, "get": 1}
    assert (folder / "b").read_bytes() == b"new"
    assert (folder / ".dropbatch-whole").exists()


class BreaksOff(CountingStore):
    """A store that has one object out of reach."""

    def __init__(self, inner: MemoryStore, key: str) -> None:
        super().__init__(inner)
        self._key = key

    def get(self, key: str, *, version: str | None = None) -> Download:
        if key == self._key:
            raise StoreUnavailable("no answer", where=key)
        return super().get(key, version=version)


def test_a_placeholder_or_a_part_of_an_upload_removes_nothing(tmp_path: Path) -> None:
    """A folder made on B2's page, or a copy that is under way, beside a model from the hub."""
    store = MemoryStore()
    store.put("models/FLUX/.bzEmpty", b"")
    folder = tmp_path / "FLUX"
    (folder / "unet").mkdir(parents=True)
    (folder / "unet" / "a.safetensors").write_bytes(b"from the hub")
    (folder / ".dropbatch-whole").touch()
    models = BaseModels(tmp_path, None)
    models.ensure(store, BARE)
    store.put("models/FLUX/vae/b.safetensors", b"b")
    models.ensure(store, BARE)
    assert (folder / "unet" / "a.safetensors").read_bytes() == b"from the hub"
    assert not (folder / ".bzEmpty").exists()


def test_marks_of_ours_in_the_bucket_are_no_model(tmp_path: Path) -> None:
    """A folder may have been uploaded as it lay here."""
    store = MemoryStore()
    store.put("models/FLUX/a", b"1")
    store.put("models/FLUX/.dropbatch-files.json", b'{"a": [1, "v000001"]}')
    folder = BaseModels(tmp_path, None).ensure(store, BARE)
    assert (folder / "a").read_bytes() == b"1"
    store.put("models/FLUX/a", b"2")
    assert (BaseModels(tmp_path, None).ensure(store, BARE) / "a").read_bytes() == b"2"


INDEX = b'{"weight_map": {"a": "x-1.safetensors", "b": "x-2.safetensors"}}'


@pytest.mark.parametrize(
    ("files", "lacks"),
    [
        ({"unet/config.json": b"{}"}, "model_index.json"),
        ({"sd_xl.safetensors": b"x"}, "model_index.json"),
        (
            {"model_index.json": b"{}", "unet/m.safetensors.index.json": INDEX, "unet/x-1.safetensors": b"1"},
            "unet/x-2.safetensors",
        ),
        ({"model_index.json": b"{}", "unet/m.safetensors.index.json": b"[]"}, "m.safetensors.index.json"),
    ],
)
def test_a_model_that_is_still_being_uploaded_is_not_trained_on(
    tmp_path: Path, files: dict[str, bytes], lacks: str
) -> None:
    """Found on a CPU, and not by the trainer on a rented GPU; what has come is kept."""
    store = MemoryStore()
    for name, data in files.items():
        store.put(f"models/FLUX/{name}", data)
    with pytest.raises(TaskFailed, match=lacks) as caught:
        BaseModels(tmp_path, None).ensure(store, BASE)
    assert caught.value.kind is ErrorKind.MISSING_MODEL
    assert not (tmp_path / "FLUX" / ".dropbatch-whole").exists()
    for name in ("model_index.json", "unet/x-1.safetensors", "unet/x-2.safetensors"):
        store.put(f"models/FLUX/{name}", b"{}")
    store.put("models/FLUX/unet/m.safetensors.index.json", INDEX)
    BaseModels(tmp_path, None).ensure(store, BASE)


def test_a_marked_folder_that_lacks_a_file_is_downloaded_again(tmp_path: Path) -> None:
    """An earlier version marked a download that was cut off."""
    folder = tmp_path / "base" / "FLUX"
    folder.mkdir(parents=True)
    (folder / ".dropbatch-whole").touch()
    BaseModels(tmp_path / "base", hub_download(hub(tmp_path, "pass"))).ensure(MemoryStore(), BASE)
    assert (folder / "model_index.json").exists()


def test_without_bucket_and_hub_it_says_where_to_put_it(tmp_path: Path) -> None:
    """The key is the mend."""
    with pytest.raises(TaskFailed, match="models/FLUX/") as caught:
        BaseModels(tmp_path, None).ensure(MemoryStore(), BASE)
    assert caught.value.kind is ErrorKind.MISSING_MODEL


def test_the_downloader_alone_gets_the_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing else of ours; what it brought is kept."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("B2_APPLICATION_KEY", "K00secret")
    models = BaseModels(tmp_path / "base", hub_download(hub(tmp_path, "pass")))
    folder = models.ensure(MemoryStore(), BASE)
    assert (folder / "model_index.json").exists()
    seen = (tmp_path / "seen").read_text()
    assert "hf_secret" in seen
    assert "K00secret" not in seen
    (tmp_path / "seen").unlink()
    models.ensure(MemoryStore(), BASE)
    assert not (tmp_path / "seen").exists()


def test_a_stop_ends_a_download_and_the_wait_for_another(tmp_path: Path) -> None:
    """A base model takes an hour, and a preempted machine has half a minute."""
    sleeping = hub_download(hub(tmp_path, "import time; time.sleep(60)"))
    calls = []

    def stop() -> None:
        calls.append(1)
        raise TaskFailed(ErrorKind.PREEMPTED, "stopped while it ran")

    models = BaseModels(tmp_path / "base", sleeping)
    began = time.monotonic()
    with pytest.raises(TaskFailed, match="stopped"):
        models.ensure(MemoryStore(), BASE, check=stop)
    with models._lock(BASE.name, stop), pytest.raises(TaskFailed, match="stopped"):
        models.ensure(MemoryStore(), BASE, check=stop)
    assert len(calls) == 2
    assert time.monotonic() - began < 20


@pytest.mark.parametrize(
    "cut_off", [{"info": "raise ConnectionError('out of reach')"}, {"weights": "ab"}, {"weights": ""}]
)
def test_a_download_that_was_cut_off_is_not_whole(tmp_path: Path, cut_off: dict[str, str]) -> None:
    """Out of the hub's reach, its client takes the part that lies here for the model."""
    folder = tmp_path / "base" / "FLUX"
    (folder / "unet").mkdir(parents=True)
    (folder / "unet" / "config.json").write_text("{}")
    models = BaseModels(tmp_path / "base", hub_download(hub(tmp_path, "pass", **cut_off)))
    with pytest.raises(TaskFailed) as caught:
        models.ensure(MemoryStore(), BASE)
    assert caught.value.kind is ErrorKind.UNAVAILABLE
    assert not (folder / ".dropbatch-whole").exists()


@pytest.mark.parametrize(
    ("answer", "kind", "says"),
    [
        ("raise GatedRepoError('x')", ErrorKind.MISSING_MODEL, "a strict one"),
        ("raise RepositoryNotFoundError('x')", ErrorKind.MISSING_MODEL, "no someone/FLUX"),
        ("raise OSError('no route')", ErrorKind.UNAVAILABLE, "no route"),
        ("os._exit(3)", ErrorKind.UNAVAILABLE, "without a word"),
    ],
)
def test_each_refusal_is_named(tmp_path: Path, answer: str, kind: ErrorKind, says: str) -> None:
    """A licence that is not accepted is said by name, with the page to accept it on."""
    models = BaseModels(tmp_path / "base", hub_download(hub(tmp_path, answer)))
    with pytest.raises(TaskFailed) as caught:
        models.ensure(MemoryStore(), BASE)
    assert caught.value.kind is kind
    assert says in str(caught.value)
    assert "huggingface.co/someone/FLUX" in str(caught.value)
