"""Nodes that calculate each pixel from its neighbourhood."""

from __future__ import annotations

import math

from PIL import Image, ImageChops

from handlers.engine.batch import Batch
from handlers.engine.context import Context
from handlers.engine.convolve import blur, sharpen
from handlers.engine.planes import Plane, calculate, take_columns, take_rows
from handlers.engine.schema import Node, Output, choice_v3, integer, link, number


def image_blur(ctx: Context, *, image: Batch, blur_radius: int, sigma: float) -> Output:
    """A Gaussian blur; `sigma` is relative to the radius."""
    if blur_radius == 0:
        return Output((image,))
    _check_mirror(image, blur_radius)
    return Output((image.map(lambda plane: blur(plane, blur_radius, sigma, ctx.checkpoint)),))


def image_sharpen(ctx: Context, *, image: Batch, sharpen_radius: int, sigma: float, alpha: float) -> Output:
    """The picture plus its difference from a blurred copy, ten times `alpha` strong."""
    if sharpen_radius == 0:
        return Output((image,))
    _check_mirror(image, sharpen_radius)
    return Output(
        (image.map(lambda plane: sharpen(plane, sharpen_radius, sigma, alpha * 10, ctx.checkpoint)),)
    )


def _check_mirror(image: Batch, radius: int) -> None:
    for dimension, size in ((3, image.width), (2, image.height)):
        if radius >= size:
            raise RuntimeError(
                "Argument #4: Padding size should be less than the corresponding input dimension, but got:"
                f" padding ({radius}, {radius}) at dimension {dimension} of input"
                f" [{len(image.frames)}, 3, {image.height}, {image.width}]"
            )


def image_quantize(ctx: Context, *, image: Batch, colors: int, dither: str) -> Output:
    """The picture in its own best palette of `colors` colours."""
    dithers = {"none": Image.Dither.NONE, "floyd-steinberg": Image.Dither.FLOYDSTEINBERG}
    done: dict[tuple[int, ...], tuple[Plane, ...]] = {}
    for frame in image.frames:
        ctx.checkpoint()
        key = tuple(map(id, frame))
        if key in done:
            continue
        picture = Image.merge("RGB", [_wrapped_bytes(plane) for plane in frame])
        palette = picture.quantize(colors=colors)
        if dither in dithers:
            reduced = picture.quantize(palette=palette, dither=dithers[dither])
        elif dither.startswith("bayer-"):
            reduced = _bayer(picture, palette, int(dither.removeprefix("bayer-")))
        else:
            raise ValueError(f"Unsupported dither: {dither}")
        done[key] = reduced.convert("RGB").split()
    return Output((Batch(tuple(done[tuple(map(id, frame))] for frame in image.frames)),))


def _wrapped_bytes(plane: Plane) -> Plane:
    """Bytes as this node alone makes them: what is above 255 or below 0 starts again at the other end."""
    if plane.mode == "L":
        return plane
    return calculate(lambda v: v["convert"](v["int"](v["plane"] * 255.0) & 255, "L"), plane=plane)


def _bayer(picture: Image.Image, palette: Image.Image, order: int) -> Image.Image:
    """Ordered dithering: each pixel is shifted by its place in a matrix, then takes the nearest colour."""
    spread = 2 * 256 / (len(palette.getpalette() or ()) // 3)
    matrix = [
        [math.floor(spread * cell + 0.5) for cell in row] for row in _bayer_matrix(int(math.log2(order)))
    ]
    shifted = []
    for sign, change in ((1, ImageChops.add), (-1, ImageChops.subtract)):
        tile = Image.new("L", (order, order))
        tile.putdata([min(max(sign * cell, 0), 255) for row in matrix for cell in row])
        shifted.append((change, _tiled(tile, picture.size)))
    planes = []
    for plane in picture.split():
        for change, pattern in shifted:
            plane = change(plane, pattern)  # noqa: PLW2901 - both shifts, in turn
        planes.append(plane)
    return Image.merge("RGB", planes).quantize(palette=palette, dither=Image.Dither.NONE)


def _bayer_matrix(n: int) -> list[list[float]]:
    """The threshold matrix of 2**n x 2**n cells, around zero."""
    if n == 0:
        return [[0.0]]
    q = 4**n
    smaller = [[q * cell for cell in row] for row in _bayer_matrix(n - 1)]

    def beside(left: float, right: float) -> list[list[float]]:
        return [[(c + left) / q for c in row] + [(c + right) / q for c in row] for row in smaller]

    return beside(-1.5, 0.5) + beside(1.5, -0.5)


def _tiled(tile: Image.Image, size: tuple[int, int]) -> Image.Image:
    across = [x % tile.width for x in range(size[0])]
    down = [y % tile.height for y in range(size[1])]
    return take_rows(take_columns(tile, across), down)


_RADIUS = integer(1, 1, 31, 1)

NODES = [
    Node(
        name="ImageBlur",
        display_name=None,
        category="image/postprocessing",
        module="comfy_extras.nodes_post_processing",
        inputs={
            "image": link("IMAGE", {}),
            "blur_radius": _RADIUS,
            "sigma": number(1.0, 0.1, 10.0, 0.1),
        },
        outputs=("IMAGE",),
        run=image_blur,
        v3=True,
    ),
    Node(
        name="ImageSharpen",
        display_name=None,
        category="image/postprocessing",
        module="comfy_extras.nodes_post_processing",
        inputs={
            "image": link("IMAGE", {}),
            "sharpen_radius": _RADIUS,
            "sigma": number(1.0, 0.1, 10.0, 0.01),
            "alpha": number(1.0, 0.0, 5.0, 0.01),
        },
        outputs=("IMAGE",),
        run=image_sharpen,
        v3=True,
    ),
    Node(
        name="ImageQuantize",
        display_name=None,
        category="image/postprocessing",
        module="comfy_extras.nodes_post_processing",
        inputs={
            "image": link("IMAGE", {}),
            "colors": integer(256, 1, 256, 1),
            "dither": choice_v3("none", "floyd-steinberg", "bayer-2", "bayer-4", "bayer-8", "bayer-16"),
        },
        outputs=("IMAGE",),
        run=image_quantize,
        v3=True,
    ),
]
