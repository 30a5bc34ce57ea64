"""The whole story with both real engines on a CPU: pictures in, LoRA trained, grid rendered.

Needs COMFYUI_DIR and AI_TOOLKIT_DIR (with COMFYUI_PYTHON and AI_TOOLKIT_PYTHON), and a
full-shape SD 1.5 of random weights as `models/diffusers/random_sd15` in that ComfyUI; it is
made there if the maker is at hand. `make story` runs it; it takes some minutes.
"""

from __future__ import annotations

import io
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageChops
from ruamel.yaml import YAML

from processor.records import Manifest, Outcome
from processor.store.directory import DirectoryStore
from processor.testing.handler import ScriptedHandler
from processor.testing.machine import Bench
from tests.support.graphs import diffusion_graph
from tests.support.pictures import captioned, upload
from tests.support.processes import start_runner

VARIABLES = ("COMFYUI_DIR", "COMFYUI_PYTHON", "AI_TOOLKIT_DIR", "AI_TOOLKIT_PYTHON")
MAKER = Path(__file__, "../../../../shared/tools/random_sd15/make.py").resolve()
MODEL = "random_sd15"
PATIENCE_S = 1800

pytestmark = pytest.mark.skipif(
    not all(os.environ.get(name) for name in VARIABLES), reason=f"{', '.join(VARIABLES)} are not all set"
)

GRAPH = diffusion_graph(MODEL, "a photo of zoe", prefix="grid", seed=1, lora="{lora}")
OPTIONS: dict[str, Any] = {
    "preset": "sd15",
    "base_model": MODEL,
    "steps": 4,
    "save_every": 2,
    "lr": 1e-2,
    "rank": 4,
    "resolution": 64,
    "optimizer": "adamw",
    "dtype": "fp32",
    "gradient_checkpointing": False,
    "cache_latents": False,
    "sample_every": 0,
    "sample": {
        "kind": "render",
        "name": "with and without",
        "workflow": GRAPH,
        "matrix": {"zip": {"10.strength_model": [0.0, 1.0], "10.strength_clip": [0.0, 1.0]}},
        "seeds": [1, 2],
    },
}


def base_model() -> Path:
    """The random SD 1.5 in ComfyUI's own models folder."""
    comfyui = Path(os.environ["COMFYUI_DIR"])
    folder = comfyui / "models" / "diffusers" / MODEL
    if not (folder / "model_index.json").exists():
        if not MAKER.is_file():
            pytest.skip(f"there is no {folder}, and nothing to make it with")
        tokenizer = comfyui / "comfy" / "sd1_tokenizer"
        command = [os.environ["COMFYUI_PYTHON"], str(MAKER), str(folder), str(tokenizer)]
        subprocess.run(command, check=True, timeout=PATIENCE_S, stdin=subprocess.DEVNULL)
    return folder


def test_pictures_become_a_lora_that_changes_what_comfyui_renders(tmp_path: Path) -> None:
    """Dataset, training, publishing, test grid: one bucket, one command, no GPU."""
    model = base_model()
    bucket = DirectoryStore(tmp_path / "bucket", create=True)
    for path in model.rglob("*"):
        if path.is_file():
            bucket.put(f"models/{MODEL}/{path.relative_to(model).as_posix()}", path)
    stream = io.BytesIO()
    YAML(typ="safe", pure=True).dump(OPTIONS, stream)
    upload(bucket, "zoe", {**captioned(4), "dataset.yaml": stream.getvalue(), "_READY": b""})
    log = tmp_path / "runner.log"
    environ = {"CUDA_VISIBLE_DEVICES": "", "DROPBATCH_WORK_DIR": str(tmp_path / "scratch")}
    runner = start_runner(tmp_path / "bucket", environ=environ, log=log)
    try:
        code = runner.wait(PATIENCE_S)
    finally:
        runner.kill()
    assert code == 0, log.read_text()[-4000:]
    _check(Bench(tmp_path, ScriptedHandler(), store=bucket))


def _check(bench: Bench) -> None:
    """All three jobs done, no key of the LoRA left out, and a visible difference."""
    bucket = bench.main
    manifests = {each["kind"]: Manifest.model_validate(each) for each in bench.manifests()}
    assert {kind: each.outcome for kind, each in manifests.items()} == dict.fromkeys(
        ("ingest", "train", "render"), Outcome.DONE
    )
    render = manifests["render"]
    engine_log = next(
        key for key in bench.keys(f"comfy_outputs/{render.job_id}/") if key.endswith("engine.log")
    )
    with bucket.get(engine_log) as download:
        assert b"lora key not loaded" not in download.body.read()
    pictures: dict[tuple[int | None, object], Image.Image] = {}
    for result in render.tasks:
        with bucket.get(result.files[0].key) as download:
            image = Image.open(io.BytesIO(download.body.read())).convert("RGB")
        pictures[result.seed, result.params["10.strength_model"]] = image
    for seed in (1, 2):
        difference = ImageChops.difference(pictures[seed, 0.0], pictures[seed, 1.0])
        assert difference.getbbox() is not None, f"the LoRA changes nothing at seed {seed}"
