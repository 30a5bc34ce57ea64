"""What every engine must do for the render handler: the built-in one always, a real ComfyUI
where `COMFYUI_DIR` (started here) or `COMFYUI_URL` (attached) names one."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from handlers.render.server import Server
from processor.clock import SystemClock
from processor.errors import ErrorKind, JobInvalid, TaskFailed
from processor.handler import Progress, Remedy, Stop
from tests.support.graphs import diffusion_graph
from tests.support.rendering import Bench, Once, builtin_settings, image_graph, real_settings, slow_graph

REAL = bool(os.environ.get("COMFYUI_DIR") or os.environ.get("COMFYUI_URL"))
ATTACHED = bool(os.environ.get("COMFYUI_URL"))
MODEL = os.environ.get("COMFYUI_TEST_MODEL", "random_sd15")

ENGINES = ["builtin", "attached", *(["real"] if REAL else [])]
"""`attached`: the built-in engine, started by someone else and reached by its URL alone."""


@pytest.fixture(scope="module", params=ENGINES)
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    root = tmp_path_factory.mktemp(request.param)
    with ExitStack() as stack:
        match request.param:
            case "builtin":
                settings = builtin_settings(root)
            case "attached":
                server = Server(builtin_settings(root / "other"), SystemClock())
                stack.callback(server.remove)
                server.start()
                settings = replace(builtin_settings(root), comfyui_url=server.api.url)
            case _:
                settings = real_settings(root)
        bench = Bench.open(settings, root)
        stack.callback(bench.handler.close)
        yield bench


@pytest.fixture
def real(bench: Bench) -> Bench:
    if not REAL or bench.root.name.startswith(("builtin", "attached")):
        pytest.skip("needs a real ComfyUI")
    return bench


@pytest.fixture
def ours(bench: Bench) -> Bench:
    if bench.settings.engine == "attached":
        pytest.skip("needs an engine that we started")
    return bench


def fails(bench: Bench, graph: dict[str, Any], **options: Any) -> TaskFailed:
    with pytest.raises(TaskFailed) as caught:
        bench.run_raw(graph, **options)
    return caught.value


class TestSuccess:
    def test_picture_comes_back_under_its_own_name(self, bench: Bench) -> None:
        """One picture: the visible prefix, its size, type and node, the engine's facts."""
        stages: list[Progress] = []
        output = bench.run_raw(image_graph(color=0x112233), progress=stages.append)
        (file,) = output.files
        assert (file.name, file.media_type, file.node) == ("pictures/red_00001_.png", "image/png", "3")
        with Image.open(file.path) as image:
            assert image.size == (32, 24)
            assert image.convert("RGB").getpixel((0, 0)) == (0x11, 0x22, 0x33)
        assert {"Canvas", "ImageScale", "SaveImage"} <= {stage.stage for stage in stages}
        assert 0 <= output.seconds < 60
        assert output.engine["engine"]

    def test_batch(self, bench: Bench) -> None:
        """A batch of three is three files with different names."""
        output = bench.run_raw(image_graph(batch_size=3, prefix="b"))
        assert [file.name for file in output.files] == ["b_00001_.png", "b_00002_.png", "b_00003_.png"]

    def test_same_graph_again_has_its_files(self, bench: Bench) -> None:
        """The cache trap: an identical prompt is answered with files that are there."""
        first, second = bench.run_raw(image_graph()), bench.run_raw(image_graph())
        assert first.files[0].name == second.files[0].name
        assert _pixels(first.files[0].path) == _pixels(second.files[0].path)

    def test_metadata_can_reproduce_the_picture(self, bench: Bench) -> None:
        """The PNG holds the prompt that made it."""
        (file,) = bench.run_raw(image_graph(color=5)).files
        with Image.open(file.path) as image:
            assert '"EmptyImage"' in image.info["prompt"]

    def test_animation(self, bench: Bench) -> None:
        """An animated WebP, reported under `images`."""
        graph = image_graph(batch_size=4)
        graph["3"] = {
            "class_type": "SaveAnimatedWEBP",
            "inputs": {
                "images": ["2", 0],
                "filename_prefix": "anim",
                "fps": 6.0,
                "lossless": True,
                "quality": 80,
                "method": "default",
            },
        }
        (file,) = bench.run_raw(graph).files
        assert file.media_type == "image/webp"

    def test_two_save_nodes_with_one_prefix(self, bench: Bench) -> None:
        """Their files stay apart."""
        graph = image_graph(prefix="same")
        graph["4"] = {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "same"}}
        output = bench.run_raw(graph)
        assert len({file.name for file in output.files}) == 2
        assert {file.node for file in output.files} == {"3", "4"}

    @pytest.mark.parametrize(
        "prefix", ["../../../escape", "/etc/x", "a\\..\\b", "%year%", "x" * 300, "", "ü 猫/ok", "C:\\w"]
    )
    def test_hostile_prefix_stays_inside(self, bench: Bench, prefix: str) -> None:
        """No prefix leaves the output folder or makes the save fail."""
        (file,) = bench.run_raw(image_graph(prefix=prefix)).files
        assert file.path.is_file()
        assert ".." not in file.name.split("/")
        assert not file.name.startswith("/")

    def test_several_at_once(self, bench: Bench) -> None:
        """Prompts of several threads share the socket and get their own results."""
        colors = [0x010101 * number for number in range(1, 9)]
        with ThreadPoolExecutor(bench.handler.concurrency) as pool:
            outputs = list(pool.map(lambda color: bench.run_raw(image_graph(color=color)), colors))
        for color, output in zip(colors, outputs, strict=True):
            with Image.open(output.files[0].path) as image:
                assert image.convert("RGB").getpixel((0, 0)) == (color & 0xFF,) * 3

    def test_input_from_the_store(self, bench: Bench) -> None:
        """A file next to the drop, under a name with spaces and umlauts, is read."""
        picture = BytesIO()
        Image.new("RGB", (20, 10), (0, 255, 0)).save(picture, "PNG")
        bench.store.put("inbox/jobs/my grüne Katze.png", picture.getvalue())
        graph = {
            "1": {"class_type": "LoadImage", "inputs": {"image": "my grüne Katze.png"}},
            "2": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}},
            "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "out"}},
        }
        plan = bench.plan(graph)
        for _ in range(2):
            (file,) = bench.run_task(plan).files
            with Image.open(file.path) as image:
                assert image.convert("RGB").getpixel((3, 3)) == (255, 0, 255)


class TestRefusals:
    def test_unknown_class(self, bench: Bench) -> None:
        """The node is named, and how to connect an engine that has it."""
        error = fails(bench, {"1": {"class_type": "NoSuchNode", "inputs": {}, "_meta": {"title": "Odd"}}})
        assert error.kind is ErrorKind.MISSING_NODE
        assert 'node 1 NoSuchNode "Odd"' in error.what
        assert "COMFYUI_DIR" in (error.mend or "")

    def test_out_of_range(self, bench: Bench) -> None:
        """Node, title, input, value and bound are named."""
        error = fails(bench, image_graph(height=-5))
        assert error.kind is ErrorKind.INVALID
        assert error.where == "1.height"
        assert 'node 1 EmptyImage "Canvas": height -5 is below the smallest allowed, 1' in error.what

    def test_too_big(self, bench: Bench) -> None:
        error = fails(bench, image_graph(width=99999))
        assert "width 99999 is above the largest allowed, 16384" in error.what

    def test_not_in_list(self, bench: Bench) -> None:
        """The nearest allowed value is offered."""
        graph = image_graph()
        graph["2"]["inputs"]["upscale_method"] = "bicubik"
        error = fails(bench, graph)
        assert error.kind is ErrorKind.INVALID
        assert "'bicubik'" in error.what
        assert error.mend == "Did you mean 'bicubic'?"

    def test_missing_input(self, bench: Bench) -> None:
        """Every missing input is named."""
        graph = image_graph()
        del graph["1"]["inputs"]["color"], graph["3"]["inputs"]["filename_prefix"]
        error = fails(bench, graph)
        assert error.kind is ErrorKind.INVALID
        text = " ".join([error.what, *error.details])
        assert "color" in text
        assert "filename_prefix" in text

    def test_missing_file(self, bench: Bench) -> None:
        graph = image_graph()
        graph["1"] = {"class_type": "LoadImage", "inputs": {"image": "nope.png"}}
        error = fails(bench, graph)
        assert error.kind is ErrorKind.BAD_INPUT
        assert "nope.png" in error.what

    def test_bad_link(self, bench: Bench) -> None:
        """A link to a node that is not there."""
        graph = image_graph()
        graph["2"]["inputs"]["image"] = ["9", 0]
        error = fails(bench, graph)
        assert error.kind is ErrorKind.INVALID
        assert "9" in error.what

    def test_wrong_type(self, bench: Bench) -> None:
        """A mask where a picture goes."""
        graph = image_graph()
        graph["1"] = {"class_type": "SolidMask", "inputs": {"value": 1.0, "width": 8, "height": 8}}
        error = fails(bench, graph)
        assert error.kind is ErrorKind.INVALID
        assert "MASK" in error.what

    def test_no_outputs(self, bench: Bench) -> None:
        graph = image_graph()
        del graph["3"]
        error = fails(bench, graph)
        assert error.kind is ErrorKind.INVALID
        assert "SaveImage" in (error.mend or "")

    def test_preview_only(self, bench: Bench) -> None:
        """Temporary files are no outputs."""
        graph = image_graph()
        graph["3"] = {"class_type": "PreviewImage", "inputs": {"images": ["2", 0]}}
        error = fails(bench, graph)
        assert error.kind is ErrorKind.INVALID
        assert "previews" in error.what

    def test_partly_valid_fails(self, bench: Bench) -> None:
        """200 with node errors is no success: the outputs that would be missing are named."""
        error = fails(bench, partly_valid())
        assert error.kind is ErrorKind.BAD_INPUT
        assert "node 9 SaveImage would be left out" in error.what
        assert "allow_invalid_outputs" in (error.mend or "")

    def test_partly_valid_may_be_allowed(self, bench: Bench) -> None:
        output = bench.run_raw(partly_valid(), allow_invalid_outputs=True)
        assert [file.node for file in output.files] == ["3"]

    def test_missing_model(self, real: Bench) -> None:
        """A model that is nowhere, told by the engine itself."""
        graph = image_graph()
        graph["1"] = {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "flux.safetensors"}}
        graph["2"] = {"class_type": "VAEDecode", "inputs": {"samples": ["4", 0], "vae": ["1", 2]}}
        graph["4"] = {
            "class_type": "EmptyLatentImage",
            "inputs": {"width": 64, "height": 64, "batch_size": 1},
        }
        error = fails(real, graph)
        assert error.kind is ErrorKind.MISSING_MODEL
        assert "flux.safetensors" in error.what
        assert "comfy_models/checkpoints/" in (error.mend or "")

    def test_plan_finds_what_the_engine_would_refuse(self, bench: Bench) -> None:
        """Once the node schema is known, a job fails before it is queued."""
        bench.run_raw(image_graph())
        graph = image_graph()
        graph["2"]["inputs"]["upscale_method"] = "bicubik"
        with pytest.raises(JobInvalid) as caught:
            bench.plan(graph)
        assert caught.value.mend == "Did you mean 'bicubic'?"


class TestFailures:
    def test_node_that_raises(self, bench: Bench) -> None:
        """A picture that is none: the node is named, the failure is final, the engine goes on."""
        bench.store.put("inbox/jobs/broken.png", b"this is no picture")
        graph = image_graph()
        graph["1"] = {"class_type": "LoadImage", "inputs": {"image": "broken.png"}}
        plan = bench.plan(graph)
        with pytest.raises(TaskFailed) as caught:
            bench.run_task(plan)
        assert caught.value.kind is ErrorKind.NODE_FAILED
        assert "node 1 LoadImage" in caught.value.what
        assert "broken.png" in caught.value.what
        assert "db-" not in caught.value.what
        assert caught.value.where == "1"
        assert bench.run_raw(image_graph()).files

    def test_cancel_while_running(self, bench: Bench) -> None:
        stop = Stop()
        act = Once("ImageBlur", lambda: stop.set(ErrorKind.CANCELLED))
        error = fails(bench, slow_graph(), stop=stop, progress=act)
        assert error.kind is ErrorKind.CANCELLED
        assert "ImageBlur" in error.what
        assert bench.run_raw(image_graph()).files

    def test_cancel_while_queued(self, bench: Bench) -> None:
        """Only the waiting prompt goes; the one before it ends well."""
        stop = Stop()
        act = Once("ImageBlur", lambda: None)
        with ThreadPoolExecutor(2) as pool:
            running = pool.submit(bench.run_raw, slow_graph(8, size=768), progress=act)
            assert act.happened.wait(60)
            queued = pool.submit(bench.run_raw, image_graph(color=77), stop=stop)
            stop.set(ErrorKind.CANCELLED)
            with pytest.raises(TaskFailed) as caught:
                queued.result(60)
            assert caught.value.kind is ErrorKind.CANCELLED
            assert running.result(120).files

    def test_time_out(self, bench: Bench) -> None:
        error = fails(bench, slow_graph(), timeout_s=0.3)
        assert error.kind is ErrorKind.TIMED_OUT
        assert bench.run_raw(image_graph()).files

    def test_lost_socket(self, bench: Bench) -> None:
        """What was said while the socket was away is asked for."""
        act = Once("ImageBlur", bench.drop_socket)
        output = bench.run_raw(slow_graph(6, size=512), progress=act)
        assert act.happened.is_set()
        assert output.files

    def test_killed_engine(self, ours: Bench) -> None:
        """A crash is recognised at once, and the next task gets a new engine."""
        ours.run_raw(image_graph())
        pid = ours.server_pid()
        assert pid is not None
        error = fails(ours, slow_graph(), progress=Once("ImageBlur", lambda: os.kill(pid, signal.SIGKILL)))
        assert error.kind is ErrorKind.CRASHED
        assert ours.run_raw(image_graph(), remedy=Remedy.RESTART).files
        assert ours.server_pid() != pid

    def test_restart_remedy(self, ours: Bench) -> None:
        """A restart that was asked for is a new process; freeing memory is not."""
        ours.run_raw(image_graph())
        pid = ours.server_pid()
        assert ours.run_raw(image_graph(), remedy=Remedy.FREE_MEMORY).files
        assert ours.server_pid() == pid
        assert ours.run_raw(image_graph(), remedy=Remedy.RESTART).files
        assert ours.server_pid() != pid


class TestRealModels:
    def test_video(self, real: Bench) -> None:
        """A video is reported under `images` and has a video's type."""
        graph = image_graph(batch_size=8, width=64, height=64)
        graph["2"] = {"class_type": "CreateVideo", "inputs": {"images": ["1", 0], "fps": 8.0}}
        graph["3"] = {
            "class_type": "SaveVideo",
            "inputs": {"video": ["2", 0], "filename_prefix": "clip", "format": "auto", "codec": "auto"},
        }
        (file,) = real.run_raw(graph).files
        assert (file.name, file.media_type) == ("clip_00001_.mp4", "video/mp4")
        assert b"ftyp" in file.path.read_bytes()[:64]

    def test_latent(self, real: Bench) -> None:
        """A latent is reported under its own key."""
        graph = {
            "1": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
            "2": {
                "class_type": "SaveLatent",
                "inputs": {"samples": ["1", 0], "filename_prefix": "latents/l"},
            },
        }
        (file,) = real.run_raw(graph).files
        assert file.name == "latents/l_00001_.latent"

    def test_diffusion_with_step_progress(self, real: Bench) -> None:
        """A real sampler reports its steps."""
        if not _has_model(real):
            pytest.skip(f"no models/diffusers/{MODEL} in that ComfyUI")
        graph = diffusion_graph(MODEL, "a cat", negative="blurry", prefix="noise")
        plan = real.plan(graph, seeds=[1, 2])
        assert [(model.folder, model.name) for model in plan.models] in ([("diffusers", MODEL)], [])
        stages: list[Progress] = []
        first = real.run_task(plan, 0, progress=stages.append, timeout_s=300)
        second = real.run_task(plan, 1, timeout_s=300)
        steps = [stage.value for stage in stages if stage.stage == "KSampler" and stage.total == 2]
        assert 2.0 in steps
        assert steps == sorted(steps)
        for output in (first, second):
            with Image.open(output.files[0].path) as image:
                assert image.size == (64, 64)


def partly_valid() -> dict[str, Any]:
    graph = image_graph()
    graph["8"] = {"class_type": "LoadImage", "inputs": {"image": "nope.png"}}
    graph["9"] = {"class_type": "SaveImage", "inputs": {"images": ["8", 0], "filename_prefix": "x"}}
    return graph


def _has_model(bench: Bench) -> bool:
    folder = bench.settings.comfyui_dir
    return ATTACHED or (folder is not None and (folder / "models" / "diffusers" / MODEL).is_dir())


def _pixels(path: Path) -> bytes:
    with Image.open(path) as image:
        return image.tobytes()
