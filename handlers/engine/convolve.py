"""Gaussian filters as ComfyUI's blur and sharpen nodes apply them.

Small kernels run tap by tap in the order of the convolution that torch's CPU backend runs, each product
fused onto the sum: equal to the last bit. That costs the square of the radius, so larger ones run as a pass
across and a pass down, which is the same filter with other roundings.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import chain

from PIL import Image

from handlers.engine.planes import (
    Plane,
    as_float,
    calculate,
    float32,
    fused_multiply_add,
    scaled,
    take_columns,
    take_rows,
    transposed,
)

EXACT_RADIUS = 2
"""Up to this radius results equal ComfyUI's; beyond, within one level of 255. (At 3, torch's own square
root of a kernel's distances is no longer the nearest float32, so the weights could not be made alike.)"""

_TILE_PIXELS = 24_000

Kernel = list[list[float]]
"""Rows of weights."""


def blur(plane: Plane, radius: int, sigma: float, checkpoint: Callable[[], None]) -> Plane:
    """The plane, blurred; at its borders as if it went on mirrored.

    Args:
        radius: less than either side.
        sigma: in units of the radius.
        checkpoint: raises when the user interrupts.
    """
    if radius <= EXACT_RADIUS:
        return _convolve(plane, gaussian(radius, sigma), checkpoint)
    once = _blur_columns(transposed(as_float(plane)), radius, sigma, checkpoint)
    return _blur_columns(transposed(once), radius, sigma, checkpoint)


def sharpen(
    plane: Plane, radius: int, sigma: float, strength: float, checkpoint: Callable[[], None]
) -> Plane:
    """The plane plus `strength` times its difference from its blur, clipped to 0..1."""
    if radius <= EXACT_RADIUS:
        factor = float32(-strength)
        kernel = [[float32(weight * factor) for weight in row] for row in gaussian(radius, sigma)]
        centre = float32(kernel[radius][radius] - tensor_sum(list(chain.from_iterable(kernel))))
        kernel[radius][radius] = float32(centre + 1.0)
        sharp = _convolve(plane, kernel, checkpoint)
    else:
        keep, drop = float32(1.0 + strength), float32(strength)
        soft = blur(plane, radius, sigma, checkpoint)
        sharp = calculate(lambda v: v["plane"] * keep - v["soft"] * drop, plane=plane, soft=soft)
    return calculate(lambda v: v["max"](v["min"](v["sharp"], 1.0), 0.0), sharp=sharp)


def gaussian(radius: int, sigma: float) -> Kernel:
    """The square kernel, each step of it rounded to float32 as the tensors are."""
    side = 2 * radius + 1
    step = float32(2 / (side - 1))
    line = [float32(step * i - 1) if i < radius else float32(1 - step * (side - 1 - i)) for i in range(side)]
    spread = float32(2.0 * sigma * sigma)

    def height(x: float, y: float) -> float:
        distance = float32(math.sqrt(float32(float32(x * x) + float32(y * y))))
        return float32(math.exp(float32(-float32(distance * distance) / spread)))

    kernel = [[height(x, y) for y in line] for x in line]
    total = tensor_sum(list(chain.from_iterable(kernel)))
    return [[float32(weight / total) for weight in row] for row in kernel]


def tensor_sum(values: Sequence[float]) -> float:
    """The sum of a small float32 tensor in torch's order: eight lanes, four at a time, the tail first."""
    lanes = len(values) // 8
    vectors = [values[8 * i : 8 * i + 8] for i in range(lanes)]
    groups: list[Sequence[float]] = [[0.0] * 8 for _ in range(4)]
    whole = lanes // 4 * 4
    for i, vector in enumerate(vectors):
        group = i % 4 if i < whole else 0
        groups[group] = [float32(a + b) for a, b in zip(groups[group], vector, strict=True)]
    total = 0.0
    for value in values[8 * lanes :]:
        total = float32(total + value)
    for lane in zip(*groups, strict=True):
        partial = lane[0]
        for value in lane[1:]:
            partial = float32(partial + value)
        total = float32(total + partial)
    return total


def _convolve(plane: Plane, kernel: Kernel, checkpoint: Callable[[], None]) -> Plane:
    radius = len(kernel) // 2
    width, height = plane.size
    source = take_columns(take_rows(as_float(plane), _mirror(height, radius)), _mirror(width, radius))
    step = max(1, _TILE_PIXELS // width)
    result = Image.new("F", plane.size)
    for top in range(0, height, step):
        rows = min(step, height - top)
        total: Plane | None = None
        for i, weights in enumerate(kernel):
            checkpoint()
            for j, weight in enumerate(weights):
                part = source.crop((j, top + i, j + width, top + i + rows))
                total = scaled(part, weight) if total is None else fused_multiply_add(part, weight, total)
        if total is not None:
            result.paste(total, (0, top))
    return result


def _blur_columns(plane: Plane, radius: int, sigma: float, checkpoint: Callable[[], None]) -> Plane:
    """The weighted sum of each pixel and those above and below it."""
    width, height = plane.size
    source = take_rows(plane, _mirror(height, radius))
    values = [math.exp(-((i / radius) ** 2) / (2.0 * sigma * sigma)) for i in range(radius + 1)]
    whole = values[0] + 2 * sum(values[1:])
    total = scaled(plane, float32(values[0] / whole))
    for distance in range(1, radius + 1):
        checkpoint()
        above = source.crop((0, radius - distance, width, radius - distance + height))
        below = source.crop((0, radius + distance, width, radius + distance + height))
        total = _with_pair(total, above, below, float32(values[distance] / whole))
    return total


def _with_pair(total: Plane, above: Plane, below: Plane, weight: float) -> Plane:
    return calculate(
        lambda v: v["total"] + (v["above"] + v["below"]) * weight, total=total, above=above, below=below
    )


def _mirror(length: int, radius: int) -> list[int]:
    """The indices of a line that is mirrored at its ends, without repeating the ends."""
    return [*range(radius, 0, -1), *range(length), *range(length - 2, length - 2 - radius, -1)]
