"""A folder that starts as a ComfyUI checkout does, with a node that needs a model file."""

from __future__ import annotations

from pathlib import Path

CHECKOUT = Path(__file__).parents[2]

_MAIN = '''
import json, pathlib, sys

sys.path.insert(0, {checkout!r})
from handlers.engine.__main__ import main
from handlers.engine.nodes import NODES
from handlers.engine.schema import Input, Node, Output, link

config = sys.argv[sys.argv.index("--extra-model-paths-config") + 1]
base = json.loads(pathlib.Path(config).read_text())["dropbatch"]["base_path"]
folder = pathlib.Path(base) / "upscale_models"


class Names(Input):
    """The files that are there now, as ComfyUI lists them."""

    def declared(self, folders):
        return [sorted(path.name for path in folder.glob("*")) if folder.is_dir() else []]


def load(_, *, model_name):
    return Output(((folder / model_name).read_text(),))


def use(_, *, upscale_model, image):
    return Output((image,))


for node in (
    Node("UpscaleModelLoader", None, "loaders", "nodes",
         {{"model_name": Names([])}}, ("UPSCALE_MODEL",), load),
    Node("ImageUpscaleWithModel", None, "upscaling", "nodes",
         {{"upscale_model": link("UPSCALE_MODEL"), "image": link("IMAGE")}}, ("IMAGE",), use),
):
    NODES[node.name] = node
sys.exit(main())
'''


def install_comfyui(folder: Path) -> Path:
    """The built-in engine behind a `main.py`, with one kind of model."""
    folder.mkdir(parents=True)
    (folder / "main.py").write_text(_MAIN.format(checkout=str(CHECKOUT)), encoding="utf-8")
    return folder
