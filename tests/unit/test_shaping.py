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

from processor.contact_sheet import thumbnail
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

    @pytest.mark.parametrize("mode", ["I;16", "I", "F"])
    @pytest.mark.parametrize("wanted", ["webp", "jpeg"])
    def test_a_depth_map_stays_as_it_is(self, tmp_path: Path, mode: str, wanted: Any) -> None:
        """In 8 bits all of it that is not nearly black would be white."""
        Image.new(mode, (8, 8), 300).save(tmp_path / "a.tiff")
        files = [LocalFile(tmp_path / "a.tiff", "a.tiff", "image/tiff")]
        assert shaped(files, TASK, Output(format=wanted), tmp_path) == files


class TestThumbnails:
    @pytest.mark.parametrize(
        ("mode", "values"),
        [("I;16", (0, 32896, 65535)), ("F", (0.0, 0.502, 1.0)), ("F", (-3.0, 0.0, 3.0))],
    )
    def test_deep_pictures_keep_their_greys(self, mode: str, values: tuple[float, ...]) -> None:
        image = Image.new(mode, (30, 10))
        for place, value in enumerate(values):
            image.paste(value, (10 * place, 0, 10 * place + 10, 10))
        small = thumbnail(_file(image, "TIFF"), 30)
        assert small is not None
        for place, grey in enumerate((0, 128, 255)):
            assert small.getpixel((10 * place + 5, 5)) == pytest.approx((grey,) * 3, abs=1)

    @pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
    def test_what_is_clear_shows_the_paper(self, mode: str) -> None:
        small = thumbnail(_file(Image.new("RGBA", (40, 40), (200, 0, 0, 0)).convert(mode), "PNG"), 20)
        assert small is not None
        assert min(small.getpixel((5, 5))) > 240  # type: ignore[arg-type]

    def test_a_damaged_file_is_no_picture(self) -> None:
        """AVIF's decoder says so by RuntimeError, others by whatever they like."""
        whole = _file(Image.effect_noise((64, 48), 60), "AVIF")
        head = whole.index(b"mdat") + 4
        assert thumbnail(whole[:head] + b"\xff" * (len(whole) - head), 20) is None


def _file(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


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

    def test_a_job_that_only_says_something_has_its_page(self, tmp_path: Path) -> None:
        bench = Bench(tmp_path, ScriptedHandler(lambda *_: TaskOutput([], 0.0, data={"Caption": "a cat"})))
        bench.drop({"workflow": "noop"})
        machine = bench.machine()
        run(machine, once=True)
        machine.close()
        assert [key for key in bench.keys("comfy_outputs/") if key.endswith("/index.html")]

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

    def test_a_sequence_that_fails_in_any_way_costs_the_job_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Else its drop would stay in the inbox, and all effects be done again each minute."""
        monkeypatch.setattr("processor.sequence._animated", lambda *_: 1 / 0)
        bench = finish(tmp_path, output={"sequence": "gif"})
        (manifest,) = bench.manifests()
        assert manifest["outcome"] == "done"
        assert not list(bench.keys("inbox/"))

    def test_a_sequence_has_at_least_a_picture_in_ten_seconds(self) -> None:
        """A GIF's delays are 16 bits of hundredths."""
        with pytest.raises(ValueError, match="fps"):
            Output(sequence="gif", fps=0.001)

    def test_a_formula_in_a_prompt_is_a_text_in_a_spreadsheet(self, tmp_path: Path) -> None:
        from processor.records import Manifest
        from processor.task_table import tasks_csv

        (value,) = finish(tmp_path).manifests()
        value["tasks"][0]["params"] = {"prompt": "=HYPERLINK(1)"}
        assert b"'=HYPERLINK(1)" in tasks_csv(Manifest.model_validate(value))

    def test_no_two_columns_share_a_name(self, tmp_path: Path) -> None:
        """A seed among the parameters is the task's; another parameter keeps its own column."""
        from processor.records import Manifest
        from processor.task_table import tasks_csv

        (value,) = finish(tmp_path).manifests()
        for task in value["tasks"]:
            task["seed"], task["params"] = 5, {"seed": 5, "files": "x"}
        head = tasks_csv(Manifest.model_validate(value)).decode("utf-8-sig").split("\r\n")[0].split(",")
        assert head[:4] == ["task", "status", "seed", "param.files"]
        assert len(set(head)) == len(head)


def test_a_sequence_as_mp4_plays() -> None:
    """With the video extra; odd sides and other shapes are fitted to the first picture's."""
    av = pytest.importorskip("av", reason="the video extra is not installed")
    shots = [Image.new("RGB", size, "teal") for size in ((49, 33), (49, 33), (20, 60))]
    made = sequence(shots, kind="mp4", fps=8)
    assert made is not None
    with av.open(io.BytesIO(made)) as film:
        frames = list(film.decode(video=0))
    assert [(frame.width, frame.height) for frame in frames] == [(48, 32)] * 3


def test_one_picture_is_no_sequence() -> None:
    assert sequence([None, Image.new("RGB", (8, 8))], kind="webp", fps=8) is None
