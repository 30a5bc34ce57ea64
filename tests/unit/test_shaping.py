"""Files as a job wants them: names that are safe whatever they are made of, formats, and what lies beside."""

from __future__ import annotations

import csv
import io
import json
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from processor.errors import JobInvalid
from processor.handler import LocalFile, TaskContext, TaskOutput, Work
from processor.models import Output
from processor.records import Task
from processor.run import run
from processor.sequence import sequence
from processor.shaping import check_template, named, shaped
from processor.sweep import sweep
from processor.testing.handler import ScriptedHandler
from processor.testing.machine import Bench

TASK = Task(index=7, hash="h", params={"prompt": "a cat / dog: <b>", "6.cfg": 7.5}, seed=42)


def picture(path: Path, *, mode: str = "RGB", colour: Any = (200, 30, 30)) -> LocalFile:
    """A PNG with the graph in it, as ComfyUI saves one."""
    info = PngInfo()
    info.add_text("prompt", '{"3": {}}')
    Image.new(mode, (48, 32), colour).save(path, "PNG", pnginfo=info)
    return LocalFile(path, "out.png", "image/png", "9")


class TestNames:
    @pytest.mark.parametrize(
        ("template", "name"),
        [
            ("{task}-{seed}", "0007-42.png"),
            ("{prompt}/{name}", "a cat _ dog_ _b_/out.png"),
            ("{6.cfg}_{task}", "7.5_0007.png"),
            ("../../{name}", "out.png"),
            ("/etc/{name}", "etc/out.png"),
            ("{seed}..", "42.png"),
            ("...", "out.png"),
        ],
    )
    def test_a_template_names_a_file(self, template: str, name: str) -> None:
        assert named(template, TASK, "out.png") == name

    @given(st.text(max_size=80), st.text(max_size=300), st.text(max_size=40))
    def test_no_value_leads_out_or_grows_without_bounds(self, around: str, value: str, own: str) -> None:
        """Whatever a prompt or a parameter holds."""
        task = TASK.model_copy(update={"params": {"prompt": value}})
        name = named("x/{prompt}" + around.replace("{", ""), task, f"{own.replace('/', '')}.png")
        path = PurePosixPath(name)
        assert not path.is_absolute()
        assert ".." not in path.parts
        assert len(name.encode("utf-8", "surrogatepass")) <= 200
        assert "\0" not in name
        assert "\n" not in name

    def test_two_files_of_a_task_never_share_a_name(self, tmp_path: Path) -> None:
        files = [
            LocalFile(tmp_path / "a", "a.txt", "text/plain"),
            LocalFile(tmp_path / "b", "b.txt", "text/plain"),
        ]
        made = shaped(files, TASK, Output(name="{task}"), tmp_path)
        assert [file.name for file in made] == ["0007.txt", "0007_2.txt"]

    def test_an_unknown_field_is_refused_with_the_nearest(self) -> None:
        check_template(Output(name="{task}-{seed}-{prompt}"), ["prompt"])
        with pytest.raises(JobInvalid) as caught:
            check_template(Output(name="{promt}"), ["prompt"])
        assert "'prompt'" in str(caught.value)


class TestConversion:
    @pytest.mark.parametrize(
        ("wanted", "suffix", "kind"), [("webp", "webp", "WEBP"), ("jpeg", "jpg", "JPEG")]
    )
    def test_a_still_picture_is_converted_with_its_graph(
        self, tmp_path: Path, wanted: Any, suffix: str, kind: str
    ) -> None:
        """The prompt goes where ComfyUI itself looks for it in such files."""
        (made,) = shaped([picture(tmp_path / "a.png")], TASK, Output(format=wanted), tmp_path)
        assert (made.name, made.media_type, made.node) == (f"out.{suffix}", f"image/{wanted}", "9")
        with Image.open(made.path) as image:
            assert image.format == kind
            assert image.getexif()[0x0110] == 'prompt:{"3": {}}'

    def test_the_original_is_kept_if_wanted(self, tmp_path: Path) -> None:
        options = Output(format="webp", keep_original=True, name="{task}")
        made = shaped([picture(tmp_path / "a.png")], TASK, options, tmp_path)
        assert [file.name for file in made] == ["0007.webp", "0007.png"]

    def test_what_is_clear_becomes_paper_in_a_jpeg(self, tmp_path: Path) -> None:
        clear = picture(tmp_path / "a.png", mode="RGBA", colour=(0, 0, 0, 0))
        (made,) = shaped([clear], TASK, Output(format="jpeg"), tmp_path)
        with Image.open(made.path) as image:
            assert image.getpixel((5, 5)) == (255, 255, 255)

    def test_what_moves_or_is_no_picture_stays_as_it_is(self, tmp_path: Path) -> None:
        frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
        frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:])
        (tmp_path / "b.png").write_bytes(b"no picture")
        files = [
            LocalFile(tmp_path / "a.webp", "a.webp", "image/webp"),
            LocalFile(tmp_path / "b.png", "b.png", "image/png"),
            LocalFile(tmp_path / "c.mp4", "c.mp4", "video/mp4"),
        ]
        assert shaped(files, TASK, Output(format="jpeg"), tmp_path) == files


def paints(work: Work, context: TaskContext) -> TaskOutput:
    """A handler's task: one small picture, its colour by its number."""
    k = work.task.index
    return TaskOutput([picture(context.workdir / "p.png", colour=(40 * k % 256, 90, 160))], seconds=0.5)


def finish(tmp_path: Path, **job: Any) -> Bench:
    bench = Bench(tmp_path, ScriptedHandler(paints))
    bench.drop({"workflow": "noop", "overrides": {"tasks": 4}, **job})
    machine = bench.machine()
    run(machine, once=True)
    machine.close()
    return bench


class TestBeside:
    def test_a_job_of_several_tasks_has_its_table(self, tmp_path: Path) -> None:
        """CSV and JSONL say the same: parameters, files, seconds of every task."""
        bench = finish(tmp_path)
        (manifest,) = bench.manifests()
        folder = f"comfy_outputs/{manifest['job_id']}/"
        with bench.main.get(folder + "tasks.csv") as download:
            rows = list(csv.DictReader(io.StringIO(download.body.read().decode("utf-8-sig"))))
        with bench.main.get(folder + "tasks.jsonl") as download:
            lines = [json.loads(line) for line in download.body.read().splitlines()]
        assert (
            [row["k"] for row in rows] == ["0", "1", "2", "3"] == [str(line["params"]["k"]) for line in lines]
        )
        assert rows[2]["files"] == manifest["tasks"][2]["files"][0]["key"] == lines[2]["files"][0]["key"]
        with bench.main.get(folder + "index.html") as download:
            assert b'href="tasks.csv"' in download.body.read()

    def test_names_and_formats_are_in_the_manifest(self, tmp_path: Path) -> None:
        bench = finish(tmp_path, output={"name": "{task}", "format": "webp"})
        (manifest,) = bench.manifests()
        assert [task["files"][0]["name"] for task in manifest["tasks"]] == [f"{k:04d}.webp" for k in range(4)]
        assert manifest["tasks"][0]["files"][0]["media_type"] == "image/webp"

    def test_a_contact_sheet_and_a_sequence_on_request(self, tmp_path: Path) -> None:
        """And a sweep, a day later, takes neither them nor the table."""
        bench = finish(tmp_path, output={"contact_sheet": True, "sequence": "gif", "fps": 4})
        (manifest,) = bench.manifests()
        folder = f"comfy_outputs/{manifest['job_id']}/"
        with (
            bench.main.get(folder + "sequence.gif") as download,
            Image.open(io.BytesIO(download.body.read())) as film,
        ):
            assert (film.n_frames, film.info["duration"]) == (4, 250)  # type: ignore[attr-defined]
        before = set(bench.keys(folder))
        bench.clock.advance(timedelta(days=3).total_seconds())
        machine = bench.machine()
        sweep(machine)
        machine.close()
        beside = {
            f"{folder}{name}" for name in ("contact-sheet.jpg", "sequence.gif", "tasks.csv", "tasks.jsonl")
        }
        assert beside <= set(bench.keys(folder)) <= before

    def test_a_formula_in_a_prompt_is_a_text_in_a_spreadsheet(self, tmp_path: Path) -> None:
        from processor.records import Manifest
        from processor.task_table import tasks_csv

        (value,) = finish(tmp_path).manifests()
        value["tasks"][0]["params"] = {"prompt": "=HYPERLINK(1)"}
        assert b"'=HYPERLINK(1)" in tasks_csv(Manifest.model_validate(value))


def test_a_sequence_as_mp4_plays() -> None:
    """With the video extra; odd sides and other shapes are fitted to the first picture's."""
    av = pytest.importorskip("av", reason="the video extra is not installed")
    shots = []
    for size in ((49, 33), (49, 33), (20, 60)):
        buffer = io.BytesIO()
        Image.new("RGB", size, "teal").save(buffer, "PNG")
        shots.append(buffer.getvalue())
    made = sequence(shots, 3, kind="mp4", fps=8)
    assert made is not None
    with av.open(io.BytesIO(made)) as film:
        frames = list(film.decode(video=0))
    assert [(frame.width, frame.height) for frame in frames] == [(48, 32)] * 3


def test_one_picture_is_no_sequence() -> None:
    assert sequence([b"junk"], 1, kind="webp", fps=8) is None
