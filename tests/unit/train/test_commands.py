"""`dropbatch train` and `dropbatch datasets`, on a folder-bucket."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from handlers.ingest.command import import_folder, list_datasets
from handlers.ingest.pictures import Looked
from handlers.train.command import drop_training
from processor.cli import main
from processor.cli.exits import UsageError
from processor.errors import JobInvalid
from processor.handler import Stores
from processor.records import Outcome
from processor.store.directory import DirectoryStore
from tests.support.pictures import captioned, upload
from tests.support.training import DATASET, SETTINGS, Studio


@pytest.fixture
def studio(tmp_path: Path) -> Studio:
    """A bucket with one archived dataset, of which nothing is trained."""
    studio = Studio(tmp_path, store=DirectoryStore(tmp_path / "bucket", create=True))
    studio.drop_dataset(train=False)
    studio.work()
    return studio


def job(**more: Any) -> dict[str, Any]:
    return {
        "kind": "train",
        "dataset": DATASET,
        "name": DATASET,
        "preset": "sd15",
        "settings": SETTINGS,
        **more,
    }


def test_a_dropped_training_trains_the_newest_version(studio: Studio) -> None:
    """Without a version the pointer decides, at planning time."""
    key, job_id = drop_training(Stores.single(studio.main), job(sweep={"rank": [2, 4]}))
    assert key in studio.bench.keys("inbox/jobs/")
    studio.work()
    manifest = studio.manifest()
    assert manifest.job_id == job_id
    assert len(studio.loras()) == 2


@pytest.mark.parametrize(
    ("section", "value", "names"),
    [
        ("model", "FLUX", "config.process.model"),
        ("save", {"max_step_saves_to_keep": 0}, "config.process.save.max_step_saves_to_keep"),
    ],
)
def test_an_ill_formed_full_config_is_invalid_at_once(
    studio: Studio, section: str, value: object, names: str
) -> None:
    """By its first attempt, not `dead` after the last."""
    full = {"train": {"steps": 5}, "model": {"name_or_path": "tiny"}, section: value}
    studio.bench.drop({"kind": "train", "dataset": DATASET, "config": full})
    studio.work()
    manifest = studio.manifest()
    assert manifest.outcome is Outcome.INVALID
    assert manifest.error is not None
    assert manifest.error.where == names


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"dataset": "zoo"}, "zoo"),
        ({"dataset": "../zoe"}, "no name"),
        ({"dataset": f"{DATASET}/0123456789abcdef"}, "no version"),
        ({"dataset": f"{DATASET}/latest"}, "16 hex"),
        ({"preset": "sd1.5"}, "sd15"),
        ({"settings": {"stepz": 3}}, "steps"),
        ({"sweep": {"lr": [1, 2]}}, "lr"),
        ({"config": {}, "preset": "sdxl"}, "not both"),
        ({"trigger_word": "${HOME}"}, "trigger_word"),
    ],
)
def test_a_training_that_can_not_be_is_refused_before_it_is_dropped(
    studio: Studio, changes: dict[str, Any], names: str
) -> None:
    """With the field, and the nearest known name."""
    with pytest.raises(JobInvalid) as caught:
        drop_training(Stores.single(studio.main), job(**changes))
    assert names in str(caught.value)
    assert studio.bench.keys("inbox/") == []


def test_a_training_that_would_see_no_videos_is_refused(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the setting that has the trainer look for them; a model of pictures takes the pictures."""
    monkeypatch.setattr("handlers.ingest.examine.look_at_video", lambda _path: Looked())
    upload(studio.main, DATASET, {"clip.mp4": b"a clip"})
    studio.drop_dataset(preset="wan21-14b", settings={**SETTINGS, "num_frames": 41}, train=False)
    studio.work()
    upload(studio.main, "clips", {"clip.mp4": b"a clip"})
    options = b"preset: wan21-14b\nnum_frames: 41\ntrain: false\nmin_images: 1\n"
    upload(studio.main, "clips", {"dataset.yaml": options, "_READY": b""})
    studio.work()
    stores = Stores.single(studio.main)
    with pytest.raises(JobInvalid, match="has 1 video: at num_frames 1") as caught:
        drop_training(stores, job(preset="wan21-14b"))
    assert caught.value.where == "settings.num_frames"
    with pytest.raises(JobInvalid, match="has 1 video: at num_frames 1"):
        drop_training(stores, job(dataset="clips"))
    drop_training(stores, job())
    drop_training(stores, job(preset="wan21-14b", settings={**SETTINGS, "num_frames": 41}))


def test_the_command_line_drops_a_training(
    studio: Studio, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers, lists and words of settings are read as they are meant."""
    monkeypatch.chdir(studio.root)
    options = "--preset sd15 --steps 7 --set lr=1e-3 --set optimizer=adamw --sweep rank=2,4 --json"
    with pytest.raises(SystemExit) as ended:
        main(["train", DATASET, *options.split(), "--bucket", str(studio.root / "bucket")])
    assert not ended.value.code
    dropped = studio.bench.read(json.loads(capsys.readouterr().out)["key"])
    assert dropped["settings"] == {"steps": 7, "lr": 0.001, "optimizer": "adamw"}
    assert dropped["sweep"] == {"rank": [2, 4]}


def test_datasets_in_a_bucket_of_their_own_are_found(
    studio: Studio, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By every command, as by the machine; what is dropped goes to the main bucket all the same."""
    monkeypatch.chdir(studio.root)
    archive = studio.root / "archive"
    archive.mkdir()
    (studio.root / "bucket/datasets").rename(archive / "datasets")
    monkeypatch.setenv("DROPBATCH_DATASETS_BUCKET", str(archive))
    monkeypatch.setenv("DROPBATCH_WORK_DIR", str(studio.root / "here"))
    path = studio.root / "again.json"
    path.write_text(json.dumps(job()))

    def said(*arguments: str) -> Any:
        with pytest.raises(SystemExit) as ended:
            main([*arguments, "--json", "--bucket", str(studio.root / "bucket")])
        assert not ended.value.code
        return json.loads(capsys.readouterr().out)

    assert [each["name"] for each in said("datasets")] == [DATASET]
    assert [facts["kind"] for facts in said("check", str(path))] == ["train"]
    assert studio.bench.read(said("train", DATASET, "--preset", "sd15")["key"])["dataset"] == DATASET
    for name, data in captioned(3).items():
        studio.main.put(f"old/anna/{name}", data)
    assert said("datasets", "import", "old/anna")["files"] == 6
    assert "inbox/datasets/anna/_READY" in studio.bench.keys("inbox/")


def test_the_command_line_does_not_retry_a_rehearsal(
    studio: Studio, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Said at once, with the command that trains; nothing is dropped."""
    monkeypatch.chdir(studio.root)
    studio.rehearsal = True
    _, job_id = drop_training(Stores.single(studio.main), job())
    studio.work()
    with pytest.raises(SystemExit) as ended:
        main(["retry", job_id, "--all", "--bucket", str(studio.root / "bucket")])
    assert ended.value.code == 1
    assert f"dropbatch train {DATASET}" in " ".join(capsys.readouterr().err.split())
    assert studio.bench.keys("inbox/") == []


def test_a_folder_of_the_bucket_is_taken_in_and_left_as_it_is(studio: Studio) -> None:
    """An import is a drop like any other."""
    for name, data in captioned(4, first=30).items():
        studio.main.put(f"aitoolkit_datasets/anna/{name}", data)
    assert import_folder(studio.main, "aitoolkit_datasets/anna/")["files"] == 8
    studio.bench.clock.advance(60)
    studio.rehearsal = True
    studio.work()
    assert len(studio.bench.keys("aitoolkit_datasets/")) == 8
    found = {each["name"]: each for each in list_datasets(studio.main)}
    assert found["anna"]["files"] == 8
    assert found[DATASET] == {
        "name": DATASET,
        "latest": studio.bench.read(f"datasets/{DATASET}/latest.json")["facts"]["fingerprint"],
        "versions": 1,
        "files": 8,
    }


@pytest.mark.parametrize("folder", ["", "/", "nothing/here"])
def test_what_can_not_be_imported_is_said(studio: Studio, folder: str) -> None:
    """An empty prefix would take in the whole bucket."""
    with pytest.raises(UsageError):
        import_folder(studio.main, folder)


def test_an_import_needs_a_datasets_name(studio: Studio) -> None:
    """As a drop does: another folder of the inbox is never looked at."""
    studio.main.put("old/.hidden/a.png", b"x")
    with pytest.raises(JobInvalid, match="no possible name"):
        import_folder(studio.main, "old/.hidden")
    assert studio.bench.keys("inbox/") == []
