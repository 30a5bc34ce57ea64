"""Input files on an engine: shared while used, gone when there is too much of them."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handlers.render.api import Api
from handlers.render.inputplace import LocalInputs, UploadedInputs
from handlers.render.inputs import safe_name
from processor.errors import ErrorKind, TaskFailed
from processor.records import InputFile
from tests.support.scripted import serve_scripted


def source(name: str, version: str = "1") -> InputFile:
    return InputFile(name=name, source=f"pictures/{name}", version=version)


class Downloads:
    """Writes ten bytes a file and counts."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, file: InputFile, target: Path) -> None:
        self.asked.append(file.name)
        target.write_bytes(b"0123456789")


def test_shared_by_tasks_and_kept(tmp_path: Path) -> None:
    """One download for many tasks at once; the name in the graph maps to the file."""
    place, downloads = LocalInputs(tmp_path), Downloads()
    together = threading.Barrier(4)

    def task(_: int) -> str:
        with place.placed([source("ä b.PNG")], downloads) as names:
            together.wait(10)
            assert (tmp_path / names["ä b.PNG"]).is_file()
            return names["ä b.PNG"]

    with ThreadPoolExecutor(4) as pool:
        placed = set(pool.map(task, range(4)))
    assert len(placed) == 1
    assert downloads.asked == ["ä b.PNG"]


def test_versions_do_not_mix(tmp_path: Path) -> None:
    place, downloads = LocalInputs(tmp_path), Downloads()
    with (
        place.placed([source("a.png", "1")], downloads) as old,
        place.placed([source("a.png", "2")], downloads) as new,
    ):
        assert old["a.png"] != new["a.png"]


def test_oldest_unused_goes_first(tmp_path: Path) -> None:
    """What a running task reads stays, however much there is."""
    place, downloads = LocalInputs(tmp_path, kept_bytes=15), Downloads()
    with place.placed([source("used.png")], downloads) as used:
        for name in ("b.png", "c.png"):
            with place.placed([source(name)], downloads):
                pass
        assert (tmp_path / used["used.png"]).is_file()
        assert len(list(tmp_path.rglob("*.png"))) == 1


def test_failed_download_is_tried_again(tmp_path: Path) -> None:
    """A failure is not remembered as a file."""
    place = LocalInputs(tmp_path)

    def broken(_file: InputFile, _target: Path) -> None:
        raise TaskFailed(ErrorKind.UNAVAILABLE, "away")

    with pytest.raises(TaskFailed), place.placed([source("a.png")], broken):
        pass
    with place.placed([source("a.png")], Downloads()) as names:
        assert (tmp_path / names["a.png"]).is_file()


def test_attached_server_that_lost_its_files() -> None:
    """Uploaded once while they are there; again when its input folder was emptied."""
    with serve_scripted() as server:
        api, downloads = Api(server.url), Downloads()
        place = UploadedInputs(api)
        for _ in range(2):
            with place.placed([source("a.png")], downloads) as names:
                assert names["a.png"] in server.inputs
        assert len(server.uploads) == 1
        server.inputs.clear()
        with place.placed([source("a.png")], downloads) as names:
            assert server.inputs[names["a.png"]] == b"0123456789"
        assert len(server.uploads) == 2
        api.close()


def test_file_that_a_node_deleted(tmp_path: Path) -> None:
    place = LocalInputs(tmp_path)
    for _ in range(2):
        with place.placed([source("a.png")], Downloads()) as names:
            (tmp_path / names["a.png"]).unlink()


@given(st.text(max_size=100))
def test_safe_names(text: str) -> None:
    """ASCII, short, one component, never hidden or climbing."""
    name = safe_name(text)
    assert name.isascii()
    assert 0 < len(name) <= 80
    assert not set(name) & set("/\\\0 ")
    assert not name.startswith((".", "-"))
