"""The order in which nodes run, and what counts as the same result."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handlers.engine.graph import (
    DependencyCycleError,
    NodeNotFoundError,
    RunOrder,
    is_link,
    links,
    signatures,
)
from handlers.engine.nodes import NODES
from tests.unit.engine.serving import empty, node, save


def order(prompt: dict[str, Any], outputs: list[str], cached: frozenset[str] = frozenset()) -> list[str]:
    run = RunOrder(prompt, outputs, NODES, lambda node_id: node_id in cached)
    ran = []
    while run:
        ran.append(run.next())
        run.done(ran[-1])
    return ran


def signed(prompt: dict[str, Any]) -> dict[str, str]:
    return signatures(prompt, lambda _: "")


def test_links() -> None:
    """As ComfyUI recognises them."""
    assert is_link(["1", 0])
    assert is_link(["1", 0.0])
    assert not any(map(is_link, ([1, 0], ["1"], ["1", "0"], ["1", 0, 0], "1", None)))


def test_outputs_run_as_soon_as_they_can() -> None:
    """A preview does not wait for the rest of the graph."""
    prompt = {
        "1": empty(),
        "2": node("ImageInvert", image=["1", 0]),
        "3": node("ImageInvert", image=["2", 0]),
        "5": save("3"),
        "6": node("PreviewImage", images=["1", 0]),
    }
    assert order(prompt, ["5", "6"]) == ["1", "6", "2", "3", "5"]


def test_what_is_cached_does_not_run_but_its_output_reports() -> None:
    """Nor does what only it needs."""
    prompt = {"1": empty(), "2": node("ImageInvert", image=["1", 0]), "3": save("2")}
    assert order(prompt, ["3"], frozenset({"1", "2"})) == ["3"]
    assert order(prompt, ["3"], frozenset({"1", "2", "3"})) == ["3"]


def test_hidden_bad_links_are_errors() -> None:
    """In inputs that no declaration names, so that validation does not see them."""
    with pytest.raises(NodeNotFoundError, match="Node 7 not found") as absent:
        order({"1": {**empty(), "inputs": {"x": ["7", 0]}}, "3": save("1")}, ["3"])
    assert absent.value.node_id == "1"
    with pytest.raises(DependencyCycleError):
        order({"1": {**empty(), "inputs": {"x": ["3", 0]}}, "3": save("1")}, ["3"])


@given(st.lists(st.lists(st.integers(0, 30), max_size=3), min_size=1, max_size=30))
def test_sources_run_before_their_readers(shape: list[list[int]]) -> None:
    """In any graph without cycles, all that is needed runs once."""
    prompt: dict[str, Any] = {
        str(i): node("ImageBatch", **{f"in{k}": [str(s % i), 0] for k, s in enumerate(sources) if i})
        for i, sources in enumerate(shape)
    }
    prompt["out"] = save(str(len(shape) - 1))
    ran = order(prompt, ["out"])
    assert len(ran) == len(set(ran))
    for place, node_id in enumerate(ran):
        assert set(links(prompt[node_id])) <= set(ran[:place])
    assert signed(prompt).keys() == prompt.keys()


def test_signature_covers_inputs_and_ancestors_but_not_names() -> None:
    """Renumbered nodes are the same result; another colour upstream is not."""
    first = signed({"1": empty(5), "2": node("ImageInvert", image=["1", 0])})
    renamed = signed({"a": empty(5), "b": node("ImageInvert", image=["a", 0])})
    other = signed({"1": empty(6), "2": node("ImageInvert", image=["1", 0])})
    assert first["2"] == renamed["b"]
    assert first["2"] != other["2"]


def test_a_deep_chain_and_a_cycle_have_signatures() -> None:
    """Neither recursion nor an endless loop."""
    chain = {str(i): node("ImageInvert", image=[str(i - 1), 0]) for i in range(1, 5000)}
    assert len(set(signed({"0": empty(), **chain}).values())) == 5000
    looped = {"1": node("ImageInvert", image=["2", 0]), "2": node("ImageInvert", image=["1", 0])}
    assert len(signed(looped)) == 2
