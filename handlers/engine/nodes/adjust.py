"""Nodes that calculate each pixel from the pixels in its place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from handlers.engine.batch import Batch, zip_map
from handlers.engine.context import Context
from handlers.engine.nodes.transform import rescaled
from handlers.engine.planes import Plane, calculate, float32, scaled
from handlers.engine.schema import Node, Output, choice, choice_v3, link, number

_CHANNELS = ("red", "green", "blue", "alpha")


def image_invert(_: Context, *, image: Batch) -> Output:
    """1 minus each value."""
    return Output((image.map(lambda plane: scaled(plane, -1.0, 1.0)),))


def mask_to_image(_: Context, *, mask: Batch) -> Output:
    """A grey picture of the mask."""
    return Output((Batch(tuple(frame * 3 for frame in mask.frames)),))


def image_to_mask(_: Context, *, image: Batch, channel: str) -> Output:
    """One channel as a mask. Pictures here have no alpha, and the error says so as ComfyUI does."""
    index = _CHANNELS.index(channel)
    if index >= len(image.frames[0]):
        raise IndexError(f"index {index} is out of bounds for dimension 3 with size {len(image.frames[0])}")
    return Output((Batch(tuple((frame[index],) for frame in image.frames)),))


def image_blend(
    ctx: Context, *, image1: Batch, image2: Batch, blend_factor: float, blend_mode: str
) -> Output:
    """The second picture over the first, in the first one's size."""
    mix = _BLENDS.get(blend_mode)
    if mix is None:
        raise ValueError(f"Unsupported blend mode: {blend_mode}")
    if image1.size != image2.size:
        image2 = rescaled(ctx, image2, image1.size, "bicubic", center=True)
    keep, add = float32(1 - blend_factor), float32(blend_factor)

    def blended(first: Plane, second: Plane) -> Plane:
        ctx.checkpoint()
        mixed = calculate(lambda v: mix(v["a"], v["b"], v), a=first, b=second)
        return calculate(
            lambda v: v["max"](v["min"](v["a"] * keep + v["mixed"] * add, 1.0), 0.0), a=first, mixed=mixed
        )

    return Output((zip_map(image1, image2, blended),))


def _where(condition: Any, yes: Any, no: Any) -> Any:
    """`yes` where the condition is 1, `no` where it is 0; exact, since both are finite."""
    return condition * yes + (1.0 - condition) * no


def _overlay(a: Any, b: Any, _: dict[str, Any]) -> Any:
    return _where(a <= 0.5, a * 2.0 * b, 1.0 - (1.0 - a) * 2.0 * (1.0 - b))


def _soft_light(a: Any, b: Any, _: dict[str, Any]) -> Any:
    darker = a - (1.0 - b * 2.0) * a * (1.0 - a)
    curve = _where(a <= 0.25, ((a * 16.0 - 12.0) * a + 4.0) * a, a**0.5)
    lighter = a + (b * 2.0 - 1.0) * (curve - a)
    return _where(b <= 0.5, darker, lighter)


_BLENDS: dict[str, Callable[[Any, Any, dict[str, Any]], Any]] = {
    "normal": lambda _a, b, _: b,
    "multiply": lambda a, b, _: a * b,
    "screen": lambda a, b, _: 1.0 - (1.0 - a) * (1.0 - b),
    "overlay": _overlay,
    "soft_light": _soft_light,
    "difference": lambda a, b, _: a - b,
}

NODES = [
    Node(
        name="ImageInvert",
        display_name="Invert Image",
        category="image",
        module="nodes",
        inputs={"image": link("IMAGE")},
        outputs=("IMAGE",),
        run=image_invert,
    ),
    Node(
        name="MaskToImage",
        display_name="Convert Mask to Image",
        category="mask",
        module="comfy_extras.nodes_mask",
        inputs={"mask": link("MASK")},
        outputs=("IMAGE",),
        run=mask_to_image,
    ),
    Node(
        name="ImageToMask",
        display_name="Convert Image to Mask",
        category="mask",
        module="comfy_extras.nodes_mask",
        inputs={"image": link("IMAGE"), "channel": choice(*_CHANNELS)},
        outputs=("MASK",),
        run=image_to_mask,
    ),
    Node(
        name="ImageBlend",
        display_name=None,
        category="image/postprocessing",
        module="comfy_extras.nodes_post_processing",
        inputs={
            "image1": link("IMAGE", {}),
            "image2": link("IMAGE", {}),
            "blend_factor": number(0.5, 0.0, 1.0, 0.01),
            "blend_mode": choice_v3(*_BLENDS),
        },
        outputs=("IMAGE",),
        run=image_blend,
        v3=True,
    ),
]
