"""A night from the command line: held jobs on the built-in engine, and the report in the morning.

`NIGHT_TASKS=500` makes it the night that docs/batches.md shows.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from importlib import resources
from itertools import product
from pathlib import Path
from typing import Any

import pytest

TASKS = int(os.environ.get("NIGHT_TASKS", "60"))
PHOTOS = ("cat.jpg", "coffee.jpg", "galaxies.jpg", "rocket.jpg")
SMALL = {"width": 240, "height": 160}
INPUTS = {name: f"inputs/{name}" for name in PHOTOS}
INKS = ["#26223f", "#7a1f2b", "#0f4c45", "#1d3f7a", "#5a2a6b"]
PAPERS = ["#ffe3b8", "#d6ecff", "#e8f3d6", "#ffd9e0", "#f4f0ff"]
MODES = ["soft_light", "multiply", "screen", "overlay"]


def night_jobs() -> dict[str, dict[str, Any]]:
    """Two big matrices that share the tasks, a collage, an animation, and a job with a slip."""
    posters: dict[str, list[Any]] = {"image": list(PHOTOS), "ink": INKS, "paper": PAPERS, "tones": [4, 6, 8]}
    glow: dict[str, list[Any]] = {
        "image": list(PHOTOS),
        "mode": MODES,
        "tint": INKS,
        "amount": [0.3, 0.6, 0.9],
    }
    quarter = {f"image{place + 1}": PHOTOS[place] for place in range(4)}
    half = max(4, (TASKS - 5) // 2)
    return {
        "posters": _job("Two inks", "poster", matrix=posters, exclude_beyond=half),
        "glow": _job("Glow", "glow", matrix=glow, exclude_beyond=TASKS - 5 - half),
        "collage": {"workflow": "collage", "inputs": INPUTS, "overrides": {**SMALL, **quarter}},
        "fades": _job("Out of the dark", "fade-in", matrix={"image": list(PHOTOS)}, exclude_beyond=4),
        "slip": {"workflow": "poster", "overrides": {"image": "dog.jpg"}},
    }


def _job(name: str, workflow: str, *, matrix: dict[str, list[Any]], exclude_beyond: int) -> dict[str, Any]:
    cells = [dict(zip(matrix, values, strict=True)) for values in product(*matrix.values())]
    spread = [cells[place * len(cells) // exclude_beyond] for place in range(exclude_beyond)]
    job = {"name": name, "workflow": workflow, "inputs": INPUTS, "overrides": SMALL}
    return {**job, "matrix": {"include": spread}}


@pytest.fixture(name="bucket")
def _bucket(tmp_path: Path) -> Path:
    inputs = tmp_path / "bucket/inputs"
    inputs.mkdir(parents=True)
    for name in PHOTOS:
        (inputs / name).write_bytes((resources.files("workflows.examples") / f"photos/{name}").read_bytes())
    return tmp_path / "bucket"


def dropbatch(bucket: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(bucket.parent),
        "DROPBATCH_BUCKET": str(bucket),
        "DROPBATCH_WORK_DIR": str(bucket.parent / "work"),
    }
    command = [sys.executable, "-m", "processor.cli", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=540)


def test_a_night_runs_what_was_held_and_reports_it(bucket: Path, tmp_path: Path) -> None:
    """Nothing before the night; then every task, one report with every job, and a page that links them."""
    files = []
    for name, job in night_jobs().items():
        files.append(tmp_path / f"{name}.json")
        files[-1].write_text(json.dumps(job), "utf-8")
    assert dropbatch(bucket, "drop", "--nightly", *files).returncode == 0
    assert len(list((bucket / "inbox/nightly").iterdir())) == 5

    ran = dropbatch(bucket, "run", "--once", "--night", "--plain")
    assert ran.returncode == 1, ran.stderr  # the slip
    assert list((bucket / "inbox/nightly").iterdir()) == []
    (folder,) = (bucket / "comfy_outputs/nightly").iterdir()
    report = json.loads((folder / "report.json").read_text())
    outcomes = {job["drop"].split("/")[-1].split(".")[0]: job["outcome"] for job in report["jobs"]}
    assert outcomes == dict.fromkeys(("posters", "glow", "collage", "fades"), "done") | {"slip": "invalid"}
    assert sum(job.get("tasks", 0) for job in report["jobs"]) == TASKS

    page = (folder / "index.html").read_text()
    for job in report["jobs"]:
        assert f'href="../../{job["job_id"]}/index.html"' in page
        for picture in job.get("pictures", []):
            assert (bucket / "comfy_outputs" / job["job_id"] / picture).is_file()
    assert "dog.jpg" in page


def test_held_jobs_wait_until_the_night(bucket: Path, tmp_path: Path) -> None:
    """A window that is not open now: nothing is taken, and nothing is reported."""
    soon = datetime.now(UTC) + timedelta(hours=6)
    (tmp_path / "dropbatch.toml").write_text(
        f'night_start = "{soon:%H:00}"\nnight_end = "{soon + timedelta(hours=1):%H:00}"\n', "utf-8"
    )
    (tmp_path / "sky.json").write_text(json.dumps({"workflow": "gradient"}), "utf-8")
    assert dropbatch(bucket, "drop", "--nightly", tmp_path / "sky.json").returncode == 0
    ran = dropbatch(bucket, "run", "--once", "--plain", "--config", tmp_path / "dropbatch.toml")
    assert ran.returncode == 0, ran.stderr
    assert len(list((bucket / "inbox/nightly").iterdir())) == 1
    assert not (bucket / "comfy_outputs").exists()
