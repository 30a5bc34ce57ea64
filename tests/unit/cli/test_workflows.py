"""`workflows` and `new`: from a list of names to a job file that passes `check`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from handlers.render.workflow import ready_names
from tests.unit.cli.conftest import Dropbatch

EXPORT = {
    "3": {
        "class_type": "KSampler",
        "inputs": {"seed": 5, "steps": 12, "cfg": 7, "model": ["4", 0], "latent_image": ["5", 0]},
    },
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "mine.safetensors"}},
    "9": {"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": "x"}},
}


@pytest.fixture(autouse=True)
def _real_handler(monkeypatch: pytest.MonkeyPatch, dropbatch: Dropbatch) -> None:
    monkeypatch.delenv("DROPBATCH_HANDLERS")


def put(bucket: Path, name: str, text: str) -> None:
    path = bucket / "comfy_workflows" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, "utf-8")


def test_the_ready_ones_are_listed_without_a_bucket(dropbatch: Dropbatch) -> None:
    """Name, GPU, seconds and a sentence each."""
    listed = dropbatch("workflows", "--json").json
    assert [facts["name"] for facts in listed] == ready_names()
    said = dropbatch("workflows").out
    assert "txt2img-sdxl" in said
    assert "A100-80GB" in said


def test_one_is_explained(dropbatch: Dropbatch) -> None:
    """Parameters with type, default, range; what must be given; the models it needs."""
    said = dropbatch("workflows", "show", "lora-grid-sd15").out
    assert "required" in said
    assert "-2 to 2" in said
    assert "checkpoints/v1-5-pruned-emaonly-fp16.safetensors" in said


def test_a_wrong_name_is_answered_with_the_nearest(dropbatch: Dropbatch) -> None:
    result = dropbatch("workflows", "show", "txt2img-sdx")
    assert result.code == 1
    assert "Did you mean 'txt2img-sdxl'?" in result.err


@pytest.mark.parametrize("words", [("show",), ("explain", "glow"), ("glow",)])
def test_other_words_are_a_usage_error(dropbatch: Dropbatch, words: tuple[str, ...]) -> None:
    assert dropbatch("workflows", *words).code == 2


def test_users_exports_are_listed_with_what_was_found_in_them(dropbatch: Dropbatch, bucket: Path) -> None:
    """And one that can't be read stands there with its problem, stopping nothing."""
    put(bucket, "mine.json", json.dumps(EXPORT))
    put(bucket, "old/ui.json", json.dumps({"nodes": [], "links": []}))
    listed = {facts["name"]: facts for facts in dropbatch("workflows", "--json").json}
    mine = listed["mine"]
    assert mine["found"]
    assert {"seed", "steps", "cfg", "checkpoint"} <= {p["name"] for p in mine["parameters"]}
    assert mine["models"] == ["checkpoints/mine.safetensors"]
    assert "API" in listed["old/ui"]["problem"]
    assert "found in its graph" in dropbatch("workflows", "show", "mine").out


def test_a_users_own_stands_in_the_place_of_a_ready_one(dropbatch: Dropbatch, bucket: Path) -> None:
    """It is what a job of that name runs."""
    put(bucket, "gradient.json", json.dumps(EXPORT))
    listed = [facts for facts in dropbatch("workflows", "--json").json if facts["name"] == "gradient"]
    assert [facts["source"] for facts in listed] == ["comfy_workflows/gradient.json"]
    assert "comfy_workflows/gradient.json" in dropbatch("workflows", "show", "gradient").out


@pytest.mark.parametrize("name", ["gradient", "txt2img-flux", "upscale"])
def test_a_new_job_says_everything_that_can_be_changed(dropbatch: Dropbatch, name: str) -> None:
    """A valid job, its parameters at their defaults, without those that its axes set."""
    job = json.loads(dropbatch("new", name, "-o", "-").out)
    assert job["workflow"] == name
    facts = dropbatch("workflows", "show", name, "--json").json
    varied = set(job.get("matrix", {})) | ({"seed"} if "seeds" in job else set())
    varied |= {"prompt"} if "prompts" in job else set()
    known = {p["name"] for p in facts["parameters"]}
    assert set(job.get("overrides", {})) | varied == known


def test_a_new_job_is_a_file_that_check_accepts(dropbatch: Dropbatch) -> None:
    """With nothing else than this machine; a file that is there is not written over."""
    assert dropbatch("new", "gradient").code == 0
    [facts] = dropbatch("check", "gradient.json", "--json").json
    assert (facts["valid"], facts["tasks"]) == (True, 6)
    again = dropbatch("new", "gradient")
    assert again.code == 2
    assert "--force" in again.err
    assert dropbatch("new", "gradient", "--force").code == 0
