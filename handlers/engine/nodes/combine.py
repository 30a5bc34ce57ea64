"""Nodes that put several pictures together."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from handlers.engine.batch import Batch, Frame, stretched, zip_map
from handlers.engine.context import Context
from handlers.engine.limits import LimitExceeded
from handlers.engine.nodes.transform import rescaled
from handlers.engine.planes import Plane, constant, same_mode
from handlers.engine.schema import Input, Node, Output, choice, integer, link

_COLOURS: dict[str, tuple[float, float, float]] = {
    "white": (1.0, 1.0, 1.0),
    "black": (0.0, 0.0, 0.0),
    "red": (1.0, 0.0, 0.0),
    "green": (0.0, 1.0, 0.0),
    "blue": (0.0, 0.0, 1.0),
}


def image_batch(ctx: Context, *, image1: Batch, image2: Batch) -> Output:
    """Both batches in one; the second takes the first one's size."""
    if image1.size != image2.size:
        image2 = rescaled(ctx, image2, image1.size, "bilinear", center=True)
    return Output((Batch((*image1.frames, *image2.frames)),))


def repeat_batch(ctx: Context, *, image: Batch, amount: int) -> Output:
    """The batch, several times over."""
    if len(image.frames) * amount > ctx.limits.frames:
        raise LimitExceeded(
            f"{len(image.frames) * amount} pictures: the built-in engine makes {ctx.limits.frames} at most"
        )
    return Output((Batch(image.frames * amount),))


def image_stitch(
    ctx: Context,
    *,
    image1: Batch,
    direction: str,
    match_image_size: bool,
    spacing_width: int,
    spacing_color: str,
    image2: Batch | None = None,
) -> Output:
    """Two pictures side by side, or one above the other.

    Sizes are matched by scaling the second picture, else by a border in the spacing's colour (black for
    red, green and blue).
    """
    if image2 is None:
        return Output((image1,))
    sideways = direction in ("left", "right")
    colour = _COLOURS[spacing_color]
    count = max(len(image1.frames), len(image2.frames))
    image1, image2 = (Batch(stretched(image.frames, count)) for image in (image1, image2))
    if match_image_size:
        image2 = _matched(ctx, image1, image2, sideways=sideways)
    else:
        fill = colour[0] if len(set(colour)) == 1 else 0.0
        image1, image2 = _evened(image1, image2, fill, sideways=sideways)
    first, second = (image2, image1) if direction in ("left", "up") else (image1, image2)
    gap = spacing_width + spacing_width % 2
    if sideways:
        ctx.limits.check_frame(first.width + gap + second.width, first.height)
        strip = (gap, first.height)
    else:
        ctx.limits.check_frame(first.width, first.height + gap + second.height)
        strip = (first.width, gap)
    if not gap:
        return Output((zip_map(first, second, lambda a, b: _joined([a, b], sideways=sideways)),))
    spacing: Frame = tuple(constant(level, *strip) for level in colour)
    frames = [
        tuple(_joined(planes, sideways=sideways) for planes in zip(left, spacing, right, strict=True))
        for left, right in zip(first.frames, second.frames, strict=True)
    ]
    return Output((Batch(tuple(frames)),))


def _matched(ctx: Context, first: Batch, second: Batch, *, sideways: bool) -> Batch:
    aspect = second.width / second.height
    if sideways:
        size = (int(first.height * aspect), first.height)
    else:
        size = (first.width, int(first.width / aspect))
    return rescaled(ctx, second, size, "lanczos", center=False)


def _evened(first: Batch, second: Batch, fill: float, *, sideways: bool) -> tuple[Batch, Batch]:
    """Both with the larger height (or width), the smaller one centred on a border."""
    if sideways:
        height = max(first.height, second.height)
        return _bordered(first, first.width, height, fill), _bordered(second, second.width, height, fill)
    width = max(first.width, second.width)
    return _bordered(first, width, first.height, fill), _bordered(second, width, second.height, fill)


def _bordered(batch: Batch, width: int, height: int, fill: float) -> Batch:
    if batch.size == (width, height):
        return batch
    corner = ((width - batch.width) // 2, (height - batch.height) // 2)

    def change(plane: Plane) -> Plane:
        canvas, content = same_mode([constant(fill, width, height), plane])
        canvas.paste(content, corner)
        return canvas

    return batch.map(change)


def _joined(planes: Sequence[Plane], *, sideways: bool) -> Plane:
    """Planes of one height next to each other, or of one width below each other."""
    parts = same_mode(planes)
    lengths = [part.width if sideways else part.height for part in parts]
    size = (sum(lengths), parts[0].height) if sideways else (parts[0].width, sum(lengths))
    canvas = Image.new(parts[0].mode, size)
    position = 0
    for part, length in zip(parts, lengths, strict=True):
        canvas.paste(part, (position, 0) if sideways else (0, position))
        position += length
    return canvas


NODES = [
    Node(
        name="ImageBatch",
        display_name="Batch Images",
        category="image",
        module="nodes",
        inputs={"image1": link("IMAGE"), "image2": link("IMAGE")},
        outputs=("IMAGE",),
        run=image_batch,
    ),
    Node(
        name="RepeatImageBatch",
        display_name="RepeatImageBatch",
        category="image/batch",
        module="comfy_extras.nodes_images",
        inputs={"image": link("IMAGE"), "amount": integer(1, 1, 4096)},
        outputs=("IMAGE",),
        run=repeat_batch,
    ),
    Node(
        name="ImageStitch",
        display_name="Image Stitch",
        category="image/transform",
        module="comfy_extras.nodes_images",
        description=(
            "\nStitches image2 to image1 in the specified direction.\n"
            "If image2 is not provided, returns image1 unchanged.\n"
            "Optional spacing can be added between images.\n"
        ),
        inputs={
            "image1": link("IMAGE"),
            "direction": choice("right", "down", "left", "up", default="right"),
            "match_image_size": Input("BOOLEAN", {"default": True}),
            "spacing_width": integer(0, 0, 1024, 2),
            "spacing_color": choice("white", "black", "red", "green", "blue", default="white"),
        },
        optional={"image2": link("IMAGE")},
        outputs=("IMAGE",),
        run=image_stitch,
    ),
]
