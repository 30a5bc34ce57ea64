"""Outputs: every kind of file, names that stay nice and inside, nothing temporary or stale."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handlers.render.catalog import MEDIA_TYPES
from handlers.render.outputplace import KeptOutputs
from handlers.render.outputs import (
    Chosen,
    ForgottenOutput,
    Reported,
    collect,
    inside,
    media_type,
    new_tag,
    prefix_sets,
    reported_data,
    reported_files,
    visible_prefix,
)
from handlers.render.turns import Turns
from processor.errors import ErrorKind, TaskFailed
from processor.handler import LocalFile, Stop
from tests.support.comfyui import checkout
from tests.support.rendering import Bench, builtin_settings, image_graph


@given(st.text(max_size=200) | st.text(alphabet="./\\a:*%", max_size=30))
def test_prefix_stays_inside(text: str) -> None:
    """Whatever a user writes: relative, bounded, no climbing, never empty."""
    prefix = visible_prefix(text)
    parts = prefix.split("/")
    assert 1 <= len(parts) <= 4
    assert all(part.strip(". ") and len(part.encode()) <= 80 for part in parts)
    assert not set(prefix) & set('\x00\n\\<>:"|?*')
    assert ".." not in prefix  # ComfyUI's /view refuses it
    assert visible_prefix(prefix) == prefix


@pytest.mark.parametrize(
    ("text", "visible"),
    [
        ("ComfyUI", "ComfyUI"),
        ("a/b/pic", "a/b/pic"),
        ("../../../escape", "escape"),
        ("/etc/passwd", "etc/passwd"),
        ("C:\\Users\\x", "C_/Users/x"),
        ("..", "output"),
        ("what a day...", "what a day."),
        ("", "output"),
    ],
)
def test_visible_prefix(text: str, visible: str) -> None:
    assert visible_prefix(text) == visible


def test_every_save_node_gets_the_tag() -> None:
    """A linked prefix is replaced by the node's title: it could not be made unique."""
    graph = image_graph(prefix="a/b")
    graph["4"] = {
        "class_type": "SaveImage",
        "inputs": {"images": ["1", 0], "filename_prefix": ["9", 0]},
        "_meta": {"title": "Final"},
    }
    sets = prefix_sets(graph, "db-1")
    assert [(change.node, change.value) for change in sets] == [("3", "db-1/a/b"), ("4", "db-1/Final")]


def test_every_kind_of_output() -> None:
    """Any list item with a filename under any key; temporary files and repeats are left out."""
    outputs: dict[str, Any] = {
        "3": {"images": [{"filename": "a.png", "subfolder": "", "type": "output"}], "animated": [False]},
        "4": {
            "gifs": [{"filename": "b.mp4", "subfolder": "v", "type": "output", "format": "video/h264-mp4"}]
        },
        "5": {"images": [{"filename": "t.png", "subfolder": "", "type": "temp"}]},
        "6": {"audio": [{"filename": "c.flac", "subfolder": "", "type": "output"}], "text": ["hello"]},
        "7": {"3d": [{"filename": "d.glb", "subfolder": "", "type": "output"}], "result": ["x", None]},
        "8": {"images": [{"filename": "a.png", "subfolder": "", "type": "output"}, "odd", {"filename": 3}]},
        "9": {},
    }
    assert [file.filename for file in reported_files(outputs)] == ["a.png", "b.mp4", "c.flac", "d.glb"]
    graph = {node: {"class_type": f"N{node}", "inputs": {}} for node in outputs}
    assert reported_data(outputs, graph) == {"N6": "hello", "N7": "x"}


def test_nodes_that_a_node_expands_into_are_its_own(tmp_path: Path) -> None:
    """A loop runs as nodes that no graph has. Of theirs, only what is under our tag is surely ours."""
    files = {
        node: {"images": [{"filename": f"{node}.png", "subfolder": where, "type": "output"}]}
        for node, where in (("3.0.0.1", "db-1/x"), ("3.1.0.2", ""), ("odd.7", "db-1"), ("9", "db-2"))
    }
    took: list[str] = []

    def take(file: Reported, _target: Path) -> bool:
        took.append(file.filename)
        return True

    made = collect(files, image_graph(), tag="db-1", workdir=tmp_path, take=take, owners={"odd.7": "2"})
    assert took == ["3.0.0.1.png", "odd.7.png"]
    assert [(file.name, file.node) for file in made] == [("x/3.0.0.1.png", "3"), ("odd.7.png", "2")]
    assert reported_data({"3.0.0.5": {"text": ["hello"]}}, image_graph()) == {"SaveImage": "hello"}


def test_data_can_be_written() -> None:
    """A file name that is no UTF-8 is shown with half a character, which no record takes."""
    outputs = {"1": {"text": ["caf\udce9.png"]}}
    assert list(reported_data(outputs, {"1": {"class_type": "Show", "inputs": {}}}).values()) == ["caf?.png"]


def test_data_is_redacted() -> None:
    outputs = {"1": {"text": ["token hf_abcdefghijklmnopqrstuvwxyz"]}}
    assert "hf_" not in str(reported_data(outputs, {"1": {"class_type": "Show", "inputs": {}}}))


def collected(filename: str, *, subfolder: str, tag: str) -> LocalFile:
    """What becomes of one reported file."""
    outputs = {"3": {"images": [{"filename": filename, "subfolder": subfolder, "type": "output"}]}}
    (file,) = collect(outputs, image_graph(), tag=tag, workdir=Path("unused"), take=lambda *_: True)
    return file


SUFFIXES = st.sampled_from([*MEDIA_TYPES, ".latent", ".safetensors", ".PNG", ""])


@given(
    st.text(max_size=200) | st.text(alphabet="aé画🎨.", min_size=20, max_size=120),
    st.integers(1, 10**6),
    st.sampled_from(["_", "", "-audio"]),
    SUFFIXES,
)
def test_counter_and_suffix_survive_any_prefix(prefix: str, count: int, added: str, suffix: str) -> None:
    """ComfyUI adds them to a prefix that is as long as we let it be."""
    (change, *_) = prefix_sets(image_graph(prefix=prefix), "db-1")
    subfolder, _, stem = str(change.value).rpartition("/")
    ending = f"_{count:05}{added}{suffix}"
    file = collected(stem + ending, subfolder=subfolder, tag="db-1")
    assert file.name == f"{change.value}{ending}".removeprefix("db-1/")
    assert file.media_type == MEDIA_TYPES.get(suffix.lower(), "application/octet-stream")


@given(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\\"), max_size=40)
    | st.text(alphabet="aé画🎨. ", min_size=70, max_size=300),
    SUFFIXES,
)
def test_any_reported_file_keeps_its_suffix(stem: str, suffix: str) -> None:
    """Also one that no prefix named. Safe and bounded all the same."""
    filename = stem + suffix or "x"
    name = collected(filename, subfolder="db-1", tag="db-1").name
    if suffix:
        assert PurePosixPath(name).suffix == PurePosixPath(filename).suffix
    assert name.strip(". ")
    assert len(name.encode()) <= 130
    assert not set(name) & set('\x00\n\\<>:"|?*/')


def test_a_name_that_is_no_unicode_is_made_one() -> None:
    """JSON can spell half a character; no store takes it in a key."""
    assert collected("a\ud800b.png", subfolder="db-1", tag="db-1").name == "ab.png"


class TestCollect:
    def take(self, source: Path) -> Any:
        def take(file: Reported, target: Path) -> bool:
            path = inside(source, file.subfolder, file.filename)
            if path is None or not path.is_file():
                return False
            path.rename(target)
            return True

        return take

    def images(self, *names: str, tag: str) -> dict[str, Any]:
        return {
            "3": {"images": [{"filename": name, "subfolder": f"{tag}/p", "type": "output"} for name in names]}
        }

    def test_names_without_the_tag(self, tmp_path: Path) -> None:
        tag, work = new_tag(), tmp_path / "work"
        (tmp_path / tag / "p").mkdir(parents=True)
        work.mkdir()
        (tmp_path / tag / "p" / "a.png").write_bytes(b"1")
        (tmp_path / tag / "model.safetensors").write_bytes(b"2")
        files = collect(
            self.images("a.png", tag=tag),
            image_graph(),
            tag=tag,
            workdir=work,
            take=self.take(tmp_path),
            left=tmp_path / tag,
        )
        assert [(file.name, file.node) for file in files] == [("p/a.png", "3"), ("model.safetensors", None)]
        assert files[0].path.read_bytes() == b"1"

    def test_reported_and_not_there(self, tmp_path: Path) -> None:
        """The engine's word alone is no file."""
        tag = new_tag()
        with pytest.raises(TaskFailed, match="does not exist"):
            collect(
                self.images("a.png", tag=tag),
                image_graph(),
                tag=tag,
                workdir=tmp_path,
                take=self.take(tmp_path),
            )

    def test_a_sequence_of_pictures(self, tmp_path: Path) -> None:
        """Reported as ffmpeg's pattern; a name that only looks like one is a name."""
        tag, work = new_tag(), tmp_path / "work"
        (tmp_path / tag / "p").mkdir(parents=True)
        work.mkdir()
        names = ("clip.001.png", "clip.002.png", "clip.003.png", "50%02d.png")
        for name in names:
            (tmp_path / tag / "p" / name).write_text(name)
        outputs = self.images("clip.%03d.png", "50%02d.png", tag=tag)
        files = collect(outputs, image_graph(), tag=tag, workdir=work, take=self.take(tmp_path))
        assert [file.name for file in files] == [f"p/{name}" for name in names]
        assert [file.path.read_text() for file in files] == list(names)

    def test_what_is_not_finished_is_no_result(self, tmp_path: Path) -> None:
        """A batch manager has queued the rest under an id of its own."""
        with pytest.raises(TaskFailed, match="not finished") as caught:
            collect(
                {"3": {"unfinished_batch": [True]}},
                image_graph(),
                tag=new_tag(),
                workdir=tmp_path,
                take=self.take(tmp_path),
            )
        assert caught.value.kind is ErrorKind.NODE_FAILED

    @pytest.mark.parametrize(("cached", "kind"), [("2", "node_failed"), ("3", "unavailable")])
    def test_a_cached_report_of_what_is_gone_is_tried_again(
        self, tmp_path: Path, cached: str, kind: str
    ) -> None:
        """What a node that ran reports falsely, it would report again."""
        with pytest.raises(TaskFailed) as caught:
            collect(
                self.images("a.png", tag="db-1"),
                image_graph(),
                tag="db-1",
                workdir=tmp_path,
                take=self.take(tmp_path),
                cached={cached},
            )
        assert caught.value.kind == kind

    def test_another_executions_files_are_not_ours(self, tmp_path: Path) -> None:
        """A cache may report an earlier prompt's file under the same node id."""
        (tmp_path / "db-other" / "p").mkdir(parents=True)
        (tmp_path / "db-other" / "p" / "a.png").write_bytes(b"1")
        with pytest.raises(TaskFailed) as caught:
            collect(
                self.images("a.png", tag="db-other"),
                image_graph(),
                tag=new_tag(),
                workdir=tmp_path,
                take=self.take(tmp_path),
            )
        assert caught.value.kind is ErrorKind.NODE_FAILED

    @pytest.mark.parametrize("name", ["../../secret", "/etc/hostname", "link"])
    def test_nothing_outside_is_taken(self, tmp_path: Path, name: str) -> None:
        """Neither by name nor through a link that a node planted."""
        root = tmp_path / "output"
        root.mkdir()
        (tmp_path / "secret").write_bytes(b"s")
        (root / "link").symlink_to(tmp_path / "secret")
        outputs = {"1": {"images": [{"filename": name, "subfolder": "", "type": "output"}]}}
        with pytest.raises(TaskFailed, match="does not exist"):
            collect(outputs, image_graph(), tag=new_tag(), workdir=tmp_path, take=self.take(root))


def test_media_types() -> None:
    assert [media_type(name) for name in ("a.PNG", "b.mp4", "c.latent", "d")] == [
        "image/png",
        "video/mp4",
        "application/octet-stream",
        "application/octet-stream",
    ]


class TestSavedWhereItChose:
    """A save node without a `filename_prefix`: ComfyUI's cache reports its file again and again."""

    @pytest.fixture
    def bench(self, tmp_path: Path) -> Iterator[Bench]:
        bench = Bench.open(replace(builtin_settings(tmp_path), comfyui_dir=checkout(tmp_path)), tmp_path)
        yield bench
        bench.handler.close()

    def graph(self) -> dict[str, Any]:
        """A picture saved as ever, and a stamp on a branch of its own."""
        return image_graph() | {
            "8": {
                "class_type": "EmptyImage",
                "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0},
            },
            "9": {"class_type": "Stamp", "inputs": {"image": ["8", 0], "word": "a"}},
        }

    def test_every_task_has_it(self, bench: Bench) -> None:
        """Whether its prompt was the same (the last upload failed, say) or only that branch of it."""
        plan = bench.plan(self.graph(), matrix={"1.color": [1, 2]})
        for index in (0, 0, 1):
            files = {file.name: file for file in bench.run_task(plan, index).files}
            assert len(files) == 2
            assert files["a_00001_.txt"].path.read_text() == "1 picture(s), a_00001_.txt"

    @pytest.mark.parametrize("prefix", ["note", "notes/long"])
    def test_a_prefix_taken_for_a_name(self, bench: Bench, prefix: str) -> None:
        """The folder that it then writes to is there, and the tag in it is no part of its file's name."""
        note = {"class_type": "Note", "inputs": {"image": ["1", 0], "filename_prefix": prefix}}
        names = [file.name for file in bench.run(image_graph() | {"9": note}).files]
        assert len(names) == 2
        assert names[1].endswith(f"{prefix}_00001_.txt")
        assert "db-" not in names[1]

    def test_previews_are_bounded(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        """ComfyUI's `temp` would fill the disk in a night."""
        monkeypatch.setattr(KeptOutputs.__init__, "__defaults__", (1,))
        preview = {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}
        plan = bench.plan(image_graph() | {"9": preview}, matrix={"1.color": [1, 2, 3]})
        for index in range(3):
            bench.run_task(plan, index)
        assert len(list(bench.settings.work_dir.glob("engine-*/temp/**/*.png"))) == 1

    def test_what_is_gone_is_made_anew(self, bench: Bench) -> None:
        """The engine forgets, so that the next try computes."""
        plan = bench.plan(self.graph())
        bench.run_task(plan)
        for path in bench.settings.work_dir.glob("engine-*/output/a_*"):
            path.unlink()
        with pytest.raises(TaskFailed, match="does not exist any more") as caught:
            bench.run_task(plan)
        assert caught.value.kind is ErrorKind.UNAVAILABLE
        assert len(bench.run_task(plan).files) == 2

    def test_one_name_for_all_gives_each_task_its_own(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Although the next prompts run while the last one's file is copied."""
        copy = KeptOutputs.copy

        def slowly(self: KeptOutputs, path: Path, target: Path) -> bool:
            time.sleep(0.05)
            return copy(self, path, target)

        monkeypatch.setattr(KeptOutputs, "copy", slowly)
        graph = image_graph() | {"9": {"class_type": "Latest", "inputs": {"image": ["1", 0], "word": "a"}}}
        plan = bench.plan(graph, matrix={"1.color": [*range(1, 10), 1, 2, 3]})

        def made(index: int) -> list[LocalFile]:
            try:
                return bench.run_task(plan, index).files
            except ForgottenOutput:  # answered from the cache, and written over since: tried again, as ever
                return bench.run_task(plan, index).files

        def blue(index: int) -> int:
            files = {file.name: file for file in made(index)}
            assert len(files) == 2
            return int(files["a.txt"].path.read_text())

        with ThreadPoolExecutor(3) as pool:
            assert list(pool.map(blue, range(12))) == [*range(1, 10), 1, 2, 3]


class TestTurns:
    """Whose file lies under a path that a node chose."""

    def graph(self, *classes: str) -> dict[str, Any]:
        return {name: {"class_type": name, "inputs": {}} for name in classes}

    def chosen(self, maker: str, *, path: str = "a.png", cached: bool = False) -> list[Chosen]:
        return [Chosen(path, "Latest", maker, cached)]

    def test_known_ones_go_one_at_a_time(self) -> None:
        turns, stop = Turns(), Stop()
        with turns.taken(self.graph("Latest"), stop) as turn:
            assert turns.settle(turn, self.chosen("m"), stop)
            with turns.taken(self.graph("SaveImage"), stop):
                pass
            stop.set(ErrorKind.CANCELLED)
            with pytest.raises(TaskFailed), turns.taken(self.graph("Latest"), stop):
                pass

    @pytest.mark.parametrize(
        ("second", "path", "settled"),
        [("n", "a.png", [False, False]), ("m", "a.png", [True, True]), ("n", "b.png", [True, True])],
    )
    def test_those_at_once_wait_for_each_other(self, second: str, path: str, settled: list[bool]) -> None:
        """And share nothing: neither learns which of two files was the last."""
        turns, stop = Turns(), Stop()
        with (
            ThreadPoolExecutor(1) as pool,
            turns.taken(self.graph("Latest"), stop) as one,
            turns.taken(self.graph("Latest"), stop) as other,
        ):
            first = pool.submit(turns.settle, one, self.chosen("m"), stop)
            with pytest.raises(TimeoutError):
                first.result(0.05)
            assert [turns.settle(other, self.chosen(second, path=path), stop), first.result()] == settled

    def test_what_failed_may_have_written_anywhere(self) -> None:
        turns, stop = Turns(), Stop()
        with turns.taken(self.graph("Latest"), stop) as turn:
            with pytest.raises(TaskFailed), turns.taken(self.graph("Latest"), stop):
                raise TaskFailed(ErrorKind.NODE_FAILED, "x")
            assert not turns.settle(turn, self.chosen("m"), stop)

    def test_a_cached_report_of_what_was_written_over_is_forgotten(self) -> None:
        turns, stop = Turns(), Stop()
        for maker, cached in (("m", False), ("m", True), ("n", False)):
            with turns.taken(self.graph("Latest"), stop) as turn:
                assert turns.settle(turn, self.chosen(maker, cached=cached), stop)
        with (
            turns.taken(self.graph("Latest"), stop) as turn,
            pytest.raises(TaskFailed, match=r"another prompt's") as caught,
        ):
            turns.settle(turn, self.chosen("m", cached=True), stop)
        assert caught.value.kind is ErrorKind.UNAVAILABLE


def test_kept_outputs_are_bounded(tmp_path: Path) -> None:
    """What was not asked for longest goes; a copy stays whatever becomes of the file."""
    kept = KeptOutputs(kept_bytes=25)
    for number, name in enumerate(["a", "b", "a", "c"]):
        (tmp_path / name).write_bytes(b"0123456789")
        assert kept.copy(tmp_path / name, tmp_path / f"copy-{number}")
    assert not (tmp_path / "b").exists()
    assert (tmp_path / "copy-1").read_bytes() == b"0123456789"
    assert kept.copy(tmp_path / "a", tmp_path / "again")
    assert not kept.copy(tmp_path / "b", tmp_path / "gone")
