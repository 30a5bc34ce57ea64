"""The ready workflows: documented, valid on a real ComfyUI's schema, and the model-free ones rendered."""

from __future__ import annotations

import io
import json
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from handlers.render import RenderSettings
from handlers.render.catalog import MODEL_INPUTS
from handlers.render.graph import named_models
from handlers.render.workflow import Workflow, load_ready, ready_names
from processor.errors import JobInvalid
from processor.expand import Row, cells
from processor.models import RenderJob
from processor.records import Plan
from tests.support.rendering import Bench, builtin_settings
from tests.support.scripted import RECORDINGS

FIXTURE = Path(__file__).parents[1] / "fixtures/comfyui/object_info_workflows.json"
"""What a ComfyUI 0.3.64 answered for the classes that these workflows use; no model installed."""
NAMES = ready_names()
MODEL_FREE = [
    name
    for name in NAMES
    if not named_models(
        json.loads((resources.files("workflows") / f"render/{name}.json").read_text())["graph"]
    )
]


def ready(name: str) -> Workflow:
    workflow = load_ready(name)
    assert workflow is not None
    return workflow


def example_job(name: str) -> dict[str, Any]:
    return {"workflow": name, **ready(name).example}


def open_bench(root: Path, object_info: Path) -> Bench:
    """Plans for a ComfyUI that is not started, whose bucket has every model that is asked for."""
    (root / "comfy").mkdir()
    settings = RenderSettings(
        work_dir=root / "work",
        models_dir=root / "models",
        comfyui_dir=root / "comfy",
        object_info=object_info,
    )
    return Bench.open(settings, root)


def put_what_it_needs(bench: Bench, name: str) -> None:
    graph = {**ready(name).graph}
    example = ready(name).example
    wanted = {(model.folders[0], model.name) for model in named_models(graph)}
    for folder, model in wanted:
        bench.store.put(f"comfy_models/{folder}/{model}", b"weights")
    for place, key in enumerate(example.get("inputs", {}).values()):
        bench.store.put(key, photograph(place))


def photograph(place: int = 0) -> bytes:
    """A small picture with light, dark and colour in it."""
    image = Image.linear_gradient("L").resize((96, 64)).convert("RGB")
    image.paste((200, 80 + 40 * place, 40), (10, 10, 50, 40))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def plan(bench: Bench, name: str, **changes: Any) -> Plan:
    job = {**example_job(name), **changes}
    return bench.plan(job.pop("workflow"), **job)


def test_everything_that_was_promised_is_there() -> None:
    """Issue by issue: what people start from, and what a finished training asks for."""
    promised = {"txt2img-sd15", "txt2img-sdxl", "txt2img-flux", "img2img-sd15", "img2img-sdxl", "upscale"}
    promised |= {"lora-grid-sd15", "lora-grid-sdxl", "lora-grid-flux", "txt2video-wan21"}
    assert promised <= set(NAMES)
    assert {"poster", "glow", "collage", "gradient"} <= set(MODEL_FREE)


@pytest.mark.parametrize("name", NAMES)
def test_a_workflow_explains_itself(name: str) -> None:
    """Title, description, and of each parameter what it does; seconds, and a GPU where models are."""
    workflow = ready(name)
    assert workflow.title
    assert workflow.description.endswith(".")
    assert workflow.typical_seconds
    assert (workflow.gpu is None) == (name in MODEL_FREE)
    assert all(parameter.description for parameter in workflow.parameters.values())
    RenderJob.model_validate({"kind": "render", **example_job(name)})


@pytest.mark.parametrize("name", NAMES)
def test_defaults_are_what_the_graph_holds(name: str) -> None:
    """Else the graph would show one thing in an editor and do another here."""
    workflow = ready(name)
    for label, parameter in workflow.parameters.items():
        for target in parameter.targets:
            node, _, field = target.partition(".")
            held = workflow.graph[node]["inputs"][field]
            if parameter.default is not None and label != "prompt":
                assert parameter.coerce(parameter.default, where=label) == held, label
            assert parameter.required == (parameter.default is None), label


@pytest.mark.parametrize("name", NAMES)
def test_it_is_valid_on_a_real_comfyui(name: str, tmp_path: Path) -> None:
    """The whole preflight on a recorded schema, with the example's axes; one task a combination."""
    bench = open_bench(tmp_path, FIXTURE)
    put_what_it_needs(bench, name)
    job = RenderJob.model_validate({"kind": "render", **example_job(name)})
    rows: list[Row] | None = [{"prompt": text} for text in job.prompts or []] or None
    made = plan(bench, name)
    assert len(made.tasks) == cells(job.matrix, rows, job.seeds)
    assert made.gpu == ready(name).gpu
    assert {f"{m.folder}/{m.name}" for m in made.models} == {
        f"{m.folders[0]}/{m.name}" for m in named_models(ready(name).graph)
    }


@pytest.fixture(name="subset")
def _subset() -> dict[str, Any]:
    if not RECORDINGS.is_dir():
        pytest.skip("../shared/recordings is absent")
    recorded: dict[str, Any] = json.loads((RECORDINGS / "object_info.subset.json").read_text())
    return recorded


def test_our_fixture_agrees_with_the_recordings(subset: dict[str, Any]) -> None:
    """The same inputs, in the same order, of the same types, wherever both have a class."""
    fixture = json.loads(FIXTURE.read_text())
    shared = fixture.keys() & subset.keys()
    assert len(shared) >= 25
    for name in shared:
        for group in ("required", "optional"):
            ours, theirs = fixture[name]["input"].get(group, {}), subset[name]["input"].get(group, {})
            assert list(ours) == list(theirs), name
            for field in ours:
                if field not in MODEL_INPUTS.get(name, {}) and name != "LoadImage":
                    assert ours[field][0] == theirs[field][0], (name, field)


@pytest.mark.parametrize("name", MODEL_FREE)
def test_a_model_free_one_renders_anywhere(name: str, tmp_path: Path) -> None:
    """On the built-in engine, first and last combination; what is saved is a picture of its size."""
    bench = Bench.open(builtin_settings(tmp_path), tmp_path)
    put_what_it_needs(bench, name)
    made = plan(bench, name)
    try:
        for index in {0, len(made.tasks) - 1}:
            (file,) = bench.run_task(made, index).files
            with Image.open(file.path) as image:
                image.load()
                colours = image.convert("RGB").getcolors(2**24)
            assert colours is not None
            assert len(colours) > 3
    finally:
        bench.handler.close()


@pytest.mark.parametrize(
    ("name", "missing"), [("lora-grid-sd15", "lora"), ("img2img-sdxl", "image"), ("collage", "image1")]
)
def test_what_must_be_given_is_asked_for_by_name(name: str, missing: str, tmp_path: Path) -> None:
    """A placeholder in a graph is no default."""
    bench = open_bench(tmp_path, FIXTURE)
    put_what_it_needs(bench, name)
    with pytest.raises(JobInvalid, match=f"needs '{missing}'"):
        plan(bench, name, overrides={})


def test_a_required_parameter_may_come_from_an_axis_or_by_node(tmp_path: Path) -> None:
    """However the placeholder is replaced, it is replaced."""
    bench = open_bench(tmp_path, FIXTURE)
    put_what_it_needs(bench, "lora-grid-flux")
    for lora in ("a.safetensors", "b.safetensors"):
        bench.store.put(f"comfy_models/loras/{lora}", b"weights")
    axis = {"lora": ["a.safetensors", "b.safetensors"]}
    assert len(plan(bench, "lora-grid-flux", overrides={}, matrix=axis, seeds=None).tasks) == 2
    by_node = {"14": {"lora_name": "a.safetensors"}}
    assert len(plan(bench, "lora-grid-flux", overrides=by_node).tasks) == 12


@pytest.mark.parametrize(
    ("value", "number"), [("#d9532c", 0xD9532C), ("#FFFFFF", 0xFFFFFF), (0, 0), (0xFFFFFF, 0xFFFFFF)]
)
def test_colours_are_written_as_on_the_web(value: Any, number: int) -> None:
    assert ready("gradient").parameters["top"].coerce(value, where="top") == number


@pytest.mark.parametrize("value", ["red", "#fff", "#12345g", -1, 0x1000000, True, 1.5])
def test_other_spellings_of_colours_are_refused(value: Any) -> None:
    with pytest.raises(JobInvalid, match="a colour like"):
        ready("gradient").parameters["top"].coerce(value, where="top")
