"""Parameters that are found on users' own exports, and those that workflows declare."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handlers.render.graph import Graph, read_graph, seed_targets
from handlers.render.parameters import find_parameters
from handlers.render.workflow import Parameter, load_ready, parse_workflow, ready_names
from processor.errors import JobInvalid


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def targets(graph: Graph) -> dict[str, list[str]]:
    return {name: parameter.targets for name, parameter in find_parameters(graph).items()}


def flux() -> Graph:
    """FLUX.1 with a guider: no negative, the text behind FluxGuidance, the seed on RandomNoise."""
    return {
        "1": node("UNETLoader", unet_name="flux1-dev.safetensors", weight_dtype="default"),
        "2": node("DualCLIPLoader", clip_name1="t5.safetensors", clip_name2="l.safetensors", type="flux"),
        "3": node("CLIPTextEncodeFlux", clip=["2", 0], clip_l="short", t5xxl="long", guidance=3.5),
        "4": node("FluxGuidance", conditioning=["3", 0], guidance=3.5),
        "5": node("BasicGuider", model=["1", 0], conditioning=["4", 0]),
        "6": node("RandomNoise", noise_seed=1),
        "7": node("BasicScheduler", model=["1", 0], scheduler="simple", steps=20, denoise=1.0),
        "8": node(
            "SamplerCustomAdvanced", noise=["6", 0], guider=["5", 0], sampler=["9", 0], sigmas=["7", 0]
        ),
        "9": node("KSamplerSelect", sampler_name="euler"),
        "10": node("EmptySD3LatentImage", width=1024, height=1024, batch_size=1),
    }


REFUSED: dict[str, list[Any]] = {
    "int": ["x", 1.5, True, None, [1], "1.5"],
    "float": ["nan", "inf", {}, False],
    "seed": [-1, 2**64],
    "bool": ["maybe", 2],
    "string": [None, ["x"]],
}
"""Values that a parameter of each type does not take."""


class TestFound:
    def test_flux(self) -> None:
        found = targets(flux())
        assert set(found["prompt"]) == {"3.t5xxl", "3.clip_l"}
        assert found["seed"] == ["6.noise_seed"]
        assert found["steps"] == ["7.steps"]
        assert found["sampler"] == ["9.sampler_name"]
        assert found["model"] == ["1.unet_name"]
        assert "negative" not in found

    def test_text_through_strings_and_controlnet(self) -> None:
        """The prompt is where the text is, however many nodes lie between."""
        graph = {
            "1": node("PrimitiveStringMultiline", value="a cat"),
            "2": node("CLIPTextEncode", clip=["9", 1], text=["1", 0]),
            "3": node("CLIPTextEncode", clip=["9", 1], text="bad"),
            "4": node("ControlNetApplyAdvanced", positive=["2", 0], negative=["3", 0], control_net=["8", 0]),
            "5": node("KSampler", positive=["4", 0], negative=["4", 1], latent_image=["7", 0], seed=1, cfg=8),
        }
        assert targets(graph)["prompt"] == ["1.value"]
        assert targets(graph)["negative"] == ["3.text"]

    def test_video_conditioning(self) -> None:
        """Wan's image-to-video passes both texts through one node."""
        graph = {
            "1": node("CLIPTextEncode", clip=["9", 0], text="waves"),
            "2": node("CLIPTextEncode", clip=["9", 0], text="static"),
            "3": node(
                "WanImageToVideo",
                positive=["1", 0],
                negative=["2", 0],
                vae=["8", 0],
                width=832,
                height=480,
                length=33,
            ),
            "4": node("KSampler", positive=["3", 0], negative=["3", 1], latent_image=["3", 2], seed=1, cfg=6),
        }
        found = targets(graph)
        assert (found["prompt"], found["negative"], found["frames"]) == (["1.text"], ["2.text"], ["3.length"])

    def test_zeroed_negative_is_no_parameter(self) -> None:
        graph = {
            "1": node("CLIPTextEncode", clip=["9", 0], text="x"),
            "2": node("ConditioningZeroOut", conditioning=["1", 0]),
            "3": node("KSampler", positive=["1", 0], negative=["2", 0], latent_image=["5", 0], seed=1),
        }
        assert "negative" not in targets(graph)

    def test_two_samplers(self) -> None:
        """Equal steps are one parameter, different ones two; the seed is one always."""
        graph = {
            "1": node("KSampler", seed=1, steps=20, cfg=7),
            "2": node("KSampler", seed=2, steps=20, cfg=4),
            "3": node("LoraLoader", lora_name="a", strength_model=1),
            "4": node("LoraLoader", lora_name="a", strength_model=1),
        }
        found = targets(graph)
        assert found["seed"] == ["1.seed", "2.seed"]
        assert found["steps"] == ["1.steps", "2.steps"]
        assert (found["cfg"], found["cfg_2"]) == (["1.cfg"], ["2.cfg"])
        assert (found["lora"], found["lora_2"]) == (["3.lora_name"], ["4.lora_name"])

    def test_shared_seed_node(self) -> None:
        """A number node that feeds the samplers is the seed."""
        graph = {"1": node("PrimitiveInt", value=7), "2": node("KSampler", seed=["1", 0])}
        assert [str(target) for target in seed_targets(graph)] == ["1.value"]

    def test_links_in_a_circle_end(self) -> None:
        graph = {
            "1": node("ConditioningCombine", conditioning_1=["2", 0], conditioning_2=["1", 0]),
            "2": node("ConditioningCombine", conditioning_1=["1", 0], conditioning_2=["2", 0]),
            "3": node("KSampler", positive=["1", 0], negative=["2", 0], latent_image=["1", 0]),
        }
        assert "prompt" not in targets(graph)

    @given(
        st.dictionaries(
            st.sampled_from("abc"),
            st.dictionaries(
                st.sampled_from(["text", "positive", "seed", "clip", "model", "conditioning", "width"]),
                st.integers()
                | st.text(max_size=3)
                | st.tuples(st.sampled_from("abcd"), st.integers(0, 2)).map(list)
                | st.none(),
                max_size=5,
            ),
            max_size=3,
        )
    )
    def test_any_graph(self, inputs: dict[str, dict[str, Any]]) -> None:
        """Whatever is linked to whatever, the search ends and names inputs that exist."""
        graph = {
            key: node("CLIPTextEncode" if "text" in value else "KSampler", **value)
            for key, value in inputs.items()
        }
        for parameter in find_parameters(graph).values():
            for target in parameter.targets:
                node_id, _, name = target.partition(".")
                assert name in graph[node_id]["inputs"]


class TestDeclared:
    @pytest.mark.parametrize(
        ("kind", "given", "result"),
        [
            ("int", "20", 20),
            ("int", 20.0, 20),
            ("float", "7.5", 7.5),
            ("float", 7, 7.0),
            ("bool", "no", False),
            ("string", 5, "5"),
            ("seed", 2**64 - 1, 2**64 - 1),
        ],
    )
    def test_values(self, kind: Any, given: Any, result: Any) -> None:
        assert Parameter(type=kind, targets=["1.x"]).coerce(given, where="w") == result

    @pytest.mark.parametrize(
        ("kind", "given"),
        [(kind, given) for kind, refused in REFUSED.items() for given in refused],
    )
    def test_refused(self, kind: Any, given: Any) -> None:
        with pytest.raises(JobInvalid):
            Parameter(type=kind, targets=["1.x"]).coerce(given, where="w")

    def test_target_must_exist(self) -> None:
        value = {"graph": {"1": node("A", x=1)}, "parameters": {"p": {"type": "int", "targets": ["2.x"]}}}
        with pytest.raises(JobInvalid, match=r"'2\.x' is not in the graph"):
            parse_workflow(value, where="w.json")

    def test_ready_workflows_load(self) -> None:
        """Every workflow that comes with the package has the form, and a graph."""
        for name in ready_names():
            workflow = load_ready(name)
            assert workflow is not None
            assert read_graph(workflow.graph)

    @pytest.mark.parametrize("name", ["../secrets", "a/b", "", "nope", "x.json\0"])
    def test_no_name_leaves_the_folder(self, name: str) -> None:
        assert load_ready(name) is None
