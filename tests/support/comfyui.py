"""A folder that starts like a ComfyUI checkout: the built-in engine behind `main.py`, and what that
lacks of the real one. Files under `models/things/` are the choices of a loader that we know nothing of;
what lies in `custom_nodes/` when it starts is a node class of that name;
`Stamp` saves without a `filename_prefix`, and `Latest` under one name always; `Note` takes its prefix for
a name in the folder that the prefix names.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from handlers.engine import __main__ as engine
from handlers.engine.batch import Batch
from handlers.engine.context import Context
from handlers.engine.files import save_path
from handlers.engine.nodes import NODES
from handlers.engine.planes import as_bytes
from handlers.engine.schema import Folders, Input, Node, Output, choice, link

REPOSITORY = Path(__file__).resolve().parents[2]
THINGS = "models/things"


class _Things(Input):
    """The choices are the files that lie there now."""

    def declared(self, folders: Folders) -> list[Any]:
        return [sorted(path.name for path in Path(THINGS).iterdir())]


def checkout(root: Path) -> Path:
    """Make such a folder; the interpreter to run it with is ours."""
    folder = root / "ComfyUI"
    for name in (THINGS, "custom_nodes"):
        (folder / name).mkdir(parents=True)
    (folder / "main.py").write_text(
        f"import sys\nsys.path.insert(0, {str(REPOSITORY)!r})\n"
        "from tests.support.comfyui import main\nsys.exit(main())\n"
    )
    return folder


def main() -> int:
    inputs = {"image": link("IMAGE"), "thing": _Things([])}
    things = _node("ThingLoader", inputs, ("IMAGE",), _pass_on, module="nodes")
    names = [path.name for path in Path("custom_nodes").iterdir()]
    added = [_node(name, {"image": link("IMAGE")}, ("IMAGE",), _pass_on) for name in names]
    NODES.update({node.name: node for node in (things, *added, STAMP, LATEST, NOTE)})
    return engine.main()


def stamp(ctx: Context, *, image: Batch, word: str) -> Output:
    """Count up from what lies there, as ComfyUI's own save nodes do."""
    name = f"{word}_{len(list(ctx.folders.output.glob(f'{word}_*'))) + 1:05d}_.txt"
    (ctx.folders.output / name).write_text(f"{len(image.frames)} picture(s), {name}")
    return Output(ui={"images": [{"filename": name, "subfolder": "", "type": "output"}]})


def latest(ctx: Context, *, image: Batch, word: str) -> Output:
    """Say how blue a picture is, in a file that is written anew each time."""
    (ctx.folders.output / f"{word}.txt").write_text(f"{as_bytes(image.frames[0][2]).getpixel((0, 0))}")
    return Output(ui={"images": [{"filename": f"{word}.txt", "subfolder": "", "type": "output"}]})


def note(ctx: Context, *, image: Batch, filename_prefix: str) -> Output:
    """Say how many pictures there are, where KJNodes' SaveStringKJ would."""
    target = save_path(ctx.folders.output, filename_prefix, 0, 0).folder
    (target / f"{filename_prefix}_00001_.txt").write_text(f"{len(image.frames)} picture(s)")
    return Output()


def _pass_on(_ctx: object, *, image: Batch, **_: Any) -> Output:
    return Output((image,))


def _node(
    name: str,
    inputs: dict[str, Input],
    outputs: tuple[str, ...],
    run: Any,
    *,
    module: str = "custom_nodes.tests",
    **more: Any,
) -> Node:
    return Node(name, name, "tests", module, inputs, outputs, run, **more)


STAMP = _node("Stamp", {"image": link("IMAGE"), "word": choice("a", "b")}, (), stamp, is_output=True)
LATEST = _node("Latest", {"image": link("IMAGE"), "word": choice("a", "b")}, (), latest, is_output=True)
NOTE = _node(
    "Note",
    {"image": link("IMAGE"), "filename_prefix": Input("STRING", {"default": "x"})},
    (),
    note,
    is_output=True,
)
