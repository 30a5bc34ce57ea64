"""Models that no loader of ours names: what a workflow declares, and what prompts call embeddings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from handlers.render.embeddings import named_embeddings
from processor.errors import ErrorKind
from tests.support.comfyui import checkout
from tests.support.rendering import Bench, image_graph
from tests.unit.render.test_planning import open_bench, refused, sampler_graph, with_models


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    (tmp_path / "comfy").mkdir()
    return with_models(open_bench(tmp_path, comfyui_dir=tmp_path / "comfy"))


def names(bench: Bench, **job: Any) -> list[str]:
    return [f"{model.folder}/{model.name}" for model in bench.plan(sampler_graph(), **job).models]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("embedding:one", ["one"]),
        ("a cat, embedding:one, (embedding:two:1.2), sub", ["one", "two"]),
        ("(x embedding:a/b.pt:0.8) [embedding:no", ["a/b.pt"]),
        ("embedding:v1:5 it\nembedding:two", ["v1:5", "two"]),
        ("myembedding:x embedding: y", []),
        ("embedding:e\\(1\\)", ["e(1)"]),
    ],
)
def test_names_as_comfyui_reads_them(text: str, found: list[str]) -> None:
    assert named_embeddings({"6": {"class_type": "T", "inputs": {"text": text, "n": 1}}}) == found


def test_embeddings_come_with_the_models(bench: Bench) -> None:
    """In whichever form they lie there; the order of tasks is left alone."""
    with_models(bench, "embeddings/easy.pt", "embeddings/bad.safetensors", "embeddings/bad.pt")
    found = names(bench, prompts=["embedding:easy, cat", "dog", "(embedding:bad:1.1)"])
    assert found[2:] == ["embeddings/easy.pt", "embeddings/bad.safetensors"]


def test_an_embedding_that_is_nowhere_is_a_warning(bench: Bench) -> None:
    plan = bench.plan(sampler_graph(), prompts=["embedding:nope", "embedding:../../x"])
    assert [line for line in plan.warnings if "nope" in line]
    assert not [model for model in plan.models if model.folder == "embeddings"]


def power_loader(*rows: dict[str, Any]) -> dict[str, Any]:
    """rgthree's Power Lora Loader, as it is exported."""
    inputs = {f"lora_{number}": row for number, row in enumerate(rows, 1)}
    header = {"PowerLoraLoaderHeaderWidget": {"type": "PowerLoraLoaderHeaderWidget"}}
    return image_graph() | {
        "7": {"class_type": "Power Lora Loader (rgthree)", "inputs": header | inputs | {"+ Add Lora": ""}}
    }


def row(lora: str, *, on: bool = True) -> dict[str, Any]:
    return {"on": on, "lora": lora, "strength": 1}


def test_rows_of_loras_are_brought(bench: Bench) -> None:
    """Those that are on, as the engine spells them: what the node does not find it leaves out."""
    with_models(bench, "loras/SDXL/b.safetensors")
    graph = power_loader(
        row("style.safetensors"), row("nope.safetensors", on=False), row("SDXL\\b.safetensors"), row("None")
    )
    plan = bench.plan(graph)
    assert [model.name for model in plan.models] == ["style.safetensors", "SDXL/b.safetensors"]
    assert plan.shared["workflow"]["7"]["inputs"]["lora_3"] == row("SDXL/b.safetensors")


def test_a_row_whose_lora_is_nowhere(bench: Bench) -> None:
    error = refused(bench, power_loader(row("stlye.safetensors")))
    assert error.kind is ErrorKind.MISSING_MODEL
    assert "7 Power Lora Loader (rgthree): lora_1 'stlye.safetensors'" in error.what
    assert "style.safetensors" in (error.mend or "")


def declaring(*names: str) -> dict[str, Any]:
    graph = image_graph()
    graph["4"] = {"class_type": "Odd", "inputs": {"image": ["1", 0], "file": names[0]}}
    return {"graph": graph, "models": [{"folder": "loras", "name": name} for name in names]}


def test_a_declared_model_that_is_nowhere_is_refused(bench: Bench) -> None:
    error = refused(bench, declaring("no.safetensors"))
    assert (error.kind, error.where) == (ErrorKind.MISSING_MODEL, "models")


def test_what_is_declared_and_embedded_is_brought_before_the_task(tmp_path: Path) -> None:
    """Though no loader that we know names it."""
    bench = open_bench(tmp_path, comfyui_dir=checkout(tmp_path))
    with_models(bench, "loras/mine.safetensors", "embeddings/easy.pt", "embeddings/other.pt")
    workflow = declaring("mine.safetensors")
    workflow["graph"]["4"] = {"class_type": "Stamp", "inputs": {"image": ["1", 0], "word": "a"}}
    workflow["graph"]["1"]["_meta"] = {"title": "x"}
    workflow["graph"]["3"]["inputs"]["filename_prefix"] = "x embedding:easy"
    plan = bench.plan(workflow, matrix={"3.filename_prefix": ["embedding:easy", "embedding:other"]})
    bench.run_task(plan)
    bench.handler.close()
    lies = {path.name for path in bench.settings.models_dir.glob("[!.]*/*")}
    assert lies == {"mine.safetensors", "easy.pt"}


def test_a_folder_of_custom_nodes_is_told_to_the_engine_that_runs(tmp_path: Path) -> None:
    """By starting another, once: ComfyUI reads which folders there are when it starts."""
    bench = with_models(open_bench(tmp_path, comfyui_dir=checkout(tmp_path)), "ipadapter/ip.safetensors")
    bench.handler.warm()
    workflow = {"graph": image_graph(), "models": [{"folder": "ipadapter", "name": "ip.safetensors"}]}
    pids = [bench.server_pid()]
    for _ in range(2):
        bench.run_task(bench.plan(workflow))
        pids.append(bench.server_pid())
    bench.handler.close()
    assert pids[0] != pids[1] == pids[2]


@pytest.mark.parametrize("folder", ["custom_nodes", ".dropbatch"])
def test_what_is_no_folder_of_models_is_refused(bench: Bench, folder: str) -> None:
    """Though something lies there: ComfyUI would run it."""
    with_models(bench, f"{folder}/x.py")
    error = refused(bench, {"graph": image_graph(), "models": [{"folder": folder, "name": "x.py"}]})
    assert (error.kind, error.where) == (ErrorKind.REFUSED, "models")


class TestKnownLists:
    """Where a schema lists what a server has: not what is yet to be brought, nor what a custom node takes."""

    @pytest.fixture
    def listing(self, tmp_path: Path) -> Bench:
        (tmp_path / "comfy").mkdir()
        info: dict[str, Any] = {
            "VAELoader": {"input": {"required": {"vae_name": [["taesd"]]}}, "output": ["VAE"]},
            "Keep": {
                "input": {"required": {"vae": ["VAE"], "file": [["a.bin"]]}},
                "output": [],
                "output_node": True,
            },
        }
        info["Lenient"] = {**info["Keep"], "python_module": "custom_nodes.lenient"}
        (tmp_path / "info.json").write_text(json.dumps(info))
        bench = open_bench(tmp_path, comfyui_dir=tmp_path / "comfy", object_info=tmp_path / "info.json")
        return with_models(bench, "vae/v.safetensors", "loras/mine.bin")

    def graph(self, *, save: str = "Keep", file: str = "a.bin") -> dict[str, Any]:
        return {
            "1": {"class_type": "VAELoader", "inputs": {"vae_name": "taesd"}},
            "2": {"class_type": save, "inputs": {"vae": ["1", 0], "file": file}},
        }

    @pytest.mark.parametrize("order", [("taesd", "v.safetensors"), ("v.safetensors", "taesd")])
    def test_a_matrix_may_begin_with_what_is_no_file(self, listing: Bench, order: tuple[str, str]) -> None:
        """The first task's value does not say what the others name."""
        plan = listing.plan(self.graph(), matrix={"1.vae_name": list(order)})
        assert [model.name for model in plan.models] == ["v.safetensors"]

    def test_a_declared_model_need_not_be_listed(self, listing: Bench) -> None:
        graph = self.graph(file="mine.bin")
        assert "is not an allowed value" in refused(listing, graph).what
        assert listing.plan({"graph": graph, "models": [{"folder": "loras", "name": "mine.bin"}]}).tasks

    def test_a_custom_node_has_the_word(self, listing: Bench) -> None:
        """By a `VALIDATE_INPUTS` of its own it may take what it does not list."""
        plan = listing.plan(self.graph(save="Lenient", file="any.bin"))
        assert [line for line in plan.warnings if "is not an allowed value" in line]
