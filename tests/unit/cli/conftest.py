"""The command line as tests use it: in this process, on a folder-bucket."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from processor.cli import main

GRAPH = {"9": {"class_type": "SaveImage", "inputs": {"images": ["8", 0], "filename_prefix": "x"}}}


@dataclass(frozen=True)
class Result:
    """What a command said, and how it ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Dropbatch = Callable[..., Result]


@pytest.fixture
def dropbatch(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Dropbatch]:
    """Calls `dropbatch` with arguments, in an empty current directory."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("DROPBATCH_WORK_DIR", str(tmp_path / "work"))
    monkeypatch.setenv("DROPBATCH_HANDLERS", json.dumps({"render": "tests.unit.cli.echo:EchoHandler"}))
    for name in ("COMFYUI_URL", "COMFYUI_DIR", "COMFYUI_PYTHON"):
        monkeypatch.delenv(name, raising=False)
    before = signal.getsignal(signal.SIGTERM)

    def call(*arguments: object) -> Result:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return Result(int(ended.value.code or 0), said.out, said.err)

    yield call
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder-bucket that the environment names."""
    path = tmp_path / "bucket"
    path.mkdir()
    monkeypatch.setenv("DROPBATCH_BUCKET", str(path))
    return path


@pytest.fixture
def job_file(tmp_path: Path) -> Callable[..., Path]:
    """Writes a job file; a bare graph if nothing else is said."""

    def write(name: str = "portrait.json", **job: Any) -> Path:
        path = tmp_path / name
        path.write_text(json.dumps({"workflow": GRAPH, **job} if job else GRAPH), "utf-8")
        return path

    return write
