"""Dropping: what reaches the inbox, in which form, and what is refused before it does."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, PngImagePlugin

from processor.cli import uploads
from processor.cli.hot_folder import SENT, HotFolder, keep_dropping
from processor.cli.job_files import Changes, parse_seeds, parse_setting, read_job_file
from processor.errors import AccessDenied, CapReached, DropbatchError, StoreError
from processor.layout import is_job_id
from processor.store.directory import DirectoryStore
from processor.testing.faults import Fault, FaultPlan, FaultyStore
from tests.support.pictures import picture
from tests.unit.cli.conftest import GRAPH, Dropbatch

JobFile = Callable[..., Path]


def dropped(bucket: Path, folder: str = "inbox/jobs") -> list[Any]:
    """The jobs that lie in the inbox."""
    return [json.loads(path.read_bytes()) for path in sorted((bucket / folder).glob("*.json"))]


def test_a_bare_graph_goes_byte_for_byte(dropbatch: Dropbatch, bucket: Path, job_file: JobFile) -> None:
    """What needs no change gets none; the job id is printed."""
    path = job_file()
    result = dropbatch("drop", path)
    assert result.code == 0
    assert is_job_id(result.out.strip())
    [file] = (bucket / "inbox/jobs").iterdir()
    assert file.read_bytes() == path.read_bytes()


def test_a_template_is_not_held_for_the_night(dropbatch: Dropbatch, bucket: Path, job_file: JobFile) -> None:
    """Its schedule says when it comes; the flag was passed over without a word."""
    template, plain = job_file("dawn.json", schedule="0 6 * * *"), job_file("once.json")
    result = dropbatch("drop", "--nightly", template, plain)
    assert result.code == 1
    assert "dawn.json: a job with a `schedule` is not held for the night" in result.err
    assert not (bucket / "inbox/recurring").exists()
    assert len(dropped(bucket, "inbox/nightly")) == 1


def test_the_same_name_twice_is_two_drops(dropbatch: Dropbatch, bucket: Path, job_file: JobFile) -> None:
    """A drop never replaces one that still waits."""
    path = job_file()
    ids = {dropbatch("drop", path).out for _ in range(2)}
    assert len(ids) == len(dropped(bucket)) == 2


def test_options_change_the_job(
    dropbatch: Dropbatch, bucket: Path, job_file: JobFile, tmp_path: Path
) -> None:
    """A bare graph becomes a job as soon as there is something to say about it."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\ufeffa cat\n\n  a dog \n", "utf-8")
    arguments = [
        "-n",
        20,
        "--set",
        "6.text=a=b",
        "--set",
        "3.steps=12",
        "--prompts",
        prompts,
        "--name",
        "Pets",
    ]
    assert dropbatch("drop", job_file(), "--nightly", *arguments).code == 0
    assert dropped(bucket, "inbox/nightly") == [
        {
            "workflow": GRAPH,
            "overrides": {"6.text": "a=b", "3.steps": 12},
            "seeds": {"random": 20},
            "name": "Pets",
            "prompts": ["a cat", "a dog"],
        }
    ]


def test_local_files_go_up_and_are_named_by_key(
    dropbatch: Dropbatch, bucket: Path, job_file: JobFile, tmp_path: Path
) -> None:
    """A picture beside the job, named by `inputs` or only by the graph, is uploaded by content."""
    Image.new("RGB", (4, 4)).save(tmp_path / "cat.png")
    graph = {"1": {"class_type": "LoadImage", "inputs": {"image": "cat.png"}}, **GRAPH}
    job_file("a.json", workflow=graph)
    job_file(
        "b.json", workflow=graph, inputs={"cat.png": "./cat.png", "far.png": "https://example.org/far.png"}
    )
    assert dropbatch("drop", tmp_path / "a.json", tmp_path / "b.json").code == 0
    first, second = dropped(bucket)
    key = first["inputs"]["cat.png"]
    assert key.startswith("inputs/")
    assert (bucket / key).read_bytes() == (tmp_path / "cat.png").read_bytes()
    assert second["inputs"] == {"cat.png": key, "far.png": "https://example.org/far.png"}


def test_a_job_file_carries_off_nothing_else(
    dropbatch: Dropbatch, bucket: Path, job_file: JobFile, tmp_path: Path
) -> None:
    """Files outside its folder go up only when the person names them on the command line."""
    secret, folder = tmp_path / "secret.png", tmp_path / "from-elsewhere"
    secret.write_bytes(b"private")
    folder.mkdir()
    (folder / "link.png").symlink_to(secret)
    wanted = {"a.png": str(secret), "b.png": "../secret.png", "c.png": "link.png"}
    graph = {"1": {"class_type": "LoadImage", "inputs": {"image": "../secret.png"}}, **GRAPH}
    path = job_file("from-elsewhere/job.json", workflow=graph, inputs=wanted, prompts="../secret.png")
    assert dropbatch("drop", path).code == 0
    assert not (bucket / "inputs").exists()
    assert dropped(bucket)[0]["inputs"] == wanted
    assert dropbatch("drop", path, "--input", f"a.png={secret}").code == 0
    [uploaded] = (bucket / "inputs").rglob("*.png")
    assert uploaded.read_bytes() == b"private"


def test_a_png_gives_the_graph_that_made_it(dropbatch: Dropbatch, bucket: Path, tmp_path: Path) -> None:
    """As ComfyUI embeds it; a picture without one is refused with a word."""
    made, plain = tmp_path / "made.png", tmp_path / "plain.png"
    text = PngImagePlugin.PngInfo()
    text.add_text("prompt", json.dumps(GRAPH))
    Image.new("RGB", (4, 4)).save(made, pnginfo=text)
    Image.new("RGB", (4, 4)).save(plain)
    result = dropbatch("drop", made, plain)
    assert result.code == 1
    assert dropped(bucket) == [GRAPH]
    assert "holds no ComfyUI prompt" in result.err


def picture_of(path: Path, graph: dict[str, Any]) -> Path:
    """A PNG with the graph that made it, as ComfyUI saves it."""
    text = PngImagePlugin.PngInfo()
    text.add_text("prompt", json.dumps(graph))
    Image.new("RGB", (4, 4)).save(path, pnginfo=text)
    return path


def test_what_a_run_added_to_a_graph_is_no_part_of_it(
    dropbatch: Dropbatch, bucket: Path, tmp_path: Path
) -> None:
    """ComfyUI writes down what IS_CHANGED said, often NaN; and we, where that one run's files went."""
    node = {"class_type": "SaveImage", "inputs": {"filename_prefix": "ü/red", "images": ["6", 0]}}
    graph = {**GRAPH, "9": node}
    ran = json.loads(json.dumps(graph))
    ran["9"]["inputs"]["filename_prefix"] = "db-0f983a021ced15b1/db-2ca26efc18d68e4e/ü/red"
    ran["9"]["is_changed"] = [float("nan")]
    assert dropbatch("drop", picture_of(tmp_path / "made.png", ran)).code == 0
    assert dropped(bucket) == [graph]


def test_nan_elsewhere_in_a_picture_is_refused(dropbatch: Dropbatch, bucket: Path, tmp_path: Path) -> None:
    """Only what is left out may be no JSON."""
    graph = {**GRAPH, "9": {"class_type": "Note", "inputs": {"x": float("nan")}}}
    result = dropbatch("drop", picture_of(tmp_path / "made.png", graph))
    assert result.code == 1
    assert "NaN is not JSON" in result.err
    assert not dropped(bucket)


def test_a_picture_that_was_made_from_another(dropbatch: Dropbatch, bucket: Path, tmp_path: Path) -> None:
    """Its graph names what we put there for one run; refused here, where the file is, not in the bucket."""
    name = "db-56d1cb845d1651aedaad/cat.png"
    graph = {**GRAPH, "1": {"class_type": "LoadImage", "inputs": {"image": name}}}
    made, cat = picture_of(tmp_path / "made.png", graph), tmp_path / "my cat.png"
    Image.new("RGB", (4, 4)).save(cat)
    result = dropbatch("drop", made)
    assert result.code == 1
    assert f"--input {name}=FILE" in result.err
    assert dropbatch("drop", made, "--input", f"{name}={cat}").code == 0
    assert (bucket / dropped(bucket)[0]["inputs"][name]).read_bytes() == cat.read_bytes()
    assert dropbatch("drop", made, "--set", "1.image=dog.png").code == 0


def test_remarks_are_no_prompts(
    dropbatch: Dropbatch, bucket: Path, job_file: JobFile, tmp_path: Path
) -> None:
    """Neither in a file of `--prompts` nor in one beside the job."""
    (tmp_path / "p.txt").write_text("# mine\na cat\n\n  # old ones\na dog\n")
    assert dropbatch("drop", job_file("a.json"), "--prompts", tmp_path / "p.txt").code == 0
    assert dropbatch("drop", job_file("b.json", prompts="p.txt")).code == 0
    assert [job["prompts"] for job in dropped(bucket)] == [["a cat", "a dog"]] * 2


def test_a_workflow_beside_the_job_goes_with_it(
    dropbatch: Dropbatch, bucket: Path, job_file: JobFile, tmp_path: Path
) -> None:
    """`check` finds it there, so a drop must not need it in the bucket; a name is the bucket's matter."""
    (tmp_path / "comfy_workflows").mkdir()
    (tmp_path / "comfy_workflows/tiny.json").write_text(json.dumps(GRAPH))
    (tmp_path / "gradient").write_text("{}")
    assert dropbatch("drop", job_file("a.json", workflow="comfy_workflows/tiny.json")).code == 0
    assert dropbatch("drop", job_file("b.json", workflow="gradient")).code == 0
    assert [job["workflow"] for job in dropped(bucket)] == [GRAPH, "gradient"]


def test_what_can_never_run_is_refused_here(dropbatch: Dropbatch, bucket: Path, tmp_path: Path) -> None:
    """The others are dropped all the same; the exit code says that not all went well."""
    ui, good, typo = tmp_path / "ui.json", tmp_path / "good.json", tmp_path / "typo.json"
    ui.write_text('{"nodes": [], "links": []}')
    good.write_text(json.dumps(GRAPH))
    typo.write_text(json.dumps({"workflow": GRAPH, "matrx": {}}))
    result = dropbatch("drop", ui, good, typo, "--json")
    assert result.code == 1
    assert len(result.json["dropped"]) == 1
    assert "Export (API)" in result.json["refused"][0]["error"]
    assert "Did you mean 'matrix'?" in result.json["refused"][1]["error"]
    assert dropped(bucket) == [GRAPH]


def test_a_dataset_folder(dropbatch: Dropbatch, bucket: Path, tmp_path: Path) -> None:
    """Data goes, litter and links that lead out stay, the marker is there at the end."""
    folder = tmp_path / "my cat"
    (folder / "more").mkdir(parents=True)
    (folder / "more" / "1.png").write_bytes(b"x")
    (folder / "1.txt").write_text("a cat")
    (folder / ".DS_Store").write_bytes(b"x")
    (folder / "out.png").symlink_to(tmp_path / "secret.png")
    (tmp_path / "secret.png").write_bytes(b"secret")
    assert dropbatch("drop", folder).code == 0
    inbox = bucket / "inbox/datasets/my cat"
    names = {path.relative_to(inbox).as_posix() for path in inbox.rglob("*") if path.is_file()}
    assert names == {"_manifest.json", "more/1.png", "1.txt", "_READY"}


def test_links_that_are_left_out_are_named(
    dropbatch: Dropbatch, bucket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By `check` as by `drop`, which take the same files: most of a folder may be links to a library."""
    monkeypatch.setenv("DROPBATCH_HANDLERS", '{"ingest": "handlers.ingest:IngestHandler"}')
    library, folder = tmp_path / "library", tmp_path / "zoe"
    (library / "more").mkdir(parents=True)
    folder.mkdir()
    for number in range(3):
        (folder / f"own{number}.png").write_bytes(picture(number))
        (folder / f"linked{number}.png").symlink_to(library / f"{number}.png")
    (library / "0.png").write_bytes(picture(3))
    (library / "more/1.png").write_bytes(picture(4))
    (folder / "more").symlink_to(library / "more")
    (folder / "same.png").symlink_to("own0.png")
    checked, dropped = dropbatch("check", folder, "--json"), dropbatch("drop", folder)
    says = "linked0.png: this link and 3 more lead out of the folder"
    assert any(warning.startswith(says) for warning in checked.json[0]["warnings"])
    assert checked.json[0]["pictures"] == 4
    assert f"zoe/{says}" in dropped.err
    names = {path.name for path in (bucket / "inbox/datasets/zoe").iterdir()}
    assert names == {"own0.png", "own1.png", "own2.png", "same.png", "_manifest.json", "_READY"}


def test_a_dataset_folder_of_videos(dropbatch: Dropbatch, bucket: Path, tmp_path: Path) -> None:
    """They are data as pictures are; its list of files is no job."""
    folder = tmp_path / "clips"
    folder.mkdir()
    for name in ("a.mp4", "b.mov"):
        (folder / name).write_bytes(b"x")
    (folder / "_manifest.json").write_text('{"files": {"a.mp4": 1, "b.mov": 1}}')
    assert dropbatch("drop", folder).code == 0
    assert (bucket / "inbox/datasets/clips/a.mp4").is_file()


@pytest.mark.parametrize("name", [None, "portraits/zoe", "back\\slash", "n" * 101])
def test_a_folder_that_can_never_be_a_dataset_is_refused(
    dropbatch: Dropbatch, bucket: Path, tmp_path: Path, job_file: JobFile, name: str | None
) -> None:
    """Before anything goes up: in the inbox it would be ignored for ever, or become another dataset."""
    folder = tmp_path / ("zoe" if name else ".hid")
    folder.mkdir()
    (folder / "1.png").write_bytes(b"x")
    result = dropbatch("drop", folder, job_file(), "--json", *(["--name", name] if name else []))
    assert result.code == 1
    [refused] = result.json["refused"]
    assert refused["path"] == str(folder)
    assert "no possible name for a dataset" in refused["error"]
    assert "--name" in refused["error"]
    assert not (bucket / "inbox/datasets").exists()
    assert len(dropped(bucket)) == 1


def test_what_was_dropped_before_an_upload_failed_is_told(
    dropbatch: Dropbatch, bucket: Path, job_file: JobFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It will run, and whoever tries again must know."""
    real = uploads.drop_job

    def full(store: Any, job: Any, **options: Any) -> Any:
        if job.source.name == "b.json":
            raise StoreError("the disk is full")
        return real(store, job, **options)

    monkeypatch.setattr(uploads, "drop_job", full)
    result = dropbatch("drop", job_file("a.json"), job_file("b.json"))
    assert result.code == 4
    assert result.out.startswith("a-")
    assert len(dropped(bucket)) == 1


@pytest.mark.parametrize(
    "arguments",
    [["missing.json"], ["."], ["a.json", "-n", "2", "--seeds", "3"], ["a.json", "--set", "steps"]],
)
def test_wrong_arguments_are_usage_errors(dropbatch: Dropbatch, bucket: Path, arguments: list[str]) -> None:
    """Nothing is sent, and the exit code is the shell's for usage."""
    if "a.json" in arguments:
        Path("a.json").write_text(json.dumps(GRAPH))
    assert dropbatch("drop", *arguments).code == 2
    assert not (bucket / "inbox").exists()


def test_a_name_that_no_key_can_hold(dropbatch: Dropbatch, bucket: Path, tmp_path: Path) -> None:
    """Long names are shortened, others kept as people wrote them."""
    long, spaced = tmp_path / ("n" * 240 + ".json"), tmp_path / "zwei Wörter.json"
    for path in (long, spaced):
        path.write_text(json.dumps(GRAPH))
    assert dropbatch("drop", long, spaced).code == 0
    names = sorted(path.name for path in (bucket / "inbox/jobs").iterdir())
    assert names[0].startswith("n" * 40 + ".")
    assert names[1].startswith("zwei Wörter.")


def test_settings_and_seeds_are_read_as_meant() -> None:
    """Values are JSON where they are JSON, else text."""
    assert parse_setting("a.b=1.5") == ("a.b", 1.5)
    assert parse_setting('t="20"') == ("t", "20")
    assert parse_setting("t=[1]") == ("t", "[1]")
    assert parse_seeds("1,2") == [1, 2]
    assert parse_seeds("5:3") == {"start": 5, "count": 3}
    assert parse_seeds("random:4") == {"random": 4}
    with pytest.raises(DropbatchError, match="100:20"):
        parse_seeds("many")


def test_watching_sends_each_file_once_and_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file still being written is left alone; a restart repeats nothing."""
    folder, root = tmp_path / "hot", tmp_path / "bucket"
    folder.mkdir()
    root.mkdir()
    half = folder / "half.json"
    half.write_text(json.dumps(GRAPH)[:20])
    (folder / "whole.json").write_text(json.dumps(GRAPH))

    def watch_until(count: int) -> None:
        stop = threading.Event()
        arguments = (DirectoryStore(root), [folder], Changes())
        watcher = threading.Thread(
            target=keep_dropping,
            args=arguments,
            kwargs={"nightly": False, "limit_bytes": 10**6, "stop": stop},
        )
        watcher.start()
        seen = threading.Event()
        try:
            for _ in range(200):
                if len(list((root / "inbox/jobs").glob("*.json"))) >= count:
                    break
                seen.wait(0.1)
        finally:
            stop.set()
            watcher.join()

    watch_until(1)
    assert [path.name.split(".")[0] for path in (root / "inbox/jobs").iterdir()] == ["whole"]
    half.write_text(json.dumps(GRAPH))
    watch_until(2)
    names = sorted(path.name.split(".")[0] for path in (root / "inbox/jobs").iterdir())
    assert names == ["half", "whole"]
    assert len((folder / SENT).read_text().splitlines()) == 2


@pytest.fixture
def hot(tmp_path: Path, bucket: Path) -> HotFolder:
    """An empty folder, `hot`, that is looked at when a test says so."""
    (tmp_path / "hot").mkdir()
    return HotFolder(DirectoryStore(bucket), tmp_path / "hot", Changes(), False, 10**6)


def test_a_watched_job_waits_for_the_files_beside_it(hot: HotFolder, bucket: Path, tmp_path: Path) -> None:
    """`cp job.json clip.mp4 hot/`: what is still being written is not sent, nor read again and again."""
    job, clip = tmp_path / "hot/job.json", tmp_path / "hot/clip.mp4"
    graph = {"1": {"class_type": "LoadVideo", "inputs": {"file": "clip.mp4"}}, **GRAPH}
    job.write_text(json.dumps(graph))
    for now_s in (0.0, 1.0, 1.5, 2.0, 2.5):
        with clip.open("ab") as file:
            file.write(b"frame")
        assert not list(hot.look(now_s))
    assert not list(hot.look(3.0))
    [item] = hot.look(3.5)
    assert item.key.startswith("inbox/jobs/job.")
    [uploaded] = (bucket / "inputs").rglob("*.mp4")
    assert uploaded.read_bytes() == clip.read_bytes()
    assert not list(hot.look(9.0))


def test_a_watched_job_whose_file_went_away_is_sent_without_it(
    hot: HotFolder, bucket: Path, tmp_path: Path
) -> None:
    """It waits for no file that is not there: the bucket may have it."""
    clip = tmp_path / "hot/clip.mp4"
    clip.write_bytes(b"frame")
    graph = {"1": {"class_type": "LoadVideo", "inputs": {"file": "clip.mp4"}}, **GRAPH}
    (tmp_path / "hot/job.json").write_text(json.dumps(graph))
    assert not [*hot.look(0.0), *hot.look(1.0)]
    clip.unlink()
    assert len(list(hot.look(1.5))) == 1
    assert dropped(bucket) == [graph]


def test_a_watched_dataset_goes_again_when_its_marker_is_new(
    hot: HotFolder, bucket: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each upload is a training: one a saved caption is not what anybody wants. Nor is one a restart."""
    folder = tmp_path / "hot/zoe"
    folder.mkdir()
    for name in ("1.png", "1.txt", "_READY"):
        (folder / name).write_bytes(b"x")
    now_s = iter(range(0, 100, 2))

    def sent(watched: HotFolder) -> int:
        return len([*watched.look(float(next(now_s))), *watched.look(float(next(now_s)))])

    assert sent(hot) == 1
    for text in ("zoe, walking", "zoe, walking a dog"):
        (folder / "1.txt").write_text(text)
        assert sent(hot) == 0
    assert capsys.readouterr().err.count("zoe has changed since it was sent") == 1
    again = HotFolder(DirectoryStore(bucket), tmp_path / "hot", Changes(), False, 10**6)
    assert sent(again) == 0
    os.utime(folder / "_READY", ns=(1, 2))
    assert sent(again) == 1
    assert (bucket / "inbox/datasets/zoe/1.txt").read_text() == "zoe, walking a dog"


def test_a_watch_outlives_a_daily_cap(
    bucket: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It ends at midnight; until then it is tried now and then, and told of once."""
    folder = tmp_path / "hot"
    folder.mkdir()
    for name in ("a.json", "b.json"):
        (folder / name).write_text(json.dumps(GRAPH))
    plan = FaultPlan(Fault("put", key="inbox/jobs/", error=lambda: CapReached("cap exceeded"), times=2))
    hot = HotFolder(FaultyStore(DirectoryStore(bucket), plan), folder, Changes(), False, 10**6)
    sent = [(now_s, len(list(hot.look(now_s)))) for now_s in (0.0, 1.0, 1.5, 20.0, 32.0, 33.0, 70.0)]
    assert [found for found in sent if found[1]] == [(70.0, 2)]
    assert capsys.readouterr().err.count("will try again") == 1


def test_a_watched_jobs_picture_is_no_job_of_its_own(hot: HotFolder, bucket: Path, tmp_path: Path) -> None:
    """Though it holds a prompt: it was made by ComfyUI. Another beside it is one."""
    folder = tmp_path / "hot"
    graph = {**GRAPH, "1": {"class_type": "LoadImage", "inputs": {"image": "cat.png"}}}
    (folder / "img2img.json").write_text(json.dumps(graph))
    (folder / "cut.json").write_text("{")
    (folder / "not yet.json").write_text(json.dumps({"workflow": GRAPH, "inputs": {"a": "./late.png"}}))
    for name in ("cat.png", "dog.png"):
        picture_of(folder / name, GRAPH)
    keys = [item.key for now_s in (0.0, 1.0, 2.0, 20.0) for item in hot.look(now_s)]
    picture_of(folder / "late.png", GRAPH)
    keys += [item.key for now_s in (30.0, 31.0) for item in hot.look(now_s)]
    assert [key.rpartition("/")[2].partition(".")[0] for key in keys] == ["dog", "img2img", "not yet"]


def test_one_unreadable_file_does_not_end_the_watch(
    hot: HotFolder,
    bucket: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Nor does a name that no key can hold; each is told of once, and the others are dropped."""

    def guarded(path: Path, *arguments: Any, **options: Any) -> Any:
        if path.name == "a.json":
            raise PermissionError(13, "Permission denied", str(path))
        return read_job_file(path, *arguments, **options)

    monkeypatch.setattr("processor.cli.hot_folder.read_job_file", guarded)
    faces = tmp_path / "hot/faces"
    faces.mkdir()
    for file in (faces / "a\nb.png", faces / "_READY"):
        file.write_bytes(b"")
    for name in ("a.json", "z.json"):
        (tmp_path / "hot" / name).write_text(json.dumps(GRAPH))
    sent = [item.key for now_s in (0.0, 1.0, 10.0, 11.0) for item in hot.look(now_s)]
    assert [key.split(".")[0] for key in sent] == ["inbox/jobs/z"]
    told = capsys.readouterr().err
    assert told.count("not dropped") == 2
    assert told.count("Permission denied") == 1
    assert not (bucket / "inbox/datasets").exists()


def test_a_bucket_that_is_not_there_ends_the_watch(
    hot: HotFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was taken for a file that went away, and every file passed over without a word."""
    no_bucket = FaultPlan(Fault("put", times=9, error=lambda: AccessDenied("there is no such bucket")))
    monkeypatch.setattr(hot, "_store", FaultyStore(hot._store, no_bucket))
    (tmp_path / "hot/job.json").write_text(json.dumps(GRAPH))
    assert not list(hot.look(0.0))
    with pytest.raises(AccessDenied, match="no such bucket"):
        list(hot.look(2.0))
    monkeypatch.undo()
    assert len(list(hot.look(3.0))) == 1  # nothing was taken for sent


def test_a_folder_that_may_not_be_looked_into_does_not_end_the_watch(
    hot: HotFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was sent of it before is not forgotten over that."""
    real = Path.exists

    def guarded(path: Path) -> bool:
        if path.parent.name == "private":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    (tmp_path / "hot/private").mkdir()
    (tmp_path / "hot/z.json").write_text(json.dumps(GRAPH))
    monkeypatch.setattr(Path, "exists", guarded)
    assert len([item for now_s in (0.0, 1.0, 2.0) for item in hot.look(now_s)]) == 1
    assert capsys.readouterr().err.count("Permission denied") == 1


def test_a_watched_folder_that_can_not_be_written_to(
    hot: HotFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Jobs are dropped once all the same, and what a restart would do is said once."""
    (tmp_path / "hot" / SENT).mkdir()  # no line can be added to that
    for name in ("a.json", "b.json"):
        (tmp_path / "hot" / name).write_text(json.dumps(GRAPH))
    assert len([item for now_s in (0.0, 1.0, 2.0) for item in hot.look(now_s)]) == 2
    assert capsys.readouterr().err.count("a restart would send it again") == 1


def test_a_job_with_a_schedule_becomes_a_template_and_replaces_itself(
    dropbatch: Dropbatch, bucket: Path, job_file: JobFile
) -> None:
    """Under its own name, so that dropping it again changes it instead of doubling it."""
    path = job_file("dawn.json", schedule="0 6 * * *")
    for _ in range(2):
        assert dropbatch("drop", path).out == "inbox/recurring/dawn.json\n"
    assert [entry.name for entry in (bucket / "inbox/recurring").iterdir()] == ["dawn.json"]
    assert dropbatch("check", path).code == 0
    assert "cron" in dropbatch("check", job_file("dusk.json", schedule="at six")).out
