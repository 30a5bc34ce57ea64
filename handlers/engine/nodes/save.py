"""Nodes that write files: what a prompt is run for."""

from __future__ import annotations

import json
from collections.abc import Iterator

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from handlers.engine.batch import Batch
from handlers.engine.context import Context
from handlers.engine.files import SavePath, save_path
from handlers.engine.limits import LimitExceeded
from handlers.engine.planes import as_bytes
from handlers.engine.schema import Input, Node, Output, choice, integer, link, number

_EXIF_MODEL = 0x0110  # the prompt's tag; further texts take the tags below it
_WEBP_METHODS = {"default": 4, "fastest": 0, "slowest": 6}


def save_image(ctx: Context, *, images: Batch, filename_prefix: str = "ComfyUI") -> Output:
    """A PNG a picture, with the prompt in it, in the output folder."""
    target = save_path(ctx.folders.output, filename_prefix, *images.size)
    return _save_pngs(ctx, images, target, kind="output", compress_level=4)


def preview_image(ctx: Context, *, images: Batch) -> Output:
    """A PNG a picture in the temp folder."""
    target = save_path(ctx.folders.temp, f"ComfyUI_temp_{ctx.preview_tag}", *images.size)
    return _save_pngs(ctx, images, target, kind="temp", compress_level=1)


def save_animated_webp(
    ctx: Context,
    *,
    images: Batch,
    filename_prefix: str,
    fps: float,
    lossless: bool,
    quality: int,
    method: str,
) -> Output:
    """One WebP of all pictures, the prompt in its EXIF."""
    target = save_path(ctx.folders.output, filename_prefix, *images.size)
    pictures = list(_pictures(ctx, images))
    exif = pictures[0].getexif()
    for i, (key, text) in enumerate(_metadata(ctx)):
        exif[_EXIF_MODEL - i] = f"{key}:{text}"
    name = target.name(0, ".webp")
    pictures[0].save(
        target.folder / name,
        save_all=True,
        duration=int(1000.0 / fps),
        append_images=pictures[1:],
        exif=exif,
        lossless=lossless,
        quality=quality,
        method=_WEBP_METHODS[method],
    )
    return _animated(target, name, moves=len(pictures) != 1)


def save_animated_png(
    ctx: Context, *, images: Batch, filename_prefix: str, fps: float, compress_level: int
) -> Output:
    """One animated PNG of all pictures, the prompt in chunks of ComfyUI's own after the pixels."""
    target = save_path(ctx.folders.output, filename_prefix, *images.size)
    pictures = list(_pictures(ctx, images))
    info = PngInfo()
    for key, text in _metadata(ctx):
        info.add(b"comf", key.encode("latin-1") + b"\0" + text.encode("latin-1"), after_idat=True)
    name = target.name(0, ".png")
    pictures[0].save(
        target.folder / name,
        pnginfo=info if ctx.metadata else None,
        compress_level=compress_level,
        save_all=True,
        duration=int(1000.0 / fps),
        append_images=pictures[1:],
    )
    return _animated(target, name, moves=True)


def _save_pngs(ctx: Context, images: Batch, target: SavePath, *, kind: str, compress_level: int) -> Output:
    info = PngInfo()
    for key, text in _metadata(ctx):
        info.add_text(key, text)
    saved = []
    for number_, picture in enumerate(_pictures(ctx, images)):
        name = target.name(number_, ".png", batch_number=number_)
        picture.save(
            target.folder / name, pnginfo=info if ctx.metadata else None, compress_level=compress_level
        )
        saved.append({"filename": name, "subfolder": target.subfolder, "type": kind})
    return Output(ui={"images": saved})


def _animated(target: SavePath, name: str, *, moves: bool) -> Output:
    saved = {"filename": name, "subfolder": target.subfolder, "type": "output"}
    return Output(ui={"images": [saved], "animated": [moves]})


def _metadata(ctx: Context) -> list[tuple[str, str]]:
    """The texts that go into a saved file, the prompt first."""
    if not ctx.metadata:
        return []
    extra = {key: json.dumps(value) for key, value in (ctx.extra_pnginfo or {}).items()}
    return [("prompt", json.dumps(ctx.prompt)), *extra.items()]


def _pictures(ctx: Context, images: Batch) -> Iterator[Image.Image]:
    """8-bit pictures of a batch; a frame that is repeated is converted once.

    Raises:
        LimitExceeded: more pixels than one node may encode.
    """
    pixels = images.width * images.height * len(images.frames)
    if pixels > ctx.limits.saved_pixels:
        raise LimitExceeded(
            f"{len(images.frames)} pictures of {images.width}x{images.height} are more than one node of the"
            f" built-in engine saves ({ctx.limits.saved_pixels} pixels)"
        )
    last: tuple[tuple[int, ...], Image.Image] | None = None
    for frame in images.frames:
        ctx.checkpoint()
        key = tuple(map(id, frame))
        if last is None or last[0] != key:
            last = (key, Image.merge("RGB", [as_bytes(plane) for plane in frame]))
        yield last[1]


_PREFIX_TOOLTIP = (
    "The prefix for the file to save. This may include formatting information such as %date:yyyy-MM-dd% or"
    " %Empty Latent Image.width% to include values from nodes."
)
_SAVES = "Saves the input images to your ComfyUI output directory."
_PREFIX = Input("STRING", {"default": "ComfyUI"})
_FPS = number(6.0, 0.01, 1000.0, 0.01)

NODES = [
    Node(
        name="SaveImage",
        display_name="Save Image",
        category="image",
        module="nodes",
        description=_SAVES,
        inputs={
            "images": link("IMAGE", {"tooltip": "The images to save."}),
            "filename_prefix": Input("STRING", {"default": "ComfyUI", "tooltip": _PREFIX_TOOLTIP}),
        },
        outputs=(),
        run=save_image,
        is_output=True,
    ),
    Node(
        name="PreviewImage",
        display_name="Preview Image",
        category="image",
        module="nodes",
        description=_SAVES,
        inputs={"images": link("IMAGE")},
        outputs=(),
        run=preview_image,
        is_output=True,
    ),
    Node(
        name="SaveAnimatedWEBP",
        display_name="SaveAnimatedWEBP",
        category="image/animation",
        module="comfy_extras.nodes_images",
        inputs={
            "images": link("IMAGE"),
            "filename_prefix": _PREFIX,
            "fps": _FPS,
            "lossless": Input("BOOLEAN", {"default": True}),
            "quality": integer(80, 0, 100),
            "method": choice(*_WEBP_METHODS),
        },
        outputs=(),
        run=save_animated_webp,
        is_output=True,
    ),
    Node(
        name="SaveAnimatedPNG",
        display_name="SaveAnimatedPNG",
        category="image/animation",
        module="comfy_extras.nodes_images",
        inputs={
            "images": link("IMAGE"),
            "filename_prefix": _PREFIX,
            "fps": _FPS,
            "compress_level": integer(4, 0, 9),
        },
        outputs=(),
        run=save_animated_png,
        is_output=True,
    ),
]
