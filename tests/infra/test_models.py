"""The models' Volume: copies that outlast their progress notes, and what cut-off copies leave."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import modal
import pytest

from infra import models, rclone
from infra.settings import Deployment, deployable
from processor.config import load_without_file

HOUR_S = 3600.0


@pytest.fixture
def ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Deployment:
    """A container's settings, with the Volume in a folder."""
    deployed = deployable(load_without_file(bucket="s3://a-bucket", models_dir=tmp_path / "volume"))
    (tmp_path / "volume").mkdir()
    monkeypatch.setattr(models, "container_start", lambda _deployed: deployed)
    return deployed


@pytest.mark.parametrize(
    ("commits", "puts"),
    [
        (RuntimeError("there are open files preventing the operation"), None),
        (modal.exception.ServiceError("503"), None),
        (None, modal.exception.ServiceError("503")),
        (None, ConnectionError("reset")),
    ],
)
def test_a_copy_goes_on_where_telling_of_it_fails(
    ours: Deployment, monkeypatch: pytest.MonkeyPatch, commits: Exception | None, puts: Exception | None
) -> None:
    """rclone has files open, and the client reloads after a commit; the one at the end counts."""
    notes, committed = Notes(puts), list[str]()
    stats = {"bytes": 1}

    def copy(*_: Any, progress: Callable[[dict[str, Any]], None], **__: Any) -> dict[str, Any]:
        committed.append("copying")
        progress(stats)
        committed.append("copied")
        return stats

    def commit() -> None:
        committed.append("commit")
        if commits is not None and "copied" not in committed:
            raise commits

    monkeypatch.setattr(models, "open_notes", lambda _deployed: notes)
    monkeypatch.setattr(rclone, "copy", copy)
    monkeypatch.setattr(models, "_TELL_EVERY_S", -1.0)
    done = models.sync(ours, "", push=False, progress_id="p", commit=commit, reload=lambda: None)
    assert done == {"stats": stats}
    assert committed == ["copying", "commit", "copied", "commit"]


class Notes:
    """A Dict that can't be written to, if there is an error for it."""

    def __init__(self, error: Exception | None) -> None:
        self._error = error

    def put(self, _key: str, _value: Any) -> None:
        if self._error is not None:
            raise self._error


def put(path: Path, size_bytes: int, age_s: float = 0.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size_bytes))
    then = time.time() - age_s
    os.utime(path, (then, then))
    return path


def test_what_cut_off_copies_left_goes_with_the_next_pull(ours: Deployment) -> None:
    """Ours and rclone's, once no copy can be at work on them any more; nobody else would ever see them."""
    root = ours.settings.models_path
    old = [put(root / "loras/.part-x", 9, 25 * HOUR_S), put(root / "vae/a.b1c2.partial", 9, 25 * HOUR_S)]
    young = [put(root / "loras/.part-y", 9), put(root / "vae/b.b1c2.partial", 9), put(root / "vae/c", 9, 1e6)]
    assert models.remove_abandoned(root, now=time.time()) == ["loras/.part-x", "vae/a.b1c2.partial"]
    assert [path.exists() for path in (*old, *young)] == [False] * 2 + [True] * 3


def test_the_volumes_limit_counts_every_byte(tmp_path: Path) -> None:
    """What nodes download by themselves and what is half there fill it, too; our notes are nothing."""
    put(tmp_path / ".cache/huggingface/b", 500)
    put(tmp_path / "loras/.part-x", 500)
    put(tmp_path / "loras/a", 10)
    models.note_use(tmp_path, ["loras/a"], now=1.0)
    assert models.trim(tmp_path, 1010, set()) == []
    assert models.trim(tmp_path, 1009, set()) == ["loras/a"]
