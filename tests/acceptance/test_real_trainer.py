"""The real ai-toolkit on a CPU: a tiny random SD 1.5, trained, killed, resumed, swept.

Needs `AI_TOOLKIT_DIR` and `AI_TOOLKIT_PYTHON`, and the maker of the tiny model; skips
where they are absent. Each test takes a minute or more.
"""

from __future__ import annotations

import io
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from handlers.train.weights import find_non_finite, read_header
from processor.records import Manifest, Outcome
from processor.store.directory import DirectoryStore
from processor.testing.handler import ScriptedHandler
from processor.testing.machine import Bench
from tests.support.pictures import captioned, upload
from tests.support.processes import kill, running_in, start_runner, wait_until

TOOLS = Path(__file__, "../../../../shared/tools/tiny_sd15").resolve()
TOOLKIT = os.environ.get("AI_TOOLKIT_DIR")
PYTHON = os.environ.get("AI_TOOLKIT_PYTHON")

pytestmark = [
    pytest.mark.skipif(not (TOOLKIT and PYTHON), reason="AI_TOOLKIT_DIR and AI_TOOLKIT_PYTHON are not set"),
    pytest.mark.skipif(not TOOLS.is_dir(), reason="the maker of the tiny SD 1.5 is not here"),
]

OPTIONS: dict[str, Any] = {
    "preset": "sd15",
    "base_model": "tiny",
    "steps": 6,
    "save_every": 2,
    "resolution": 64,
    "rank": 4,
    "optimizer": "adamw",
    "dtype": "fp32",
    "gradient_checkpointing": False,
    "cache_latents": False,
    "sample_every": 2,
    "sample_steps": 2,
    "sample_size": [64, 64],
}
PATIENCE_S = 900


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion 1.5 of the right kind and no size."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    command = [str(PYTHON), str(TOOLS / "make_tiny.py"), str(folder)]
    subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE_S, stdin=subprocess.DEVNULL)
    return folder


class Bucket:
    """A folder-bucket with the tiny model, a dataset in the inbox and a runner."""

    def __init__(self, root: Path, tiny: Path, **options: Any) -> None:
        self.root = root
        self.path = root / "bucket"
        self.store = DirectoryStore(self.path, create=True)
        self.bench = Bench(root, ScriptedHandler(), store=self.store)
        for path in tiny.rglob("*"):
            if path.is_file():
                self.store.put(f"models/tiny/{path.relative_to(tiny).as_posix()}", path)
        stream = io.BytesIO()
        YAML(typ="safe", pure=True).dump({**OPTIONS, **options}, stream)
        upload(self.store, "zoe", {**captioned(4), "dataset.yaml": stream.getvalue(), "_READY": b""})

    def start(self) -> subprocess.Popen[bytes]:
        environ = {
            "CUDA_VISIBLE_DEVICES": "",
            "DROPBATCH_LEASE_S": "4",
            "DROPBATCH_RENEW_S": "0.5",
            "DROPBATCH_WORK_DIR": str(self.root / "scratch"),
        }
        return start_runner(self.path, environ=environ, log=self.root / "runner.log")

    def finish(self) -> Manifest:
        """Run to the end; return the training's manifest."""
        runner = self.start()
        try:
            code = runner.wait(PATIENCE_S)
        finally:
            runner.kill()
        assert code == 0, (self.root / "runner.log").read_text()[-4000:]
        (found,) = [each for each in self.bench.manifests() if each["kind"] == "train"]
        return Manifest.model_validate(found)

    def loras(self) -> list[Path]:
        return sorted((self.path / "comfy_models" / "loras").glob("*.safetensors"))


def test_a_dropped_folder_becomes_a_lora_that_opens(tmp_path: Path, tiny: Path) -> None:
    """From four pictures to a published file with finite weights, its curve and its samples."""
    bucket = Bucket(tmp_path, tiny)
    manifest = bucket.finish()
    assert manifest.outcome is Outcome.DONE
    (lora,) = bucket.loras()
    header = read_header(lora)
    assert header.step == 6
    assert find_non_finite(lora, header) is None
    assert header.metadata["modelspec.trigger_phrase"] == "zoe"
    data = manifest.tasks[0].data
    # The bar shows what the last refresh saw: on a fast run some steps are skipped.
    assert 3 <= len(data["losses"]) <= 6
    assert 0 < data["final_loss"] < 10
    names = {file.name for file in manifest.tasks[0].files}
    assert "samples/step-000000002-0.jpg" in names
    assert bucket.bench.keys("inbox/") == []


def test_kill_9_in_the_middle_resumes_from_the_last_checkpoint(tmp_path: Path, tiny: Path) -> None:
    """Runner and trainer die; the next runner goes on and ends as if nothing had been."""
    bucket = Bucket(tmp_path, tiny, steps=400, save_every=20, sample_every=0)
    runner = bucket.start()
    try:
        wait_until(
            lambda: any(
                key.endswith(".json") and "/checkpoints/" in key
                for key in bucket.bench.keys("comfy_outputs/")
            ),
            timeout_s=PATIENCE_S,
            what="a checkpoint is in the bucket",
        )
    finally:
        kill(runner)
    toolkit = Path(str(TOOLKIT)).resolve()
    wait_until(lambda: not running_in(toolkit), timeout_s=30, what="the trainer ends with its runner")
    records = [
        key for key in bucket.bench.keys("comfy_outputs/") if key.endswith(".json") and "/checkpoints/" in key
    ]
    newest = max(int(key.rpartition("/")[2].removesuffix(".json")) for key in records)
    manifest = bucket.finish()
    assert manifest.outcome is Outcome.DONE
    assert manifest.tasks[0].data["resumed_from"] == newest
    assert len(manifest.attempts) == 2
    steps = [step for step, _ in manifest.tasks[0].data["losses"]]
    assert steps[0] < newest < steps[-1]
    assert read_header(bucket.loras()[0]).step == 400


def test_a_sweep_of_two_trains_both_and_compares_them(tmp_path: Path, tiny: Path) -> None:
    """One task each, two LoRAs, one page."""
    bucket = Bucket(tmp_path, tiny, sample_every=0, sweep={"rank": [2, 4]})
    manifest = bucket.finish()
    assert manifest.outcome is Outcome.DONE
    assert [result.params for result in manifest.tasks] == [{"rank": 2}, {"rank": 4}]
    two, four = bucket.loras()
    assert two.stat().st_size < four.stat().st_size
    page = bucket.path / "comfy_outputs" / manifest.job_id / "training.html"
    assert page.read_text().count('class="smooth') == 2
