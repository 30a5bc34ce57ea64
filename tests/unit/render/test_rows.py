"""What each task sets: one name for an input, wildcards by the seed that counts, numbers whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from handlers.render.graph import Target, target_of
from handlers.render.naming import Binder
from handlers.render.parameters import find_parameters
from processor.errors import JobInvalid
from processor.records import Plan
from tests.support.rendering import DROP_KEY, Bench
from tests.unit.render.test_planning import final, open_bench, sampler_graph, with_models

WILD = "{a|b|c|d} {e|f|g|h}"


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    (tmp_path / "comfy").mkdir()
    return with_models(open_bench(tmp_path, comfyui_dir=tmp_path / "comfy"))


def texts(plan: Plan) -> list[str]:
    return [final(plan, index)["6"]["inputs"]["text"] for index in range(len(plan.tasks))]


@pytest.mark.parametrize(
    ("job", "names"),
    [
        ({"matrix": {"3.seed": [1, 2]}, "seeds": [7, 8]}, ("3.seed", "seed")),
        ({"matrix": {"6.text": ["x", "y"]}, "prompts": ["p", "q"]}, ("6.text", "prompt")),
        ({"matrix": {"3.cfg": [1, 2], "cfg": [3, 4]}}, ("3.cfg", "cfg")),
        ({"matrix": {"include": [{"KSampler.cfg": 1, "3.cfg": 2}]}}, ("KSampler.cfg", "3.cfg")),
    ],
)
def test_two_names_for_one_input_are_refused(
    bench: Bench, job: dict[str, Any], names: tuple[str, str]
) -> None:
    """One would win, and the other would make tasks that are all the same."""
    with pytest.raises(JobInvalid) as caught:
        bench.plan(sampler_graph(), **job)
    assert all(repr(name) in caught.value.what for name in names)


def test_an_override_under_an_axis_is_its_default(bench: Bench) -> None:
    plan = bench.plan(sampler_graph(), overrides={"cfg": 3}, matrix={"3.cfg": [4, 5]})
    assert [final(plan, k)["3"]["inputs"]["cfg"] for k in (0, 1)] == [4, 5]


class TestWildcards:
    def test_any_seed_that_a_row_sets_draws_alike(self, bench: Bench) -> None:
        """By `seeds`, by an axis on the sampler, or by that axis' other name."""
        axes: list[dict[str, Any]] = [{"matrix": {name: [1, 2, 3]}} for name in ("3.seed", "seed")]
        by = [{"seeds": [1, 2, 3]}, *axes]
        drawn = [texts(bench.plan(sampler_graph(), overrides={"prompt": WILD}, **job)) for job in by]
        assert len(set(drawn[0])) > 1
        assert drawn[0] == drawn[1] == drawn[2]

    @pytest.mark.parametrize("overrides", [{"6.text": WILD}, {"6": {"text": WILD}}, {"prompt": WILD}])
    def test_any_name_of_the_prompt_is_settled(self, bench: Bench, overrides: dict[str, Any]) -> None:
        by_name = texts(bench.plan(sampler_graph(), prompts=[WILD], seeds=[1, 2, 3]))
        plan = bench.plan(sampler_graph(), overrides=overrides, seeds=[1, 2, 3])
        assert texts(plan) == by_name
        assert [next(v for v in task.params.values() if isinstance(v, str)) for task in plan.tasks] == by_name

    def test_an_axis_on_the_prompts_node_is_settled(self, bench: Bench) -> None:
        plan = bench.plan(sampler_graph(), matrix={"6.text": ["{a|b}"]}, seeds=[1, 2])
        assert set(texts(plan)) <= {"a", "b"}

    def test_a_graphs_own_braces_stay(self, bench: Bench) -> None:
        graph = sampler_graph()
        graph["6"]["inputs"]["text"] = "{a|b}"
        assert texts(bench.plan(graph, seeds=[1, 2])) == ["{a|b}"] * 2


@pytest.mark.parametrize("text", ["18446744073709551557", "9007199254740993", " 12 "])
def test_a_seeds_text_stays_whole(bench: Bench, text: str) -> None:
    """Also where no schema says that it is an integer: a float holds none beyond 2**53."""
    plan = bench.plan(sampler_graph(), overrides={"3.seed": text})
    assert final(plan)["3"]["inputs"]["seed"] == int(text)
    assert final(bench.plan(sampler_graph(), overrides={"3.cfg": "7.5"}))["3"]["inputs"]["cfg"] == 7.5


class TestIdsWithDots:
    def test_parameters_reach_them(self, bench: Bench) -> None:
        graph = json.loads(json.dumps(sampler_graph()).replace('"6"', '"6.1"'))
        plan = bench.plan(graph, prompts=["x"])
        assert final(plan)["6.1"]["inputs"]["text"] == "x"

    def test_declared_targets_reach_them(self, bench: Bench) -> None:
        graph = json.loads(json.dumps(sampler_graph()).replace('"6"', '"6.1"'))
        parameters = {"words": {"type": "string", "targets": ["6.1.text"], "required": True}}
        plan = bench.plan({"graph": graph, "parameters": parameters}, matrix={"words": ["y"]})
        assert final(plan)["6.1"]["inputs"]["text"] == "y"

    def test_the_reading_that_is_there_is_taken(self) -> None:
        graph = {"5": {"class_type": "A", "inputs": {"1.text": ""}}, "5.1": {"class_type": "B", "inputs": {}}}
        assert target_of(graph, "5.1.text") == Target("5", "1.text")
        assert target_of(graph, "5.1.more") == Target("5.1", "more")
        assert target_of(graph, "6.text") is None
        assert target_of(graph, "5.") is None


def test_a_chain_of_thousands_is_followed() -> None:
    """From the sampler to the text: no link is too deep for it."""
    graph, last = sampler_graph(), "6"
    for number in range(3000):
        links = {"conditioning_1": [last, 0], "conditioning_2": ["7", 0]}
        graph[last := f"c{number}"] = {"class_type": "ConditioningCombine", "inputs": links}
    graph["3"]["inputs"]["positive"] = [last, 0]
    assert find_parameters(graph)["prompt"].targets == ["6.text", "7.text"]
    assert Binder(graph).targets("prompt")


class TestFiles:
    def graph(self) -> dict[str, Any]:
        graph = sampler_graph()
        graph["6"]["inputs"]["text"] = "portrait"
        graph["11"] = {"class_type": "LoadImage", "inputs": {"image": "portrait"}}
        graph["12"] = {"class_type": "VAEEncode", "inputs": {"pixels": ["11", 0], "vae": ["4", 2]}}
        graph["3"]["inputs"]["latent_image"] = ["12", 0]
        return graph

    def test_a_prompt_that_is_called_like_a_file_is_none(self, bench: Bench) -> None:
        bench.store.put("inputs/p.png", b"x")
        plan = bench.plan(self.graph(), inputs={"portrait": "inputs/p.png"})
        assert plan.shared["files"] == [["11", "image"]]

    def test_a_file_that_only_tasks_name_is_brought(self, bench: Bench) -> None:
        """An export whose picture was never chosen, and a node that nobody here knows."""
        bench.store.put("inputs/p.png", b"x")
        graph = self.graph()
        graph["11"]["inputs"]["image"] = ""
        graph["13"] = {"class_type": "Odd", "inputs": {"pic": "none"}}
        given = {"a.png": "inputs/p.png", "b.png": "inputs/p.png"}
        plan = bench.plan(graph, inputs=given, matrix={"11.image": ["a.png"], "13.pic": ["b.png"]})
        assert plan.shared["files"] == [["11", "image"], ["13", "pic"]]
        assert [file.source for file in plan.inputs] == ["inputs/p.png"] * 2


def test_prompts_are_lines_by_line_feeds_alone(bench: Bench) -> None:
    """Text from elsewhere holds other separators, which an editor shows on one line."""
    name = DROP_KEY.replace("job.json", "p.txt")
    bench.store.put(name, "# remarks\ncat\u2028dog\x85x\r\nbird\n".encode())
    plan = bench.plan(sampler_graph(), prompts="p.txt")
    assert [task.params["prompt"] for task in plan.tasks] == ["cat\u2028dog\x85x", "bird"]
