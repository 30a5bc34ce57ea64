"""What a graph may do: nodes that run code, read files or call out, and the ways around a refusal."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from handlers.render import RenderHandler
from handlers.render.graph import unwrapped
from handlers.render.models import ModelFinder
from handlers.render.policy import check_nodes, check_paths, why_denied
from processor.clock import SystemClock
from processor.errors import ErrorKind, JobInvalid
from processor.store.memory import MemoryStore
from tests.acceptance.drops import graph
from tests.hostile.conftest import Judge
from tests.support.rendering import builtin_settings

_RECORDED = Path(__file__, "../../../../shared/recordings/comfyui-0.3.64/object_info.names.json").resolve()


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


@pytest.mark.parametrize(
    ("class_type", "why"),
    [
        ("ExecutePythonCode", "runs code"),
        ("PYTHON_script", "runs code"),
        ("Evaluate Strings", "runs code"),
        ("JavaScriptRunner", "runs code"),
        ("RunCommand", "runs code"),
        ("ShellNode", "runs code"),
        ("AnyNodeLocal", "runs code"),
        ("IDENode", "runs code"),
        ("LoadImageFromPath", "reads"),
        ("VHS_LoadVideoPath", "reads"),
        ("VHS_LoadImagesPath", "reads"),
        ("Load Image (Path)", "reads"),
        ("LoadImagesFromFolderKJ", "reads"),
        ("LoadPromptsFromDir //Inspire", "reads"),
        ("LoadPromptsFromFile //Inspire", "reads"),
        ("Load Text File", "reads"),
        ("LoadText|pysssss", "reads"),
        ("Save Text File", "writes"),
        ("SaveText|pysssss", "writes"),
        ("Image Save", "writes"),
        ("LoadImageFromUrl", "calls out"),
        ("Load Image From URL", "calls out"),
        ("HTTPRequest", "calls out"),
        ("PostRequestNode", "calls out"),
        ("DiscordWebhook", "calls out"),
        ("DownloadAndLoadFlorence2Model", "calls out"),
        ("OpenAIChat", "calls out"),
        ("OllamaGenerate", "calls out"),
        ("SendEmail", "calls out"),
    ],
)
def test_denied_by_default_and_the_setting_is_named(class_type: str, why: str) -> None:
    """Whatever its case; allowed by its own name only; an exact denial beats an allowance."""
    with pytest.raises(
        JobInvalid, match=f"allow_nodes: .*{class_type.split('|', maxsplit=1)[0].split('(', maxsplit=1)[0]}"
    ) as caught:
        check_nodes({"1": node(class_type)}, allow=(), deny=())
    assert caught.value.kind is ErrorKind.REFUSED
    assert why in caught.value.what
    assert why_denied(class_type.swapcase(), allow=(), deny=())
    check_nodes({"1": node(class_type)}, allow={class_type}, deny=())
    assert why_denied(class_type, allow={"*"}, deny={class_type}) == "is denied by deny_nodes"


def test_api_nodes_are_refused_by_their_mark() -> None:
    schema = {"IdeogramV3": {"api_node": True}}
    assert why_denied("IdeogramV3", allow=(), deny=(), schema=schema) == "calls a paid service"


def test_comfyuis_own_nodes_stay_usable() -> None:
    """Of the 365 of a plain ComfyUI, three are refused."""
    if not _RECORDED.is_file():
        pytest.skip("the recordings are not here")
    names = json.loads(_RECORDED.read_text("utf-8"))
    denied = [name for name in names if why_denied(name, allow=(), deny=())]
    assert denied == ["LoadImageSetFromFolderNode", "LoadImageTextSetFromFolderNode", "TrainLoraNode"]


OUTSIDE = [
    "/etc/passwd",
    "../../x",
    "~/.ssh/id_rsa",
    "C:\\x",
    "..\\..\\x",
    "file:///etc/passwd",
    "\\\\host\\x",
    "a\0",
]


@pytest.mark.parametrize("outside", OUTSIDE)
@pytest.mark.parametrize(
    "name", ["path", "directory", "output_folder", "file", "image", "ckpt_name", "video"]
)
def test_paths_stay_inside(name: str, outside: str) -> None:
    """Of any node, as a plain value, in the server's wrapper, and within a list."""
    for value in (
        outside,
        {"__value__": outside},
        {"__value__": [outside]},
        ["x", outside],
        {"a": [outside]},
    ):
        with pytest.raises(JobInvalid, match="allow_nodes: Custom") as caught:
            check_paths({"1": node("Custom", **{name: value})}, (), allow=())
        assert caught.value.kind is ErrorKind.REFUSED
    check_paths({"1": node("Custom", **{name: outside})}, (), allow={"Custom"})


@pytest.mark.parametrize("outside", OUTSIDE)
def test_a_path_does_not_come_over_a_link(outside: str) -> None:
    """However far away the text stands."""
    nodes = {
        "1": node("Custom", path=["2", 0]),
        "2": node("StringConcatenate", string_a=["3", 0], string_b="x"),
        "3": node("PrimitiveString", value=outside),
    }
    with pytest.raises(JobInvalid, match=r"leads out|holds an address"):
        check_paths(nodes, (), allow=())


def test_prompts_are_no_paths() -> None:
    """What feeds a picture may begin with a slash."""
    nodes = {
        "1": node("SaveImage", images=["2", 0], filename_prefix="../../x"),
        "2": node("KSampler", model=["3", 0], positive=["3", 0]),
        "3": node("CLIPTextEncode", text="/imagine a cat .. ~ //", title="/"),
    }
    check_paths(nodes, (), allow=())


@pytest.mark.parametrize("value", ["http://169.254.169.254/", "HTTPS://x", "//x", "ftp://x", " http://x"])
def test_addresses_are_not_called(value: str) -> None:
    nodes = {"1": node("Custom", api_url=["2", 0]), "2": node("PrimitiveString", value=value)}
    with pytest.raises(JobInvalid, match="holds an address"):
        check_paths(nodes, (), allow=())
    with pytest.raises(JobInvalid, match="holds an address"):
        check_paths({"1": node("Custom", server=value)}, (), allow=())


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        ({"__value__": "x"}, "x"),
        ({"__value__": {"__value__": {"__value__": "x"}}}, "x"),
        ({"__value__": ["a", 0]}, {"__value__": ["a", 0]}),
        ({"__value__": {"__value__": ["a", 0]}}, {"__value__": ["a", 0]}),
        (["a", 0], ["a", 0]),
        ({"x": 1}, {"x": 1}),
    ],
)
def test_the_servers_wrapper_is_taken_off(value: Any, plain: Any) -> None:
    """A list stays in it: outside it would be a link."""
    assert unwrapped(value) == plain


def _loading(value: Any) -> bytes:
    save = node("SaveImage", images=["1", 0], filename_prefix="x")
    return json.dumps({"workflow": {"1": node("LoadImage", image=value), "3": save}}).encode()


@pytest.mark.parametrize(
    "value",
    ["../../etc/passwd", "/etc/passwd", "x.png [output]", "x.png [temp]", "a//b.png", "a\nb.png", "x" * 5000],
)
def test_input_names_that_climb(judge: Judge, value: str) -> None:
    """As a value and in the server's wrapper; in the graph and as an override."""
    for given in (value, {"__value__": value}):
        assert isinstance(judge(_loading(given)), JobInvalid)
        changed = json.loads(_loading("a.png")) | {"overrides": {"1.image": given}}
        assert isinstance(judge(json.dumps(changed).encode()), JobInvalid)


@pytest.mark.parametrize(
    "name",
    ["../x", "/x", "a//b", "./a", "a/", "a\0", "a\nb", "C:\\x", "a\\..\\..\\b", "~/x", "x" * 3000, "x" * 400],
)
def test_model_names_that_climb(store: MemoryStore, tmp_path: Path, name: str) -> None:
    settings = replace(builtin_settings(tmp_path), comfyui_dir=tmp_path)
    finder = ModelFinder(store, settings, None)
    with pytest.raises(JobInvalid) as caught:
        finder.find({"1": node("LoraLoader", lora_name=name)})
    assert caught.value.kind is ErrorKind.REFUSED


def test_a_graph_can_be_refused_whatever_plans_it(tmp_path: Path, judge: Judge) -> None:
    """The handler asks the policy before anything else is said about a graph."""
    assert isinstance(RenderHandler(builtin_settings(tmp_path), SystemClock()), RenderHandler)
    verdict = judge(json.dumps(graph() | {"9": node("RunCommand", command="id")}).encode())
    assert isinstance(verdict, JobInvalid)
    assert "allow_nodes: RunCommand" in str(verdict)
