"""Models and trainings on the real app: brought on a CPU before a GPU is rented, and carried on after
a preemption. ComfyUI and the trainer are stand-ins that start as the real ones do."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from processor.layout import PAUSED, spend_key
from processor.records import Outcome
from tests.infra.deployed import Deployed, ask, deadline, deployed
from tests.infra.standin import install_comfyui
from tests.support import trainer
from tests.support.moto import SerialMotoServer
from tests.support.pictures import captioned, upload
from tests.support.training import BASE, SETTINGS


@pytest.fixture(autouse=True)
def _deadline() -> Iterator[None]:
    with deadline(180):
        yield


@pytest.fixture(scope="module")
def toolkit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trainer.install(tmp_path_factory.mktemp("toolkit"), step_s=0.25)


@pytest.fixture(scope="module")
def here(
    tmp_path_factory: pytest.TempPathFactory, moto: SerialMotoServer, toolkit: Path
) -> Iterator[Deployed]:
    """With GPUs and models, as in production; only the engines are others."""
    root = tmp_path_factory.mktemp("models")
    env = {
        "DROPBATCH_COMFYUI_DIR": str(install_comfyui(root / "comfyui")),
        "DROPBATCH_AI_TOOLKIT_DIR": str(toolkit),
        "DROPBATCH_AI_TOOLKIT_PYTHON": sys.executable,
    }
    with deployed(root, moto.url, container_env=env, engine="comfyui") as running:
        assert running.function("capture").remote()["nodes"] > 20
        yield running


def upscaling(model: str, **job: Any) -> dict[str, Any]:
    graph = {
        "1": {
            "class_type": "EmptyImage",
            "inputs": {"width": 16, "height": 16, "batch_size": 1, "color": 7},
        },
        "2": {"class_type": "UpscaleModelLoader", "inputs": {"model_name": model}},
        "3": {
            "class_type": "ImageUpscaleWithModel",
            "inputs": {"upscale_model": ["2", 0], "image": ["1", 0]},
        },
        "4": {"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": "up"}},
    }
    return {"kind": "render", "workflow": graph, **job}


def test_the_schema_was_captured_on_a_cpu(here: Deployed) -> None:
    """Preflight knows the nodes of the ComfyUI that renders, and never started a GPU for it."""
    assert "UpscaleModelLoader" in json.loads(here.read("state/object_info.json"))
    assert here.loopback.containers("capture")[0].gpus == []


def test_a_model_that_is_nowhere_fails_before_any_rent(here: Deployed) -> None:
    """The report names file and folder; no renderer was started."""
    key = here.put_job("missing", upscaling("nowhere.pth"))
    here.tick()
    here.run_until_empty()
    manifest = here.manifests()[key]
    assert manifest.outcome is Outcome.INVALID
    assert "comfy_models/upscale_models/nowhere.pth" in str(manifest.error)
    assert not here.loopback.containers("Renderer")


def test_a_model_is_pulled_on_a_cpu_and_found_by_the_renderer(here: Deployed) -> None:
    """From the bucket to the Volume, once for all tasks that name it; its GPU is in the manifest."""
    here.store.put("comfy_models/upscale_models/up.pth", b"weights")
    key = here.put_job("pulled", upscaling("up.pth", matrix={"1.color": [1, 2, 3]}))
    here.tick()
    here.run_until_empty()
    manifest = here.manifests()[key]
    assert manifest.outcome is Outcome.DONE, manifest.error
    assert {result.gpu for result in manifest.tasks} == {"L40S"}
    (puller,) = here.loopback.containers("pull")
    assert (puller.served, puller.gpus) == (1, [])
    listed = here.function("model_files").remote()["models"]
    assert [each["name"] for each in listed] == ["upscale_models/up.pth"]


def test_a_job_gets_the_gpu_that_it_asks_for(here: Deployed) -> None:
    """In a pool of its own, which scales to zero like the other."""
    here.store.put("comfy_models/upscale_models/up.pth", b"weights, again")
    key = here.put_job("on-h100", upscaling("up.pth", gpu="H100"))
    here.tick()
    here.run_until_empty()
    manifest = here.manifests()[key]
    assert (manifest.outcome, manifest.tasks[0].gpu) == (Outcome.DONE, "H100"), manifest.error
    assert ["H100"] in [container.gpus for container in here.loopback.containers("Renderer")]


def test_a_gpu_that_modal_has_not_is_refused_before_any_rent(here: Deployed) -> None:
    """With the nearest name; it would be refused once for each task, or cost what nobody knows."""
    here.store.put("comfy_models/upscale_models/up.pth", b"weights")
    key = here.put_job("on-none", upscaling("up.pth", gpu="A100-80"))
    before = len(here.loopback.containers("Renderer"))
    here.tick()
    here.run_until_empty()
    manifest = here.manifests()[key]
    assert manifest.outcome is Outcome.INVALID
    assert manifest.error is not None
    assert (manifest.error.where, manifest.error.mend) == ("gpu", "Did you mean 'A100-80GB'?")
    assert len(here.loopback.containers("Renderer")) == before


@contextmanager
def standing(here: Deployed, key: str) -> Iterator[None]:
    """While inside, this object is in the bucket."""
    here.store.put(key, b"")
    yield
    here.store.delete(key, version=here.store.stat(key).version)


def day_at_its_cap() -> str:
    return spend_key(datetime.now(UTC).date(), "another-0123456789abcdef", "1-a", 25_000_000)


def pulls(here: Deployed) -> int:
    return sum(container.served for container in here.loopback.containers("pull"))


def test_what_the_api_must_not_begin_rents_no_gpu(here: Deployed) -> None:
    """A paused bucket, a day at its cap, a model that is nowhere: each is answered from a CPU."""
    job = upscaling("nowhere.pth")
    with standing(here, PAUSED):
        paused = ask(here, "POST", "/render", job)
    assert (paused.status, "paused" in paused.json()["error"]) == (503, True), paused.json()
    missing = ask(here, "POST", "/render", job)
    assert (missing.status, "nowhere.pth" in missing.json()["error"]) == (422, True), missing.json()
    here.loopback.wait_until(lambda: _retired(here, "api"), 30, "another door, with a fresh sum of the day")
    with standing(here, day_at_its_cap()):
        capped = ask(here, "POST", "/render", job)
    assert (capped.status, "$25.00 of $25.00" in capped.json()["error"]) == (429, True), capped.json()
    here.loopback.wait_until(lambda: _retired(here, "api"), 30, "a door that knows of no such sum")
    assert not here.loopback.containers("Studio")


def test_the_apis_models_are_brought_before_its_gpu_is_rented_and_once(here: Deployed) -> None:
    """A model that lies on the Volume starts nothing but the renderer; what it cost is the day's, too."""
    here.store.put("comfy_models/upscale_models/api.pth", b"weights")
    before = pulls(here)
    first = ask(here, "POST", "/render", upscaling("api.pth"))
    assert (first.status, first.headers["content-type"]) == (200, "image/png"), first.data
    assert pulls(here) == before + 1
    second = ask(here, "POST", "/render", upscaling("api.pth", overrides={"1.color": 9}))
    assert second.status == 200, second.data
    assert pulls(here) == before + 1
    spent = [key.split("/") for key in here.keys("state/spend/") if "/api-" in key]
    assert [(attempt, int(micros) > 0) for *_, attempt, micros in spent] == [("api", True)] * 2
    poor = ask(here, "POST", "/render", upscaling("api.pth", max_cost_usd=1e-9, matrix={"1.color": [1, 2]}))
    assert (poor.status, "max_cost_usd" in str(poor.json())) == (429, True), poor.json()


def _retired(here: Deployed, name: str) -> bool:
    """Have its containers end, as their idle time would."""
    for container in here.loopback.containers(name, state="running"):
        container.kill()
    return not here.loopback.containers(name, state="running")


def test_on_a_day_at_its_cap_drops_wait_and_no_gpu_is_rented(here: Deployed) -> None:
    """However it was spent, and although this job has not cost anything yet."""
    key = here.put_job("tomorrow", {"kind": "train", "dataset": "zoe", "preset": "sd15"})
    with standing(here, day_at_its_cap()):
        summary = here.tick()
    assert (summary["claimed"], summary["pending"]) == (0, 1)
    assert summary["over_budget"] == "the day has cost $25.00 of $25.00"
    assert not here.loopback.containers("Trainer")
    here.store.delete(key, version=here.store.stat(key).version)


def test_a_trainer_preempted_between_checkpoints_goes_on(here: Deployed, toolkit: Path) -> None:
    """A dropped folder is archived, its training preempted, and carried on from the last checkpoint."""
    for name in ("model_index.json", "unet/weights.bin"):
        here.store.put(f"models/{BASE}/{name}", b"{}")
    settings = SETTINGS | {"steps": 24, "save_every": 4}
    options = json.dumps({"preset": "sd15", "settings": settings}).encode()  # JSON is YAML
    upload(here.store, "zoe", {**captioned(4), "dataset.yaml": options, "_READY": b""})
    here.loopback.wait_until(lambda: here.tick() and here.keys("datasets/zoe/"), 60, "the folder is archived")
    here.loopback.wait_until(lambda: here.loopback.containers("Trainer") or not here.tick(), 60, "it trains")
    victim = here.loopback.busy("Trainer", timeout_s=60)
    here.loopback.wait_until(lambda: _trained(toolkit) >= 10, 60, "a checkpoint or two")
    victim.preempt(grace_s=30)
    assert victim.wait_exited(60).reason == "preempted"
    here.run_until_empty()
    (manifest,) = [each for each in here.manifests().values() if each.kind == "train"]
    assert manifest.outcome is Outcome.DONE, manifest.error
    assert manifest.cost_usd > 0
    assert len(here.loopback.containers("Trainer")) == 2
    steps = [int(line) for line in (toolkit / "trained.log").read_text().split()]
    assert set(range(24)) <= set(steps)
    assert len(steps) <= 24 + 4 + 1, "no step but those since the last checkpoint was trained twice"
    assert [key for key in here.keys("comfy_models/loras/") if key.endswith(".safetensors")]
    assert here.loopback.containers("pull_bases"), "the base model came on a CPU"


def _trained(toolkit: Path) -> int:
    log = toolkit / "trained.log"
    return len(log.read_text().split()) if log.exists() else 0
