"""`check`: what a drop would do, said beforehand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.pictures import captioned
from tests.unit.cli.conftest import GRAPH, Dropbatch

JobFile = Callable[..., Path]


def test_a_good_job_tells_tasks_and_nodes(dropbatch: Dropbatch, job_file: JobFile) -> None:
    """No bucket is configured, and none is needed."""
    path = job_file(seeds=[1, 2, 3])
    result = dropbatch("check", path, "--json")
    assert result.code == 0
    [facts] = result.json
    assert (facts["valid"], facts["tasks"], facts["nodes"]) == (True, 3, {"SaveImage": 1})
    told = dropbatch("check", path).out
    assert "3 tasks" in told
    assert "shade 2" in told


def test_a_bad_one_tells_why_and_the_others_are_checked_all_the_same(
    dropbatch: Dropbatch, job_file: JobFile
) -> None:
    """Exit code 1 if any is invalid."""
    result = dropbatch("check", job_file("bad.json", prioriy=3), job_file("good.json"), "--json")
    assert result.code == 1
    bad, good = result.json
    assert "Did you mean 'priority'?" in bad["error"]["what"]
    assert good["valid"]


def test_nothing_is_written_beside_the_file(dropbatch: Dropbatch, job_file: JobFile, tmp_path: Path) -> None:
    """A check leaves no trace."""
    path = job_file()
    before = {item for item in tmp_path.rglob("*") if "work" not in item.parts}
    dropbatch("check", path)
    assert {item for item in tmp_path.rglob("*") if "work" not in item.parts} == before


def test_a_dataset_folder_is_checked_as_an_ingest_would(
    dropbatch: Dropbatch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counts, warnings, and what would be in the way of a training."""
    monkeypatch.setenv("DROPBATCH_HANDLERS", '{"ingest": "handlers.ingest:IngestHandler"}')
    folder = tmp_path / "cat"
    folder.mkdir()
    for name, data in captioned(3, word="cat").items():
        (folder / name).write_bytes(data)
    (folder / "002.txt").unlink()
    [facts] = dropbatch("check", folder, "--json").json
    assert (facts["pictures"], facts["captions"]) == (3, 2)
    assert any(warning.startswith("002.png: has no caption") for warning in facts["warnings"])
    (folder / "002.jpg").write_bytes(b"x")
    [facts] = dropbatch("check", folder, "--json").json
    assert not facts["valid"]
    assert any(detail.startswith("002.jpg: is no picture") for detail in facts["error"]["details"])


def test_a_schema_validates_what_the_models_take(dropbatch: Dropbatch) -> None:
    """Editors use it; a bare graph fits, the machine's own fields don't."""
    jsonschema = pytest.importorskip("jsonschema")
    schema = dropbatch("schema").json
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    assert validator.is_valid(GRAPH)
    assert validator.is_valid({"workflow": GRAPH, "seeds": {"random": 20}, "overrides": {"6.text": "x"}})
    assert validator.is_valid({"dataset": "cat", "trigger_word": "ohwx"})
    assert not validator.is_valid({"workflow": GRAPH, "matrx": {}})
    assert not validator.is_valid({"workflow": GRAPH, "origin": {"parent": "p", "name": "n"}})


SDXL = {
    "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sdxl.safetensors"}},
    "2": {"class_type": "EmptyLatentImage", "inputs": {"width": 1024, "height": 1024, "batch_size": 1}},
    "3": {"class_type": "VAEDecode", "inputs": {"samples": ["2", 0], "vae": ["1", 2]}},
    "4": {"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": "x"}},
}


@pytest.fixture
def rendering(dropbatch: Dropbatch, monkeypatch: pytest.MonkeyPatch) -> Dropbatch:
    """With the real render handler, and no ComfyUI configured."""
    monkeypatch.setenv("DROPBATCH_HANDLERS", json.dumps({"render": "handlers.render.handler:RenderHandler"}))
    return dropbatch


def test_a_graph_for_another_machine_is_told_of(rendering: Dropbatch, job_file: JobFile) -> None:
    """The built-in engine lacks its nodes and the model lies in a bucket: no reason to refuse it."""
    [facts] = rendering("check", job_file(workflow=SDXL), "--json", "--cost").json
    assert facts["valid"]
    assert facts["models"] == ["checkpoints/sdxl.safetensors"]
    assert "comfy_models/checkpoints/sdxl.safetensors is not on this machine" in facts["warnings"][0]
    assert "it needs a ComfyUI" in facts["warnings"][1]
    assert facts["cost"]


def test_a_training_is_checked_without_the_bucket_that_has_its_dataset(
    dropbatch: Dropbatch, tmp_path: Path, bucket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but the dataset, and that is said; with a bucket, a dataset that it lacks is an error."""
    monkeypatch.setenv("DROPBATCH_HANDLERS", json.dumps({"train": "handlers.train:TrainHandler"}))
    path = tmp_path / "zoe.json"
    for dataset in ("zoe", "zoe/0123456789abcdef"):
        path.write_text(json.dumps({"dataset": dataset, "preset": "sdxl", "sweep": {"rank": [8, 16]}}))
        [facts] = dropbatch("check", path, "--json").json
        assert facts["valid"], facts
        assert facts["tasks"] == 2
        assert f"Dataset '{dataset}' is looked for in the bucket only with --bucket" in facts["warnings"]
        [facts] = dropbatch("check", path, "--json", "--bucket", bucket).json
        assert not facts["valid"]
        assert facts["error"]["where"] == "dataset"
    path.write_text(json.dumps({"dataset": "zoe", "settings": {"stepz": 3}}))
    [facts] = dropbatch("check", path, "--json").json
    assert "Did you mean 'steps'?" in facts["error"]["what"]


def test_a_buckets_machine_says_which_nodes_it_has(
    rendering: Dropbatch, job_file: JobFile, bucket: Path
) -> None:
    """`state/object_info.json` is what a deploy leaves of its ComfyUI."""
    known: dict[str, Any] = {str(node["class_type"]): {"input": {}, "output": []} for node in SDXL.values()}
    del known["VAEDecode"]
    (bucket / "state").mkdir()
    (bucket / "state" / "object_info.json").write_text(json.dumps(known))
    [facts] = rendering("check", job_file(workflow=SDXL), "--json", "--bucket", bucket).json
    assert "node 3 VAEDecode: the engine has no node" in facts["error"]["what"]
