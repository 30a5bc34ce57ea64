"""Refusals: what real servers answered to the same graphs (0.3.64; see also the recordings)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from handlers.engine.files import Folders
from handlers.engine.limits import Limits
from handlers.engine.nodes import NODES
from handlers.engine.validation import MalformedPrompt, Verdict, validate_prompt
from tests.unit.engine.serving import empty, node, save


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return Folders(input=tmp_path, output=tmp_path, temp=tmp_path)


def check(folders: Folders, prompt: Any, limits: Limits | None = None) -> Verdict:
    return validate_prompt(prompt, NODES, folders, limits or Limits())


def only_error(verdict: Verdict, node_id: str) -> dict[str, Any]:
    assert list(verdict.node_errors) == [node_id]
    (error,) = verdict.node_errors[node_id]["errors"]
    assert isinstance(error, dict)
    return error


def test_constants_are_converted_in_place(folders: Folders) -> None:
    """Numbers as text, floats for integers: the graph that runs has the declared types."""
    prompt = {"1": node("EmptyImage", width="16", height=16.7, batch_size=True, color="7"), "3": save("1")}
    assert check(folders, prompt).outputs == ["3"]
    assert prompt["1"]["inputs"] == {"width": 16, "height": 16, "batch_size": 1, "color": 7}


def test_what_cannot_be_converted(folders: Folders) -> None:
    """Named with the value and Python's reason."""
    error = only_error(
        check(folders, {"1": {**empty(), "inputs": {**empty()["inputs"], "width": "abc"}}, "3": save("1")}),
        "1",
    )
    assert error["type"] == "invalid_input_type"
    assert error["details"] == "width, abc, invalid literal for int() with base 10: 'abc'"
    assert error["extra_info"]["received_value"] == "abc"


def test_value_not_in_list(folders: Folders) -> None:
    """A V1 choice; the choices of a V3 node are not validated, and fail when it runs."""
    scale = {"image": ["1", 0], "width": 3, "height": 3, "crop": "disabled"}
    prompt = {"1": empty(), "2": node("ImageScale", upscale_method="x", **scale), "3": save("2")}
    error = only_error(check(folders, prompt), "2")
    choices = ["nearest-exact", "bilinear", "area", "bicubic", "lanczos"]
    assert error["type"] == "value_not_in_list"
    assert error["details"] == f"upscale_method: 'x' not in {choices}"
    assert error["extra_info"]["input_config"] == [choices, {}]
    blend = node("ImageBlend", image1=["1", 0], image2=["1", 0], blend_factor=0.5, blend_mode="x")
    assert check(folders, {"1": empty(), "2": blend, "3": save("2")}).error is None


def test_links_of_the_wrong_shape_or_type(folders: Folders) -> None:
    """Each with the type that clients know."""
    three = {**empty()["inputs"], "width": [1, 2, 3]}
    assert only_error(check(folders, {"1": node("EmptyImage", **three), "3": save("1")}), "1")["type"] == (
        "bad_linked_input"
    )
    mask = node("SolidMask", value=1.0, width=4, height=4)
    verdict = check(folders, {"1": mask, "3": save("1")})
    assert only_error(verdict, "3")["details"] == "images, received_type(MASK) mismatch input_type(IMAGE)"
    assert verdict.error is not None
    assert verdict.error["details"].startswith("Return type mismatch between linked nodes: images")


@pytest.mark.parametrize(
    ("link", "details", "kind"),
    [
        ([1, 0], "1", "KeyError"),
        (["1", 5], "tuple index out of range", "IndexError"),
        (["1", "0"], "tuple indices must be integers or slices, not str", "TypeError"),
    ],
)
def test_links_that_python_stumbles_over(folders: Folders, link: list[Any], details: str, kind: str) -> None:
    """ComfyUI reports the exception itself, and so does the engine."""
    picture = node("SaveImage", images=link, filename_prefix="x")
    error = only_error(check(folders, {"1": empty(), "3": picture}), "3")
    assert error["type"] == "exception_during_validation"
    assert error["details"] == details
    assert error["extra_info"]["exception_type"] == kind


def test_a_cycle_is_refused_without_reasons(folders: Folders) -> None:
    """As ComfyUI refuses it, after running out of recursion."""
    prompt = {
        "1": node("ImageInvert", image=["2", 0]),
        "2": node("ImageInvert", image=["1", 0]),
        "3": save("1"),
    }
    verdict = check(folders, prompt)
    assert verdict.error is not None
    assert verdict.error["type"] == "prompt_outputs_failed_validation"
    assert verdict.node_errors == {}


def test_one_bad_output_of_two(folders: Folders) -> None:
    """The good one runs; the bad one is reported under the node at fault."""
    prompt = {
        "1": empty(),
        "3": save("1"),
        "8": node("LoadImage", image="absent.png"),
        "9": save("8"),
    }
    verdict = check(folders, prompt)
    assert verdict.error is None
    assert verdict.outputs == ["3"]
    assert verdict.node_errors["8"]["dependent_outputs"] == ["9"]
    only = validate_prompt(prompt, NODES, folders, Limits(), targets=["9"])
    assert only.error is not None


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "../../etc/passwd [output]", "a\0b"])
def test_input_files_outside_their_folder_do_not_exist(folders: Folders, tmp_path: Path, name: str) -> None:
    """Even where there is one; ComfyUI reads it."""
    (tmp_path.parent / "secret.png").touch()
    verdict = check(folders, {"1": node("LoadImage", image=name), "3": save("1")})
    assert only_error(verdict, "1")["details"] == f"image - Invalid image file: {name}"


@pytest.mark.parametrize(
    "prompt", [{"last_node_id": 1, "nodes": []}, {"1": "class_type"}, {"1": {"class_type": ["a"]}}]
)
def test_no_graph_at_all(folders: Folders, prompt: Any) -> None:
    """The server answers a bare 500, as ComfyUI does."""
    with pytest.raises(MalformedPrompt):
        check(folders, prompt)


@pytest.mark.parametrize("wrong", [{}, {"inputs": {}}, []])
def test_missing_class(folders: Folders, wrong: Any) -> None:
    """Named by the node's id."""
    error = check(folders, {"7": wrong}).error
    assert error is not None
    assert (error["type"], error["details"]) == ("invalid_prompt", "Node ID '#7'")


def test_a_long_chain_is_valid_and_a_longer_one_refused(folders: Folders) -> None:
    """Up to the limit of nodes, which the error names."""
    chain: dict[str, Any] = {str(i): node("ImageInvert", image=[str(i - 1), 0]) for i in range(1, 200)}
    prompt = {"0": empty(), **chain, "out": save("199")}
    assert check(folders, prompt).error is None
    error = check(folders, prompt, Limits(nodes=100)).error
    assert error is not None
    assert "more than 100 nodes" in error["message"]
