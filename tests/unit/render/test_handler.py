"""The render handler and what its engine holds of models that were replaced meanwhile."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
from PIL import Image

from handlers.model_cache import ModelCache
from handlers.render.graph import Graph
from processor.errors import ErrorKind, TaskFailed
from processor.handler import Remedy
from processor.records import ModelFile, Plan
from tests.support.rendering import Bench, builtin_settings

A, B = (ModelFile(folder="upscale_models", name=f"{name}.pth") for name in "ab")
RED, BLUE = b"\xff\x00\x00", b"\x00\x00\xff"

_MAIN: Final = """
import json, sys
from pathlib import Path

sys.path.insert(0, {ours!r})
from aiohttp import web
from handlers.engine import __main__, server
from handlers.engine.nodes.create import empty_image
from handlers.engine.schema import Input, Node

here = Path(__file__).parent
paths = json.loads(Path(sys.argv[sys.argv.index("--extra-model-paths-config") + 1]).read_text())
models = Path(paths["dropbatch"]["base_path"]) / "upscale_models"


def load(context, model_name):
    colour = int.from_bytes((models / model_name).read_bytes(), "big")
    return empty_image(context, width=8, height=8, batch_size=1, color=colour)


server.NODES["UpscaleModelLoader"] = Node(
    "UpscaleModelLoader", None, "", "", {{"model_name": Input("STRING")}}, ("IMAGE",), load
)


class Server(server.EngineServer):
    async def _post_free(self, request):
        if (here / "deaf").exists():
            return web.Response(status=500)
        with (here / "freed").open("a") as log:
            log.write("x")
        return await super()._post_free(request)


__main__.EngineServer = Server
sys.exit(__main__.main())
"""
"""A ComfyUI whose models are colours: the built-in engine, with a loader that is cached by name."""


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    home = tmp_path / "ComfyUI"
    (home / "comfy").mkdir(parents=True)
    (home / "main.py").write_text(_MAIN.format(ours=str(Path(__file__).resolve().parents[3])))
    (home / "comfy" / "cli_args.py").touch()
    bench = Bench.open(replace(builtin_settings(tmp_path), comfyui_dir=home, cpu=True), tmp_path / "tasks")
    for model in (A, B):
        put(bench, model, RED)
    yield bench
    bench.handler.close()


def put(bench: Bench, model: ModelFile, colour: bytes) -> None:
    bench.store.put(f"comfy_models/{model.folder}/{model.name}", colour)


def home(bench: Bench) -> Path:
    assert bench.settings.comfyui_dir is not None
    return bench.settings.comfyui_dir


def plan(bench: Bench, *models: ModelFile) -> Plan:
    graph: Graph = {}
    for model in models:
        graph[model.name] = {"class_type": "UpscaleModelLoader", "inputs": {"model_name": model.name}}
        graph[f"save {model.name}"] = {
            "class_type": "SaveImage",
            "inputs": {"images": [model.name, 0], "filename_prefix": model.name},
        }
    return bench.plan(graph)


def colour(bench: Bench, planned: Plan, **options: Any) -> bytes:
    """What the first model of a plan is to the engine."""
    with Image.open(bench.run_task(planned, **options).files[0].path) as image:
        pixel = image.convert("RGB").getpixel((0, 0))
    assert isinstance(pixel, tuple)
    return bytes(int(value) for value in pixel)


def frees(bench: Bench) -> int:
    path = home(bench) / "freed"
    return len(path.read_text()) if path.exists() else 0


def pull(bench: Bench, *models: ModelFile) -> None:
    """What another process does; it downloads a while later, by the file system's clock."""
    ModelCache(bench.settings.models_dir, bench.store).ensure(models)
    for model in models:
        path = bench.settings.models_dir / model.folder / model.name
        later = path.stat().st_mtime + 10
        os.utime(path, (later, later))


def test_a_model_that_another_process_replaced_is_read_anew(bench: Bench) -> None:
    """On Modal a CPU pulls, and the GPU's worker finds all current; once is enough."""
    planned = plan(bench, A)
    assert [colour(bench, planned) for _ in range(2)] == [RED, RED]
    assert frees(bench) == 0
    put(bench, A, BLUE)
    pull(bench, A)
    assert [colour(bench, planned) for _ in range(2)] == [BLUE, BLUE]
    assert frees(bench) == 1


def test_a_model_replaced_before_another_was_missing_is_read_anew(bench: Bench) -> None:
    """The first task fails without having run; the engine still holds what it held."""
    both, one = plan(bench, A, B), plan(bench, A)
    assert colour(bench, one) == RED
    bench.handler._caches.clear()  # as after the minute for which a file is taken as current
    put(bench, A, BLUE)
    bench.store.hide(f"comfy_models/{B.folder}/{B.name}")
    with pytest.raises(TaskFailed) as caught:
        bench.run_task(both)
    assert caught.value.kind is ErrorKind.MISSING_MODEL
    assert colour(bench, one) == BLUE


def test_an_engine_that_could_not_be_told_is_told_again(bench: Bench) -> None:
    """What it was not told to let go it still holds."""
    planned = plan(bench, A)
    assert colour(bench, planned) == RED
    put(bench, A, BLUE)
    pull(bench, A)
    (home(bench) / "deaf").touch()
    with pytest.raises(TaskFailed):
        bench.run_task(planned)
    (home(bench) / "deaf").unlink()
    assert colour(bench, planned) == BLUE
    assert frees(bench) == 1


def test_a_new_engine_holds_nothing(bench: Bench) -> None:
    """It was started after the models were replaced, and is not told to let go of them."""
    planned = plan(bench, A)
    assert colour(bench, planned) == RED
    put(bench, A, BLUE)
    pull(bench, A)
    assert colour(bench, planned, remedy=Remedy.RESTART) == BLUE
    assert frees(bench) == 0
