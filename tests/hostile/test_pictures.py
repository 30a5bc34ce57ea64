"""Pictures that unfold: small files, as inputs and as outputs, that claim or hold gigabytes."""

from __future__ import annotations

import io
import struct
import subprocess
import warnings
import zlib
from pathlib import Path

import pytest
from PIL import Image

from handlers.engine.limits import LimitExceeded, Limits
from processor.cli.job_files import graph_in_picture
from processor.contact_sheet import thumbnail
from processor.errors import JobInvalid
from processor.execute import upload
from processor.handler import LocalFile
from processor.models import Output
from processor.records import Task
from processor.run import run
from processor.shaping import shaped
from processor.store.memory import MemoryStore
from processor.testing.machine import Bench

SIDE = 60_000


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(side: int, *chunks: bytes) -> bytes:
    """A PNG that says it is `side` pixels wide and high, and holds a thousand bytes."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    pixels = _chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + b"".join(chunks) + pixels + _chunk(b"IEND", b"")


def webp_of(side: int) -> bytes:
    """A WebP whose canvas is `side` pixels wide and high."""
    size = struct.pack("<I", side - 1)[:3]
    extended = b"VP8X" + struct.pack("<I", 10) + b"\x10\0\0\0" + size + size
    return b"RIFF" + struct.pack("<I", 4 + len(extended)) + b"WEBP" + extended


TEXT_BOMB = _chunk(b"zTXt", b"k\0\0" + zlib.compress(b"x" * 200_000_000, 9))
BOMBS = {
    "large.png": png_of(SIDE),
    "text.png": png_of(8, TEXT_BOMB),
    "cut.png": png_of(8)[:40],
    "odd.png": b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", b"\xff" * 13),
    "large.webp": webp_of(16_000),
    "text.webp": b"RIFF\xff\xff\xff\xffWEBPVP8X",
    "tiff.png": b"II*\0" + b"\xff" * 200,
    "gif.gif": b"GIF89a" + b"\xff" * 100,
}


@pytest.mark.parametrize("name", BOMBS)
def test_an_output_is_kept_whatever_it_unfolds_to(tmp_path: Path, name: str) -> None:
    """It is bytes to us: stored as it is, at most its claimed size is shown."""
    path = tmp_path / name
    path.write_bytes(BOMBS[name])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kept = upload(MemoryStore(), "comfy_outputs/x/", LocalFile(path, name, f"image/{path.suffix[1:]}"))
    assert kept.size_bytes == len(BOMBS[name])


def test_a_page_for_a_printer_starts_no_other_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow has Ghostscript draw an EPS, whatever name it came under."""
    stream = io.BytesIO()
    Image.new("RGB", (64, 64)).save(stream, "EPS")

    def started(*args: object, **_: object) -> None:
        raise AssertionError(f"a program was started: {args}")

    monkeypatch.setattr(subprocess, "Popen", started)
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", started)
    path = tmp_path / "page.png"
    path.write_bytes(stream.getvalue())
    assert thumbnail(stream.getvalue(), 32) is None
    file = LocalFile(path, "page.png", "image/png")
    assert shaped([file], Task(index=0, hash="x"), Output(format="webp"), tmp_path) == [file]
    with pytest.raises(JobInvalid, match="not a readable PNG"):
        graph_in_picture(path)


@pytest.mark.parametrize("name", ["large.png", "odd.png", "large.webp", "tiff.png"])
def test_an_input_ends_the_task_not_the_engine(bench: Bench, name: str) -> None:
    """Refused in words before its pixels are made; the next job runs on the same engine."""
    bench.main.put(f"inputs/{name}", BOMBS[name])
    load = {"class_type": "LoadImage", "inputs": {"image": name}}
    save = {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}}
    bench.drop(
        {"workflow": {"1": load, "2": save}, "inputs": {name: f"inputs/{name}"}}, "inbox/jobs/bomb.json"
    )
    plain = {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 1}}
    bench.drop({"workflow": {"1": plain, "2": save}}, "inbox/jobs/plain.json")
    machine = bench.machine()
    run(machine, once=True)
    machine.close()
    outcomes = {found["drop"]["key"]: found for found in bench.manifests()}
    assert outcomes["inbox/jobs/plain.json"]["outcome"] == "done"
    bomb = outcomes["inbox/jobs/bomb.json"]
    assert bomb["outcome"] == "failed"
    assert bomb["tasks"][0]["error"]["kind"] in ("node_failed", "invalid", "bad_input", "refused")


@pytest.mark.parametrize("inputs", [{"width": 16384, "height": 16384, "batch_size": 64}])
def test_the_built_in_engine_refuses_what_it_could_not_hold(inputs: dict[str, int]) -> None:
    with pytest.raises(LimitExceeded):
        Limits().check_frame(inputs["width"], inputs["height"])
