"""Nodes that move pixels about or change a picture's size."""

from __future__ import annotations

from PIL import Image

from handlers.engine.batch import Batch
from handlers.engine.context import Context
from handlers.engine.planes import Plane, as_float, calculate, float32, from_column, from_row
from handlers.engine.resample import METHODS, center_crop_box
from handlers.engine.schema import MAX_RESOLUTION, Node, Output, choice, integer, link, number

_TURNS = {
    "90": Image.Transpose.ROTATE_270,  # ComfyUI turns clockwise, Pillow the other way
    "180": Image.Transpose.ROTATE_180,
    "270": Image.Transpose.ROTATE_90,
}


def rescaled(ctx: Context, batch: Batch, size: tuple[int, int], method: str, *, center: bool) -> Batch:
    """The batch in another (width, height); the centre of it that has those proportions, or all of it."""
    resizer = ctx.resizer
    width, height = size

    def change(plane: Plane) -> Plane:
        part = plane.crop(center_crop_box(plane.size, width, height)) if center else plane
        return resizer.resize(part, width, height, method)

    return batch.map(change)


def image_scale(
    ctx: Context, *, image: Batch, upscale_method: str, width: int, height: int, crop: str
) -> Output:
    """A new size; a side of 0 follows from the other and the proportions."""
    if width == 0 and height == 0:
        return Output((image,))
    if width == 0:
        width = max(1, round(image.width * height / image.height))
    elif height == 0:
        height = max(1, round(image.height * width / image.width))
    return Output((rescaled(ctx, image, (width, height), upscale_method, center=crop == "center"),))


def image_scale_by(ctx: Context, *, image: Batch, upscale_method: str, scale_by: float) -> Output:
    """A multiple of the size."""
    size = (round(image.width * scale_by), round(image.height * scale_by))
    return Output((rescaled(ctx, image, size, upscale_method, center=False),))


def image_crop(_: Context, *, image: Batch, width: int, height: int, x: int, y: int) -> Output:
    """A part; where it reaches over the edge, what there is of it."""
    left, top = min(x, image.width - 1), min(y, image.height - 1)
    box = (left, top, min(left + width, image.width), min(top + height, image.height))
    return Output((image.map(lambda plane: plane.crop(box)),))


def image_flip(_: Context, *, image: Batch, flip_method: str) -> Output:
    """Mirrored."""
    how = Image.Transpose.FLIP_TOP_BOTTOM if flip_method.startswith("x") else Image.Transpose.FLIP_LEFT_RIGHT
    return Output((image.map(lambda plane: plane.transpose(how)),))


def image_rotate(_: Context, *, image: Batch, rotation: str) -> Output:
    """Turned clockwise by right angles."""
    how = _TURNS.get(rotation.split(maxsplit=1)[0])
    return Output((image if how is None else image.map(lambda plane: plane.transpose(how)),))


def pad_for_outpaint(
    ctx: Context, *, image: Batch, left: int, top: int, right: int, bottom: int, feathering: int
) -> Output:
    """A grey border, and a mask of what is new, feathered into the old picture."""
    width, height = left + image.width + right, top + image.height + bottom
    ctx.limits.check_frame(width, height)
    grey = Image.new("F", (width, height), 0.5)

    def padded(plane: Plane) -> Plane:
        canvas = grey.copy()
        canvas.paste(as_float(plane), (left, top))
        return canvas

    soft = _feathered(image.width, image.height, (left, top, right, bottom), feathering)
    mask = Image.new("F", (width, height), 1.0)
    mask.paste(soft, (left, top))
    return Output((image.map(padded), Batch(((mask,),))))


def _feathered(width: int, height: int, borders: tuple[int, int, int, int], feathering: int) -> Plane:
    """The mask over the old picture: 1 at an edge that got a border, 0 from `feathering` pixels on.

    The value falls with the distance to the nearest such edge, so the largest of the row's and the
    column's value is the value.
    """
    if not 0 < feathering * 2 < min(width, height):
        return Image.new("F", (width, height), 0.0)
    left, top, right, bottom = borders

    def values(length: int, *, first: int, last: int) -> list[float]:
        distances = (
            min(i if first else length, length - i if last else length, feathering) for i in range(length)
        )
        return [float32(((feathering - d) / feathering) ** 2) for d in distances]

    tall = from_column(values(height, first=top, last=bottom), width)
    wide = from_row(values(width, first=left, last=right), height)
    return calculate(lambda v: v["max"](v["tall"], v["wide"]), tall=tall, wide=wide)


_BORDER = integer(0, 0, MAX_RESOLUTION, 8)

NODES = [
    Node(
        name="ImageScale",
        display_name="Upscale Image",
        category="image/upscaling",
        module="nodes",
        inputs={
            "image": link("IMAGE"),
            "upscale_method": choice(*METHODS),
            "width": integer(512, 0, MAX_RESOLUTION, 1),
            "height": integer(512, 0, MAX_RESOLUTION, 1),
            "crop": choice("disabled", "center"),
        },
        outputs=("IMAGE",),
        run=image_scale,
    ),
    Node(
        name="ImageScaleBy",
        display_name="Upscale Image By",
        category="image/upscaling",
        module="nodes",
        inputs={
            "image": link("IMAGE"),
            "upscale_method": choice(*METHODS),
            "scale_by": number(1.0, 0.01, 8.0, 0.01),
        },
        outputs=("IMAGE",),
        run=image_scale_by,
    ),
    Node(
        name="ImageCrop",
        display_name="Image Crop",
        category="image/transform",
        module="comfy_extras.nodes_images",
        inputs={
            "image": link("IMAGE"),
            "width": integer(512, 1, MAX_RESOLUTION, 1),
            "height": integer(512, 1, MAX_RESOLUTION, 1),
            "x": integer(0, 0, MAX_RESOLUTION, 1),
            "y": integer(0, 0, MAX_RESOLUTION, 1),
        },
        outputs=("IMAGE",),
        run=image_crop,
    ),
    Node(
        name="ImageFlip",
        display_name="ImageFlip",
        category="image/transform",
        module="comfy_extras.nodes_images",
        inputs={
            "image": link("IMAGE"),
            "flip_method": choice("x-axis: vertically", "y-axis: horizontally"),
        },
        outputs=("IMAGE",),
        run=image_flip,
    ),
    Node(
        name="ImageRotate",
        display_name="ImageRotate",
        category="image/transform",
        module="comfy_extras.nodes_images",
        inputs={
            "image": link("IMAGE"),
            "rotation": choice("none", "90 degrees", "180 degrees", "270 degrees"),
        },
        outputs=("IMAGE",),
        run=image_rotate,
    ),
    Node(
        name="ImagePadForOutpaint",
        display_name="Pad Image for Outpainting",
        category="image",
        module="nodes",
        inputs={
            "image": link("IMAGE"),
            "left": _BORDER,
            "top": _BORDER,
            "right": _BORDER,
            "bottom": _BORDER,
            "feathering": integer(40, 0, MAX_RESOLUTION, 1),
        },
        outputs=("IMAGE", "MASK"),
        run=pad_for_outpaint,
    ),
]
