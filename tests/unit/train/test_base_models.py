"""Base models: from the bucket, else downloaded by the one process that sees a token."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

import pytest

from handlers.train.base_models import BaseModels, hub_download
from handlers.train.presets import BaseModel
from processor.errors import ErrorKind, TaskFailed
from processor.store.memory import MemoryStore
from processor.testing.counting import CountingStore

BASE = BaseModel(name="FLUX", repo="someone/FLUX", licence="a strict one", gated=True)


def hub(folder: Path, answer: str) -> Path:
    """A Python whose huggingface_hub answers as told and writes down its token."""
    package = folder / "site" / "huggingface_hub"
    package.mkdir(parents=True)
    (package / "errors.py").write_text(
        "class GatedRepoError(Exception): pass\nclass RepositoryNotFoundError(Exception): pass\n"
    )
    (package / "__init__.py").write_text(
        "import os, pathlib\n"
        "from huggingface_hub.errors import *\n"
        "def snapshot_download(repo, local_dir, **_):\n"
        f"    pathlib.Path({str(folder / 'seen')!r}).write_text(repr(dict(os.environ)))\n"
        f"    {answer}\n"
        "    (pathlib.Path(local_dir) / 'model_index.json').write_text('{}')\n"
    )
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={folder / "site"} exec {sys.executable} "$@"\n')
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    return python


def test_the_bucket_is_asked_first_and_files_are_fetched_once(tmp_path: Path) -> None:
    """A second run finds them by size."""
    store = CountingStore(MemoryStore())
    for name in ("model_index.json", "unet/a.safetensors"):
        store.put(f"models/FLUX/{name}", b"{}")
    models = BaseModels(tmp_path, None)
    folder = models.ensure(store, BASE)
    assert (folder / "unet" / "a.safetensors").read_bytes() == b"{}"
    store.reset()
    models.ensure(store, BASE)
    assert store.counts == {"list": 1}


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
