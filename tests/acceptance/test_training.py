"""A training whose runner is killed: resumed, finished, and the same as if nothing had been."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest

from processor.records import Outcome
from processor.store.directory import DirectoryStore
from tests.support.processes import kill, running_in, start_runner, wait_until
from tests.support.training import SETTINGS, Studio

POINTS: dict[str, int | None] = {
    "0": None,  # before the first step
    "3": None,  # the step before the first save
    "save 3": None,  # in the middle of writing the weights
    "between 3": None,  # weights written, optimizer not
    "saved 3": None,  # saved, perhaps being uploaded
    "4": 3,  # after a checkpoint
    "save 6": 3,
    "saved 6": 3,
    "9": 6,
    "save None": 6,  # in the middle of the final weights
    "saved None": 6,  # finished, not uploaded
}
"""Where the runner is killed, and the checkpoint that is in the bucket by then."""
OPTIMIZER_BYTES = 32 * 1024 * 1024
"""Enough for an upload to be under way when the runner is killed."""


def environment(studio: Studio) -> dict[str, str]:
    return {
        "AI_TOOLKIT_DIR": str(studio.toolkit),
        "AI_TOOLKIT_PYTHON": sys.executable,
        "DROPBATCH_LEASE_S": "3",
        "DROPBATCH_RENEW_S": "0.5",
        "DROPBATCH_WORK_DIR": str(studio.root / "scratch"),
    }


def finish(studio: Studio, bucket: Path) -> None:
    log = studio.root / "runner.log"
    runner = start_runner(bucket, environ=environment(studio), log=log)
    try:
        assert runner.wait(120) == 0, log.read_text()[-3000:]
    finally:
        runner.kill()


def artefacts(studio: Studio) -> dict[str, str]:
    """What a person gets: the files of the manifest by name and hash, and what is published."""
    manifest = studio.manifest()
    assert manifest.outcome is Outcome.DONE
    found = {file.name: file.sha256 for result in manifest.tasks for file in result.files}
    published = dict.fromkeys(studio.bench.keys("comfy_models/"), "")
    return {**found, **published}


def uploaded(studio: Studio, step: int) -> bool:
    return any(key.endswith(f"/checkpoints/{step:09d}.json") for key in studio.bench.keys("comfy_outputs/"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The same training with nothing in its way."""
    root = tmp_path_factory.mktemp("undisturbed")
    store = DirectoryStore(root / "bucket", create=True)
    studio = Studio(root, store=store, script={"optimizer_bytes": OPTIMIZER_BYTES})
    studio.drop_dataset()
    finish(studio, root / "bucket")
    return artefacts(studio)


@pytest.mark.parametrize("point", POINTS)
def test_kill_9_at_any_point_ends_with_the_same_artefacts(
    tmp_path: Path, point: str, undisturbed: dict[str, str]
) -> None:
    """The trainer dies with its runner; the next one resumes the newest whole checkpoint."""
    bucket = tmp_path / "bucket"
    store = DirectoryStore(bucket, create=True)
    script = {"at": {point: "pause"}, "optimizer_bytes": OPTIMIZER_BYTES}
    studio = Studio(tmp_path, store=store, script=script)
    studio.drop_dataset()
    log = tmp_path / "runner.log"
    runner = start_runner(bucket, environ=environment(studio), log=log)
    try:
        wait_until((studio.toolkit / "paused").exists, timeout_s=60, what="the trainer reaches the point")
        step = POINTS[point]
        if step is not None:
            wait_until(lambda: uploaded(studio, step), timeout_s=60, what=f"checkpoint {step} is uploaded")
    finally:
        kill(runner)
    wait_until(lambda: not running_in(studio.toolkit), timeout_s=30, what="the trainer ends with its runner")
    finish(studio, bucket)
    assert artefacts(studio) == undisturbed
    counted = Counter(studio.trained())
    assert set(counted) == set(range(SETTINGS["steps"]))
    repeated = [step for step, times in counted.items() if times > 1]
    assert max(counted.values()) <= 2
    if POINTS[point] is not None:
        assert len(repeated) <= SETTINGS["save_every"] + 1, counted
    losses = studio.manifest().tasks[0].data["losses"]
    assert [step for step, _ in losses] == list(range(SETTINGS["steps"]))
