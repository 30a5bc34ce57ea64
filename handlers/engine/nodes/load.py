"""Reading a picture that the user gave."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from PIL import Image, ImageFile, ImageOps, ImageSequence, UnidentifiedImageError

from handlers.engine.batch import Batch, Frame
from handlers.engine.context import Context
from handlers.engine.files import Folders
from handlers.engine.limits import LimitExceeded
from handlers.engine.planes import Plane, constant, scaled
from handlers.engine.schema import Input, Node, Output

FORMATS = ["PNG", "JPEG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "TGA", "PPM", "ICO", "QOI"]
"""What is decoded, where this Pillow can. Not all that Pillow knows: some readers start other programs."""

_Source = TypeVar("_Source")


def load_image(ctx: Context, *, image: str) -> Output:
    """The file's frames as pictures, and what is transparent in them as masks.

    Raises:
        LimitExceeded: a file or a picture that is too large, found before it is decoded.
        UnidentifiedImageError: no picture, or a format that the engine does not decode.
    """
    path = ctx.folders.annotated(image)
    if path is None:
        raise FileNotFoundError(f"Invalid image file: {image}")
    if path.stat().st_size > ctx.limits.input_bytes:
        raise LimitExceeded(
            f"{image} is larger than the built-in engine reads ({ctx.limits.input_bytes} bytes)"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit that counts is ours
        with _forgiving(_open, path) as opened:
            pictures, masks = _read_frames(ctx, opened)
    return Output((Batch(tuple(pictures)), Batch(tuple(masks))))


def fingerprint(folders: Folders, *, image: str) -> str:
    """The sha256 of the file, so that a replaced file is read again."""
    path = folders.annotated(image)
    if path is None:
        raise FileNotFoundError(image)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def validate(folders: Folders, *, image: str) -> bool | str:
    """Whether the file is there, inside its folder."""
    path = folders.annotated(image)
    return (path is not None and path.exists()) or f"Invalid image file: {image}"


def _open(path: Path) -> Image.Image:
    Image.init()  # else `OPEN` has only the commonest readers
    return Image.open(path, formats=[name for name in FORMATS if name in Image.OPEN])


def _forgiving(read: Callable[[_Source], Image.Image], source: _Source) -> Image.Image:
    """Read strictly, then once more taking what is there of a truncated file, as ComfyUI does."""
    try:
        return read(source)
    except (OSError, UnidentifiedImageError, ValueError):
        before = ImageFile.LOAD_TRUNCATED_IMAGES
        ImageFile.LOAD_TRUNCATED_IMAGES = True
        try:
            return read(source)
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = before


def _read_frames(ctx: Context, opened: Image.Image) -> tuple[list[Frame], list[Frame]]:
    """Every frame that has the first one's size; of an MPO (a phone's photograph) the first alone."""
    pictures: list[Frame] = []
    masks: list[Frame] = []
    size: tuple[int, int] | None = None
    for raw in ImageSequence.Iterator(opened):
        ctx.checkpoint()
        ctx.limits.check_frame(*raw.size)
        frame = _forgiving(_upright, raw)
        if frame.mode == "I":
            frame = frame.point(lambda level: level * (1 / 255))
        size = size or frame.size
        if frame.size == size:
            pictures.append(frame.convert("RGB").split())
            masks.append((_mask(frame),))
            Batch(tuple(pictures)).check(ctx.limits)
        if opened.format == "MPO":
            break
    return pictures, masks


def _upright(frame: Image.Image) -> Image.Image:
    turned = ImageOps.exif_transpose(frame)
    turned.load()
    return turned


def _mask(frame: Image.Image) -> Plane:
    """1 where the picture is transparent; 64x64 zeros where it has no transparency."""
    if "A" in frame.getbands():
        return scaled(frame.getchannel("A"), -1.0, 1.0)
    if frame.mode == "P" and "transparency" in frame.info:
        return scaled(frame.convert("RGBA").getchannel("A"), -1.0, 1.0)
    return constant(0.0, 64, 64)


NODES = [
    Node(
        name="LoadImage",
        display_name="Load Image",
        category="image",
        module="nodes",
        inputs={"image": Input("COMBO", {"image_upload": True}, from_inputs=True)},
        outputs=("IMAGE", "MASK"),
        run=load_image,
        fingerprint=fingerprint,
        validate=validate,
        validates=frozenset({"image"}),
    )
]
