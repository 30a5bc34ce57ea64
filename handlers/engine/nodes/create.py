"""Nodes that make values out of nothing."""

from __future__ import annotations

import sys

from handlers.engine.batch import Batch
from handlers.engine.context import Context
from handlers.engine.limits import LimitExceeded
from handlers.engine.planes import constant
from handlers.engine.schema import MAX_RESOLUTION, Input, Node, Output, integer, number

_SIDE = integer(512, 1, MAX_RESOLUTION, 1)


def empty_image(ctx: Context, *, width: int, height: int, batch_size: int = 1, color: int = 0) -> Output:
    """Pictures of one colour, given as 0xRRGGBB."""
    _check_shape(ctx, [batch_size, height, width, 1])
    levels = [(color >> shift) & 0xFF for shift in (16, 8, 0)]
    planes = {level: constant(level / 255, width, height) for level in set(levels)}
    return Output((Batch((tuple(planes[level] for level in levels),) * batch_size),))


def solid_mask(ctx: Context, *, value: float, width: int, height: int) -> Output:
    """A mask of one value."""
    _check_shape(ctx, [1, height, width])
    return Output((Batch(((constant(value, width, height),),)),))


def primitive(_: Context, *, value: float | str) -> Output:
    """The value itself."""
    return Output((value,))


def _check_shape(ctx: Context, shape: list[int]) -> None:
    """Linked numbers are not validated against the declared bounds, so the shape may be anything."""
    for size in shape:
        if size < 0:
            raise RuntimeError(f"Trying to create tensor with negative dimension {size}: {shape}")
    if 0 in shape:
        raise LimitExceeded("a picture without pixels: the built-in engine makes none")
    ctx.limits.check_frame(shape[2], shape[1])
    if shape[0] > ctx.limits.frames:
        raise LimitExceeded(f"{shape[0]} pictures: the built-in engine makes {ctx.limits.frames} at most")


def _primitive(kind: str, display_name: str, **options: object) -> Node:
    return Node(
        name=f"Primitive{display_name}",
        display_name=display_name,
        category="utils/primitive",
        module="comfy_extras.nodes_primitive",
        inputs={"value": Input(kind, options)},
        outputs=(kind,),
        run=primitive,
        v3=True,
    )


NODES = [
    Node(
        name="EmptyImage",
        display_name="EmptyImage",
        category="image",
        module="nodes",
        inputs={
            "width": _SIDE,
            "height": _SIDE,
            "batch_size": integer(1, 1, 4096),
            "color": integer(0, 0, 0xFFFFFF, 1, display="color"),
        },
        outputs=("IMAGE",),
        run=empty_image,
    ),
    Node(
        name="SolidMask",
        display_name="SolidMask",
        category="mask",
        module="comfy_extras.nodes_mask",
        inputs={"value": number(1.0, 0.0, 1.0, 0.01), "width": _SIDE, "height": _SIDE},
        outputs=("MASK",),
        run=solid_mask,
    ),
    _primitive("INT", "Int", min=-sys.maxsize, max=sys.maxsize, control_after_generate=True),
    _primitive("FLOAT", "Float", min=-sys.maxsize, max=sys.maxsize),
    _primitive("STRING", "String", multiline=False),
]
