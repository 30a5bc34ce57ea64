"""From a job to its plan: names, layers, hashes, limits, policy, inputs and models."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handlers.render import RenderSettings
from handlers.render.graph import applied
from handlers.render.planning import graph_hash_parts, task_hash
from processor.errors import ErrorKind, JobInvalid
from processor.records import Plan, canonical_hash
from tests.support.comfyui import THINGS, checkout
from tests.support.rendering import Bench, image_graph
from tests.support.scripted import RECORDINGS, ScriptedEngine, serve_scripted


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """Plans for a ComfyUI that was never started: no schema is known."""
    (tmp_path / "comfy").mkdir()
    return open_bench(tmp_path, comfyui_dir=tmp_path / "comfy")


@pytest.fixture
def checked(tmp_path: Path) -> Bench:
    """Plans that know a real ComfyUI's recorded schema."""
    if not RECORDINGS.is_dir():
        pytest.skip("../shared/recordings is absent")
    (tmp_path / "comfy").mkdir()
    info = RECORDINGS / "object_info.subset.json"
    return open_bench(tmp_path, comfyui_dir=tmp_path / "comfy", object_info=info)


def open_bench(root: Path, **options: Any) -> Bench:
    return Bench.open(RenderSettings(work_dir=root / "work", models_dir=root / "models", **options), root)


def sampler_graph() -> dict[str, Any]:
    """Text to image for SD 1.5, as exported."""
    return {
        "3": {
            "class_type": "KSampler",
            "inputs": {
                "model": ["10", 0],
                "positive": ["6", 0],
                "negative": ["7", 0],
                "latent_image": ["5", 0],
                "seed": 42,
                "steps": 20,
                "cfg": 8,
                "sampler_name": "euler",
                "scheduler": "normal",
                "denoise": 1,
            },
            "_meta": {"title": "KSampler"},
        },
        "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sd15.safetensors"}},
        "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": 512, "batch_size": 1}},
        "6": {
            "class_type": "CLIPTextEncode",
            "inputs": {"text": "a cat", "clip": ["10", 1]},
            "_meta": {"title": "CLIP Text Encode (Prompt)"},
        },
        "7": {
            "class_type": "CLIPTextEncode",
            "inputs": {"text": "blurry", "clip": ["10", 1]},
            "_meta": {"title": "CLIP Text Encode (Prompt)"},
        },
        "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}},
        "9": {"class_type": "SaveImage", "inputs": {"images": ["8", 0], "filename_prefix": "ComfyUI"}},
        "10": {
            "class_type": "LoraLoader",
            "inputs": {
                "model": ["4", 0],
                "clip": ["4", 1],
                "lora_name": "style.safetensors",
                "strength_model": 1,
                "strength_clip": 1,
            },
        },
    }


def with_models(bench: Bench, *names: str) -> Bench:
    for name in names or ("checkpoints/sd15.safetensors", "loras/style.safetensors"):
        bench.store.put(f"comfy_models/{name}", b"weights")
    return bench


def final(plan: Plan, index: int = 0) -> dict[str, Any]:
    return applied(plan.shared["workflow"], plan.tasks[index].payload["sets"])


def refused(bench: Bench, workflow: Any, **job: Any) -> JobInvalid:
    with pytest.raises(JobInvalid) as caught:
        bench.plan(workflow, **job)
    return caught.value


class TestOverrides:
    @pytest.mark.parametrize(
        "overrides",
        [
            {"1": {"width": 99}},
            {"1": {"inputs": {"width": 99}}},
            {"1.width": 99},
            {"Canvas": {"width": 99}},
            {"canvas.width": 99},
        ],
    )
    def test_spellings(self, bench: Bench, overrides: dict[str, Any]) -> None:
        """By id, both ways; by title; dotted."""
        assert final(bench.plan(image_graph(), overrides=overrides))["1"]["inputs"]["width"] == 99

    def test_found_parameters(self, bench: Bench) -> None:
        """A user's own export: parameters by class and by link to the sampler."""
        overrides = {
            "prompt": "a dog",
            "negative": "bad",
            "steps": 5,
            "checkpoint": "sd15.safetensors",
            "cfg": 3,
        }
        graph = final(with_models(bench).plan(sampler_graph(), overrides=overrides))
        assert graph["6"]["inputs"]["text"] == "a dog"
        assert graph["7"]["inputs"]["text"] == "bad"
        assert (graph["3"]["inputs"]["steps"], graph["3"]["inputs"]["cfg"]) == (5, 3.0)

    @pytest.mark.parametrize(
        ("overrides", "where", "mend"),
        [
            ({"1.widht": 9}, "overrides.1.widht", "Did you mean 'width'?"),
            ({"Canvsa.width": 9}, "overrides.Canvsa.width", "Did you mean 'Canvas'?"),
            ({"widht": 9}, "overrides.widht", "Did you mean 'width'?"),
            ({"1": {"widht": 9}}, "overrides.1", "Did you mean 'width'?"),
            ({"1": 9}, "overrides.1", 'Write "1.width"'),
        ],
    )
    def test_nearest_name(self, bench: Bench, overrides: dict[str, Any], where: str, mend: str) -> None:
        error = refused(bench, image_graph(), overrides=overrides)
        assert error.where == where
        assert mend in (error.mend or "")

    def test_ambiguous_title(self, bench: Bench) -> None:
        """Two text nodes bear ComfyUI's default title: their ids are offered."""
        error = refused(
            with_models(bench), sampler_graph(), overrides={"CLIP Text Encode (Prompt).text": "x"}
        )
        assert error.mend == "Name one by its id: 6, 7"

    def test_class_can_not_be_overridden(self, bench: Bench) -> None:
        assert (
            "not the node itself"
            in refused(bench, image_graph(), overrides={"1": {"inputs": {}, "class_type": "Other"}}).what
        )

    def test_link_is_replaced_only_by_name(self, bench: Bench) -> None:
        """An explicit override may cut a link, as ComfyUI permits."""
        assert final(bench.plan(image_graph(), overrides={"3.images": ["1", 0]}))["3"]["inputs"][
            "images"
        ] == ["1", 0]


class TestExpansion:
    def test_seeds_on_every_sampler(self, bench: Bench) -> None:
        graph = sampler_graph()
        graph["11"] = {"class_type": "RandomNoise", "inputs": {"noise_seed": 1}}
        plan = with_models(bench).plan(graph, seeds=[5, 6])
        assert [task.seed for task in plan.tasks] == [5, 6]
        assert final(plan, 1)["3"]["inputs"]["seed"] == final(plan, 1)["11"]["inputs"]["noise_seed"] == 6

    def test_seeds_without_a_seed_input(self, bench: Bench) -> None:
        assert "no seed input" in refused(bench, image_graph(), seeds=[1, 2]).what

    def test_own_seed_is_recorded(self, bench: Bench) -> None:
        assert with_models(bench).plan(sampler_graph()).tasks[0].seed == 42

    def test_csv_columns_are_parameters(self, bench: Bench) -> None:
        """Texts become the numbers that their inputs hold; empty cells set nothing."""
        bench.store.put("inbox/jobs/p.csv", 'prompt,steps,3.cfg\n"a, b",7,2.5\nc,,\n'.encode("utf-8-sig"))
        plan = with_models(bench).plan(sampler_graph(), prompts="p.csv")
        assert plan.tasks[0].params == {"prompt": "a, b", "steps": "7", "3.cfg": "2.5"}
        first, second = final(plan), final(plan, 1)
        assert (first["3"]["inputs"]["steps"], first["3"]["inputs"]["cfg"]) == (7, 2.5)
        assert (second["6"]["inputs"]["text"], second["3"]["inputs"]["steps"]) == ("c", 20)

    def test_txt_and_jsonl(self, bench: Bench) -> None:
        bench.store.put("inbox/jobs/p.txt", b"one\n\n# note\ntwo\r\n")
        bench.store.put("lists/p.jsonl", b'"x"\n{"prompt": "y", "steps": 3}\n')
        with_models(bench)
        assert [task.params["prompt"] for task in bench.plan(sampler_graph(), prompts="p.txt").tasks] == [
            "one",
            "two",
        ]
        assert final(bench.plan(sampler_graph(), prompts="lists/p.jsonl"), 1)["3"]["inputs"]["steps"] == 3

    @pytest.mark.parametrize(
        ("name", "data", "words"),
        [
            ("p.csv", b"a,b\n1,2,3\n", "line 2"),
            ("p.csv", b"a,a\n1,2\n", "line 1"),
            ("p.jsonl", b'"x"\n{oops\n', "line 2"),
            ("p.txt", b"caf\xe9", "not UTF-8 at byte 3"),
            ("p.txt", b"\n\n", "no prompts"),
            ("p.doc", b"x", "no prompt file"),
        ],
    )
    def test_bad_prompt_file(self, bench: Bench, name: str, data: bytes, words: str) -> None:
        """The line is named."""
        bench.store.put(f"inbox/jobs/{name}", data)
        assert words in str(refused(with_models(bench), sampler_graph(), prompts=name))

    def test_missing_prompt_file(self, bench: Bench) -> None:
        assert "inbox/jobs/" in str(refused(with_models(bench), sampler_graph(), prompts="gone.txt"))

    def test_wildcards_follow_the_seed(self, bench: Bench) -> None:
        """A matrix over steps compares the same picture; the choice is in the params."""
        plan = with_models(bench).plan(
            sampler_graph(),
            overrides={"prompt": "a {red|green|blue|black} car"},
            matrix={"steps": [1, 2]},
            seeds=[1, 2, 3],
        )
        chosen: dict[Any, set[Any]] = {}
        for index, task in enumerate(plan.tasks):
            assert final(plan, index)["6"]["inputs"]["text"] == task.params["prompt"]
            chosen.setdefault(task.seed, set()).add(task.params["prompt"])
        assert all(len(texts) == 1 for texts in chosen.values())

    def test_tasks_that_share_models_stand_together(self, bench: Bench) -> None:
        """Else every task of this matrix would reload its LoRA."""
        with_models(bench, "checkpoints/sd15.safetensors", "loras/a.safetensors", "loras/b.safetensors")
        plan = bench.plan(
            sampler_graph(), matrix={"steps": [1, 2], "lora": ["a.safetensors", "b.safetensors"]}
        )
        assert [str(task.params["lora"])[0] for task in plan.tasks] == ["a", "a", "b", "b"]
        assert [task.index for task in plan.tasks] == [0, 1, 2, 3]
        assert len({task.group for task in plan.tasks}) == 2
        assert len(plan.models) == 3

    def test_a_million_tasks_are_refused_at_once(self, bench: Bench) -> None:
        began = time.process_time()
        values = list(range(1, 1001))
        error = refused(bench, image_graph(), matrix={"1.width": values, "1.height": values})
        assert error.kind is ErrorKind.REFUSED
        assert time.process_time() - began < 1.0

    def test_ten_thousand_tasks_take_seconds(self, bench: Bench) -> None:
        """Planning is linear, and small per task."""
        began = time.process_time()
        plan = bench.plan(image_graph(), matrix={"1.color": list(range(10_000))}, max_tasks=10_000)
        assert len({task.hash for task in plan.tasks}) == 10_000
        assert time.process_time() - began < 10

    def test_planning_twice_is_the_same(self, bench: Bench) -> None:
        with_models(bench)
        job: dict[str, Any] = {"matrix": {"steps": [1, 2]}, "seeds": {"random": 3}, "prompts": ["{a|b}", "c"]}
        assert bench.plan(sampler_graph(), **job) == bench.plan(sampler_graph(), **job)


class TestHashes:
    @given(
        st.dictionaries(st.text(max_size=3), st.integers() | st.text(max_size=3), max_size=3),
        st.text(max_size=3),
    )
    def test_equals_the_plain_canonical_hash(self, inputs: dict[str, Any], node_id: str) -> None:
        """The fast path is the definition."""
        graph = {
            node_id: {"class_type": "A", "inputs": inputs, "_meta": {"title": "t"}},
            "~": {"class_type": "B", "inputs": {}},
        }
        plain = {
            key: {"class_type": node["class_type"], "inputs": node["inputs"]} for key, node in graph.items()
        }
        assert task_hash(graph_hash_parts(graph), {"f": "1"}) == canonical_hash(
            {"graph": plain, "inputs": {"f": "1"}}
        )

    def test_way_of_writing_does_not_matter(self, bench: Bench) -> None:
        """An override and an edited graph with another title are the same task."""
        edited = image_graph(width=99)
        edited["1"]["_meta"]["title"] = "Other"
        assert (
            bench.plan(edited).tasks[0].hash
            == bench.plan(image_graph(), overrides={"1.width": 99}).tasks[0].hash
        )

    def test_input_content_matters(self, bench: Bench) -> None:
        graph = image_graph()
        graph["1"] = {"class_type": "LoadImage", "inputs": {"image": "a.png"}}
        bench.store.put("inbox/jobs/a.png", b"1")
        first = bench.plan(graph)
        bench.store.put("inbox/jobs/a.png", b"2")
        assert bench.plan(graph).tasks[0].hash != first.tasks[0].hash


class TestWorkflows:
    def test_ui_export_is_refused_with_the_way_out(self, bench: Bench) -> None:
        error = refused(bench, {"nodes": [{"id": 1}], "links": [], "last_node_id": 1})
        assert 'Workflow → "Export (API)"' in (error.mend or "")

    def test_wrapped_prompt_is_taken(self, bench: Bench) -> None:
        assert bench.plan({"prompt": image_graph()}).tasks

    def test_by_key_with_declared_parameters(self, bench: Bench) -> None:
        """Defaults, then overrides, then each task's row; ranges and choices hold."""
        workflow = {
            "graph": image_graph(),
            "parameters": {
                "size": {
                    "type": "int",
                    "default": 40,
                    "min": 8,
                    "max": 100,
                    "targets": ["1.width", "1.height"],
                },
                "method": {"type": "string", "choices": ["area", "bicubic"], "targets": ["2.upscale_method"]},
            },
            "gpu": "L4",
        }
        bench.store.put("comfy_workflows/mine.json", json.dumps(workflow).encode())
        plan = bench.plan("mine", matrix={"size": [16, 24]})
        assert plan.gpu == "L4"
        assert final(bench.plan("comfy_workflows/mine.json"))["1"]["inputs"]["height"] == 40
        assert final(plan, 1)["1"]["inputs"]["height"] == 24
        assert "largest allowed, 100" in refused(bench, "mine", overrides={"size": 101}).what
        assert refused(bench, "mine", overrides={"method": "lanczos"}).mend == "Choose one of: area, bicubic"
        assert refused(bench, "mine", overrides={"sise": 8}).mend == "Did you mean 'size'?"

    def test_the_buckets_goes_before_a_ready_one(self, bench: Bench) -> None:
        """Else a ready one that is added later would run in the place of a user's."""
        assert final(bench.plan("gradient")) != final(bench.plan(image_graph()))
        bench.store.put("comfy_workflows/gradient.json", json.dumps(image_graph()).encode())
        assert final(bench.plan("gradient")) == final(bench.plan(image_graph()))

    def test_unknown_name(self, bench: Bench) -> None:
        bench.store.put("comfy_workflows/portrait.json", b"{}")
        assert "portrait" in (refused(bench, "portrat").mend or "")

    @pytest.mark.parametrize("data", [b"{", b"[]", b'{"1": {}}', b"[" * 100_000])
    def test_broken_file(self, bench: Bench, data: bytes) -> None:
        bench.store.put("comfy_workflows/x.json", data)
        assert "x.json" in str(refused(bench, "x"))


class TestPolicy:
    @pytest.mark.parametrize(
        "name", ["ExecutePython", "VHS_LoadImagesPath", "LoadImageFromUrl", "Load Text File", "OpenAIChat"]
    )
    def test_denied_by_default(self, bench: Bench, name: str) -> None:
        """The setting that would permit it is named."""
        graph = image_graph() | {"9": {"class_type": name, "inputs": {}}}
        error = refused(bench, graph)
        assert error.kind is ErrorKind.REFUSED
        assert f"allow_nodes: {name}" in (error.mend or "")

    def test_one_that_queues_prompts_itself(self, bench: Bench) -> None:
        """Nobody would wait for them. One that is not connected does nothing."""
        graph = image_graph() | {"9": {"class_type": "VHS_BatchManager", "inputs": {"frames_per_batch": 4}}}
        assert bench.plan(graph).tasks
        graph["3"]["inputs"]["meta_batch"] = ["9", 0]
        error = refused(bench, graph)
        assert error.kind is ErrorKind.REFUSED
        assert "frame_load_cap" in (error.mend or "")

    def test_no_ordinary_node_is_denied(self, checked: Bench) -> None:
        """None of ComfyUI's own nodes but those that read folders or train."""
        from handlers.render.policy import why_denied

        names = json.loads((RECORDINGS / "object_info.names.json").read_text())
        denied = {name for name in names if why_denied(name, allow=(), deny=())}
        assert denied == {"LoadImageSetFromFolderNode", "LoadImageTextSetFromFolderNode", "TrainLoraNode"}

    def test_allow_and_deny(self, tmp_path: Path) -> None:
        (tmp_path / "c").mkdir()
        graph = image_graph() | {"9": {"class_type": "ExecutePython", "inputs": {}}}
        allowing = open_bench(tmp_path, comfyui_dir=tmp_path / "c", allow_nodes=frozenset({"ExecutePython"}))
        assert allowing.plan(graph).tasks
        denying = open_bench(tmp_path, comfyui_dir=tmp_path / "c", deny_nodes=frozenset({"Empty*"}))
        assert "deny_nodes" in refused(denying, image_graph()).what

    @pytest.mark.parametrize("value", ["/etc/passwd", "../../x", "~/x", "C:\\x", "a/../../b"])
    def test_paths_that_lead_out(self, bench: Bench, value: str) -> None:
        graph = image_graph() | {"9": {"class_type": "SomeLoader", "inputs": {"file_path": value}}}
        assert refused(bench, graph).kind is ErrorKind.REFUSED
        graph["9"]["inputs"]["file_path"] = "fine.txt"
        assert refused(bench, graph, matrix={"9.file_path": ["ok", value]}).kind is ErrorKind.REFUSED


class TestInputs:
    def graph(self, name: str) -> dict[str, Any]:
        return image_graph() | {"1": {"class_type": "LoadImage", "inputs": {"image": name}}}

    def test_looked_for_next_to_the_drop_then_by_key(self, bench: Bench) -> None:
        bench.store.put("inbox/jobs/a.png", b"1")
        bench.store.put("pictures/b.png", b"2")
        assert bench.plan(self.graph("a.png [input]")).inputs[0].source == "inbox/jobs/a.png"
        frozen = bench.plan(self.graph("b.png"), inputs={"b.png": "pictures/b.png"}).inputs[0]
        assert (frozen.source, frozen.version) == (
            "pictures/b.png",
            bench.store.stat("pictures/b.png").version,
        )

    @pytest.mark.parametrize("name", ["/etc/passwd", "../../secret.png", "x.png [output]", "C:\\x.png"])
    def test_names_that_climb(self, bench: Bench, name: str) -> None:
        assert refused(bench, self.graph(name)).kind is ErrorKind.REFUSED

    def test_missing(self, bench: Bench) -> None:
        error = refused(bench, self.graph("gone.png"))
        assert error.kind is ErrorKind.BAD_INPUT
        assert "inbox/jobs/gone.png" in error.what

    def test_unused(self, bench: Bench) -> None:
        bench.store.put("inbox/jobs/a.png", b"1")
        error = refused(bench, self.graph("a.png"), inputs={"b.png": "x/b.png"})
        assert error.where == "inputs.b.png"

    def test_private_address(self, bench: Bench) -> None:
        """Refused when planned, before any worker could be made to ask for it."""
        error = refused(
            bench, self.graph("a.png"), inputs={"a.png": "http://user:secret@169.254.169.254/latest"}
        )
        assert error.kind is ErrorKind.REFUSED
        assert "secret" not in str(error)

    def test_too_large(self, tmp_path: Path) -> None:
        (tmp_path / "c").mkdir()
        bench = open_bench(tmp_path, comfyui_dir=tmp_path / "c", max_input_bytes=3)
        bench.store.put("inbox/jobs/a.png", b"12345")
        assert refused(bench, self.graph("a.png")).kind is ErrorKind.BAD_INPUT


class TestModels:
    def test_missing_model_names_folder_and_nearest(self, bench: Bench) -> None:
        with_models(bench, "checkpoints/sd15.safetensor", "loras/style.safetensors")
        error = refused(bench, sampler_graph())
        assert error.kind is ErrorKind.MISSING_MODEL
        assert "comfy_models/checkpoints/sd15.safetensors" in error.what
        assert "sd15.safetensor'" in (error.mend or "")

    def test_folders_of_one_kind(self, bench: Bench) -> None:
        """A text encoder may lie under `clip/`, as older guides have it."""
        bench.store.put("comfy_models/clip/t5.safetensors", b"w")
        graph = image_graph() | {
            "9": {"class_type": "CLIPLoader", "inputs": {"clip_name": "t5.safetensors", "type": "sd3"}}
        }
        assert [model.folder for model in bench.plan(graph).models] == ["clip"]

    def test_comfyuis_own_folder_counts(self, bench: Bench) -> None:
        assert bench.settings.comfyui_dir is not None
        own = bench.settings.comfyui_dir / "models" / "checkpoints"
        own.mkdir(parents=True)
        (own / "sd15.safetensors").write_bytes(b"w")
        bench.store.put("comfy_models/loras/style.safetensors", b"w")
        assert len(bench.plan(sampler_graph()).models) == 2

    def windows_graph(self, checkpoint: str = "sd15.safetensors") -> dict[str, Any]:
        graph = sampler_graph()
        graph["4"]["inputs"]["ckpt_name"] = checkpoint
        graph["10"]["inputs"]["lora_name"] = "SDXL\\style.safetensors"
        return graph

    def test_windows_spelling_becomes_the_engines(self, bench: Bench) -> None:
        """In the graph as in the plan, whoever names the model; and it is the same task."""
        names = ("checkpoints/sd15.safetensors", "loras/SDXL/style.safetensors", "loras/SDXL/b.safetensors")
        with_models(bench, *names)
        lora = {"10.lora_name": ["SDXL\\style.safetensors", "SDXL\\b.safetensors"]}
        plan = bench.plan(self.windows_graph(), matrix=lora)
        assert [final(plan, index)["10"]["inputs"]["lora_name"] for index in (0, 1)] == [
            "SDXL/style.safetensors",
            "SDXL/b.safetensors",
        ]
        assert {f"{model.folder}/{model.name}" for model in plan.models} == set(names)
        overridden = bench.plan(sampler_graph(), overrides={"lora": "SDXL\\style.safetensors"})
        exported = bench.plan(self.windows_graph())
        assert exported.shared["workflow"]["10"]["inputs"]["lora_name"] == "SDXL/style.safetensors"
        assert exported.tasks[0].hash == overridden.tasks[0].hash == plan.tasks[0].hash

    def test_windows_spelling_of_a_local_file(self, bench: Bench) -> None:
        """ComfyUI's own folder and ours are looked into by the name that a file system here has."""
        assert bench.settings.comfyui_dir is not None
        for path in (
            bench.settings.comfyui_dir / "models" / "loras" / "SDXL" / "style.safetensors",
            bench.settings.models_dir / "checkpoints" / "a" / "b.safetensors",
        ):
            path.parent.mkdir(parents=True)
            path.write_bytes(b"w")
        plan = bench.plan(self.windows_graph("a\\b.safetensors"))
        assert [model.name for model in plan.models] == ["a/b.safetensors", "SDXL/style.safetensors"]

    @pytest.mark.parametrize("listed", ["SDXL/style.safetensors", "SDXL\\style.safetensors"])
    @pytest.mark.parametrize("dropped", ["SDXL/style.safetensors", "SDXL\\style.safetensors"])
    @pytest.mark.parametrize("old_style", [True, False])
    def test_an_attached_server_has_its_own_spelling(
        self, tmp_path: Path, listed: str, dropped: str, old_style: bool
    ) -> None:
        """It may run on Windows or not; its list says, also for loaders that only it knows."""
        names = [["other", listed]] if old_style else ["COMBO", {"options": ["other", listed]}]
        loader = {"input": {"required": {"lora_name": names}}, "output": ["MODEL"]}
        info = tmp_path / "object_info.json"
        info.write_text(
            json.dumps(
                {
                    "LoraLoader": loader,
                    "TheirLoader": loader,
                    "Keep": {"input": {"required": {"model": ["MODEL"]}}, "output": [], "output_node": True},
                }
            )
        )
        bench = open_bench(tmp_path, comfyui_url="http://127.0.0.1:9", object_info=info)
        for class_type in ("LoraLoader", "TheirLoader"):
            graph: dict[str, Any] = {
                "1": {"class_type": class_type, "inputs": {"lora_name": "other"}},
                "2": {"class_type": "Keep", "inputs": {"model": ["1", 0]}},
            }
            plan = bench.plan(graph, matrix={"1.lora_name": [dropped]})
            assert final(plan)["1"]["inputs"]["lora_name"] == listed
            graph["1"]["inputs"]["lora_name"] = "SDXL\\gone.safetensors"
            refused(bench, graph)

    def test_name_that_climbs(self, bench: Bench) -> None:
        graph = sampler_graph()
        graph["4"]["inputs"]["ckpt_name"] = "../../../etc/passwd"
        assert refused(bench, graph).kind is ErrorKind.REFUSED


class TestPreflight:
    def test_everything_wrong_is_told_at_once(self, checked: Bench) -> None:
        graph = sampler_graph()
        graph["3"]["inputs"] |= {"steps": 0, "sampler_name": "eulr", "cfg": "much"}
        del graph["5"]["inputs"]["width"]
        error = refused(with_models(checked), graph)
        text = " ".join(error.details)
        assert "steps 0 is below the smallest allowed, 1" in text
        assert "sampler_name 'eulr' is not an allowed value. Did you mean 'euler'?" in text
        assert "cfg takes a number, not 'much'" in text
        assert "required input width is missing" in text

    def test_values_of_tasks_are_checked(self, checked: Bench) -> None:
        error = refused(with_models(checked), sampler_graph(), matrix={"sampler": ["euler", "heunn"]})
        assert "'heunn'" in error.what

    def test_unknown_node(self, checked: Bench) -> None:
        error = refused(checked, image_graph() | {"9": {"class_type": "SaveImagee", "inputs": {}}})
        assert error.kind is ErrorKind.MISSING_NODE
        assert "Did you mean 'SaveImage'?" in (error.mend or "")
        assert "COMFYUI_DIR" in (error.mend or "")

    def test_wrong_link(self, checked: Bench) -> None:
        graph = image_graph()
        graph["2"]["inputs"]["image"] = ["1", 3]
        assert "output 3 of node 1 EmptyImage" in refused(checked, graph).what
        graph["2"]["inputs"]["image"] = ["77", 0]
        assert "node 77" in refused(checked, graph).what

    def test_preview_only(self, checked: Bench) -> None:
        graph = image_graph()
        graph["3"] = {"class_type": "PreviewImage", "inputs": {"images": ["2", 0]}}
        error = refused(checked, graph)
        assert "only previews" in error.what
        assert "Replace PreviewImage" in (error.mend or "")

    def test_invalid_outputs_may_be_left_out(self, checked: Bench) -> None:
        """As long as one is not: the engine drops them, and the plan says what is wrong with them."""
        graph = image_graph() | {
            "4": {
                "class_type": "EmptyImage",
                "inputs": {"width": 0, "height": 8, "batch_size": 1, "color": 0},
            },
            "5": {"class_type": "SaveImage", "inputs": {"images": ["4", 0], "filename_prefix": "x"}},
        }
        assert "below the smallest" in refused(checked, graph).what
        plan = checked.plan(graph, allow_invalid_outputs=True)
        assert "node 4 EmptyImage: width 0 is below the smallest" in plan.warnings[0]
        graph["3"]["inputs"]["images"] = ["4", 0]
        assert "below the smallest" in refused(checked, graph, allow_invalid_outputs=True).what

    def test_what_feeds_no_output_may_dangle(self, checked: Bench) -> None:
        """A left-over of editing: ComfyUI does not look at it either."""
        graph = image_graph() | {"9": {"class_type": "ImageInvert", "inputs": {"image": ["77", 0]}}}
        assert checked.plan(graph).tasks

    def test_good_graphs_pass(self, checked: Bench) -> None:
        assert checked.plan(image_graph()).warnings == []
        assert with_models(checked).plan(sampler_graph()).tasks


class TestRefusedByAFreshLook:
    """A job that is dropped again after its user has mended the engine passes."""

    @pytest.fixture
    def server(self) -> Iterator[ScriptedEngine]:
        with serve_scripted() as server:
            server.object_info = self.info("sd15.safetensors")
            yield server

    @pytest.fixture
    def ours(self, tmp_path: Path) -> Iterator[Bench]:
        """A ComfyUI of ours that has started, and said what it has."""
        bench = open_bench(tmp_path, comfyui_dir=checkout(tmp_path))
        bench.handler.warm()
        yield bench
        bench.handler.close()

    def info(self, *checkpoints: str) -> dict[str, Any]:
        return {
            "CheckpointLoaderSimple": {
                "input": {"required": {"ckpt_name": [list(checkpoints)]}},
                "output": ["MODEL", "CLIP", "VAE"],
            },
            "Keep": {"input": {"required": {"model": ["MODEL"]}}, "output": [], "output_node": True},
        }

    def graph(self, checkpoint: str, save: str = "Keep") -> dict[str, Any]:
        return {
            "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": checkpoint}},
            "9": {"class_type": save, "inputs": {"model": ["4", 0]}},
        }

    def things(self, thing: str, class_type: str = "ThingLoader") -> dict[str, Any]:
        graph = image_graph()
        graph["4"] = {"class_type": class_type, "inputs": {"image": ["1", 0]}}
        if class_type == "ThingLoader":
            graph["4"]["inputs"]["thing"] = thing
        graph["2"]["inputs"]["image"] = ["4", 0]
        return graph

    def test_model_added_to_an_attached_server(self, tmp_path: Path, server: ScriptedEngine) -> None:
        bench = open_bench(tmp_path, comfyui_url=server.url)
        assert refused(bench, self.graph("new.safetensors")).kind is ErrorKind.MISSING_MODEL
        server.object_info = self.info("sd15.safetensors", "new.safetensors")
        assert bench.plan(self.graph("new.safetensors")).tasks

    def test_node_added_to_an_attached_server(self, tmp_path: Path, server: ScriptedEngine) -> None:
        bench = open_bench(tmp_path, comfyui_url=server.url)
        error = refused(bench, self.graph("sd15.safetensors", "Keep2"))
        assert error.kind is ErrorKind.MISSING_NODE
        assert "is restarted" in (error.mend or "")
        server.object_info["Keep2"] = server.object_info["Keep"]
        assert bench.plan(self.graph("sd15.safetensors", "Keep2")).tasks

    def test_what_passes_is_not_asked_for_again(self, tmp_path: Path, server: ScriptedEngine) -> None:
        bench = open_bench(tmp_path, comfyui_url=server.url)
        assert bench.plan(self.graph("sd15.safetensors")).tasks
        server.object_info = {}
        assert bench.plan(self.graph("sd15.safetensors")).tasks

    def test_outputs_that_a_custom_node_grows(self, tmp_path: Path, server: ScriptedEngine) -> None:
        """Its schema does not count those that its user added in the browser."""
        bench = open_bench(tmp_path, comfyui_url=server.url)
        graph = self.graph("sd15.safetensors")
        graph["9"]["inputs"]["model"] = ["4", 5]
        assert "which has 3" in refused(bench, graph).what
        server.object_info["CheckpointLoaderSimple"]["python_module"] = "custom_nodes.rgthree-comfy"
        assert "which has 3" in bench.plan(graph).warnings[0]

    def test_only_sent_to_the_browser(self, tmp_path: Path, server: ScriptedEngine) -> None:
        bench = open_bench(tmp_path, comfyui_url=server.url)
        server.object_info["SaveImageWebsocket"] = server.object_info["Keep"]
        error = refused(bench, self.graph("sd15.safetensors", "SaveImageWebsocket"))
        assert "Replace SaveImageWebsocket" in (error.mend or "")

    def test_file_added_to_our_own(self, ours: Bench) -> None:
        """For a loader that we don't know: what ComfyUI said at its start is not its last word."""
        assert ours.settings.comfyui_dir is not None
        assert "is not an allowed value" in refused(ours, self.things("new.bin")).what
        (ours.settings.comfyui_dir / THINGS / "new.bin").touch()
        assert ours.run(self.things("new.bin")).files

    def test_node_added_to_our_own(self, ours: Bench) -> None:
        """The engine that runs can't know it, so the job gets a new one."""
        assert ours.settings.comfyui_dir is not None
        old = ours.server_pid()
        assert refused(ours, self.things("", "Added")).kind is ErrorKind.MISSING_NODE
        (ours.settings.comfyui_dir / "custom_nodes" / "Added").mkdir()
        assert ours.run(self.things("", "Added")).files
        assert ours.server_pid() != old
        assert refused(ours, self.things("", "Addded")).kind is ErrorKind.MISSING_NODE

    def test_what_an_ended_engine_said_refuses_nothing(self, ours: Bench) -> None:
        """The next one may have been given more; it will say so itself."""
        ours.handler.close()
        assert ours.plan(self.things("new.bin")).tasks
