"""Resizing as ComfyUI's `common_upscale` does it, to the last bit where Pillow's arithmetic allows.

Each method follows the CPU kernel that torch 2.14 runs for a float32 picture (AVX2 build, two threads or
more), found by comparing outputs: which positions are read, in which order the products are added, and
where a multiplication and an addition are fused. None of them smooths when it shrinks a picture, except
`area` and `lanczos`; that is ComfyUI's own behaviour.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

from PIL import Image

from handlers.engine.limits import Limits
from handlers.engine.planes import (
    Plane,
    Rows,
    as_bytes,
    as_float,
    calculate,
    constant_value,
    float32,
    from_column,
    from_row,
    fused_multiply_add,
    take_columns,
    take_rows,
    transposed,
)

METHODS = ["nearest-exact", "bilinear", "area", "bicubic", "lanczos"]

_TILE_PIXELS = 24_000  # temporaries stay under 128 KiB: in the cache, and below malloc's mmap threshold
_SMALL_OUTPUT = 128  # up to this width + height torch runs another bilinear kernel
_PLANS = 16  # sizes whose positions and weights are kept: batches and jobs resize alike
_LARGEST_EXACT_WINDOW = 1024  # pixels that `area` adds up one by one
_A = -0.75  # torch's bicubic parameter


class Resizer(NamedTuple):
    """How to resize a plane, and when to stop: `checkpoint` raises when the user interrupts."""

    limits: Limits
    checkpoint: Callable[[], None]

    def resize(self, plane: Plane, width: int, height: int, method: str) -> Plane:
        """A plane of the new size.

        Raises:
            RuntimeError, ValueError: a size of nothing, worded as ComfyUI words it.
            LimitExceeded: the result, or the picture half way to it, is too large.
        """
        _check_size(plane, width, height, method)
        self.limits.check_frame(width, height)
        if method == "lanczos":
            return as_bytes(plane).resize((width, height), Image.Resampling.LANCZOS)
        if plane.size == (width, height):
            return plane
        if method == "nearest-exact":
            columns = _nearest(plane.width, width)
            return take_rows(take_columns(plane, columns), _nearest(plane.height, height))
        if method == "area":
            return self._area(plane, width, height)
        self.limits.check_frame(width, plane.height)
        if method == "bilinear" and width + height <= _SMALL_OUTPUT:
            return _bilinear_small(plane, width, height)
        taps = _bilinear if method == "bilinear" else _bicubic
        across = transposed(self._weigh(transposed(plane), taps(plane.width, width)))
        return self._weigh(across, taps(plane.height, height), constant=constant_value(plane) is not None)

    def _weigh(self, plane: Plane, taps: _Taps, *, constant: bool | None = None) -> Plane:
        """Make each row of the result from the rows and weights of its taps.

        Args:
            constant: all rows of the plane are alike (default: look), so rows of equal weights come out
                alike and each kind is calculated once.
        """
        if constant or (constant is None and constant_value(plane) is not None):
            kinds = {weights: i for i, weights in enumerate(taps.weights)}
            number = {weights: n for n, weights in enumerate(kinds)}
            distinct = _Taps([taps.rows[i] for i in kinds.values()], list(kinds))
            return take_rows(self._weigh_tiles(plane, distinct), [number[w] for w in taps.weights])
        return self._weigh_tiles(plane, taps)

    def _weigh_tiles(self, plane: Plane, taps: _Taps) -> Plane:
        rows = Rows(as_float(plane))
        count = len(taps.rows)
        step = max(1, _TILE_PIXELS // plane.width)
        tiles = []
        for start in range(0, count, step):
            self.checkpoint()
            part = slice(start, start + step)
            values = [rows.take(indices) for indices in zip(*taps.rows[part], strict=True)]
            weights = [from_column(column, plane.width) for column in zip(*taps.weights[part], strict=True)]
            tiles.append(_chain(values, weights).tobytes())
        return Image.frombytes("F", (plane.width, count), b"".join(tiles))

    def _area(self, plane: Plane, width: int, height: int) -> Plane:
        """The mean of each window, its pixels added one by one, row by row.

        Very large windows are added up row by row and then down: as many steps as the picture has rows
        and columns, not pixels, for a last bit that may differ.
        """
        across, columns = _windows(plane.width, width)
        down, rows = _windows(plane.height, height)
        if columns * rows > _LARGEST_EXACT_WINDOW and plane.height != height:
            return self._area(self._area(plane, width, plane.height), width, height)
        source = _with_zero_edge(as_float(plane))
        strips = [Rows(take_columns(source, [w[k] for w in across])) for k in range(columns)]
        step = max(1, _TILE_PIXELS // width)
        tiles = []
        for start in range(0, height, step):
            part = down[start : start + step]
            total: Plane | None = None
            for k in range(rows):
                self.checkpoint()
                for strip in strips:
                    taken = strip.take([window[k] for window in part])
                    total = taken if total is None else _added(total, taken)
            if total is not None:
                tall = from_column([_filled(w, plane.height) for w in part], width)
                wide = from_row([_filled(w, plane.width) for w in across], len(part))
                mean = calculate(
                    lambda v: v["total"] / v["tall"] / v["wide"], total=total, tall=tall, wide=wide
                )
                tiles.append(mean.tobytes())
        return Image.frombytes("F", (width, height), b"".join(tiles))


def center_crop_box(size: tuple[int, int], width: int, height: int) -> tuple[int, int, int, int]:
    """The largest centred part of a picture that has the new size's proportions."""
    old_width, old_height = size
    old_aspect, new_aspect = old_width / old_height, width / height
    x = y = 0
    if old_aspect > new_aspect:
        x = round((old_width - old_width * (new_aspect / old_aspect)) / 2)
    elif old_aspect < new_aspect:
        y = round((old_height - old_height * (old_aspect / new_aspect)) / 2)
    return (x, y, old_width - x, old_height - y)


class _Taps(NamedTuple):
    """For each row of the result: which rows it reads, and how much of each."""

    rows: list[tuple[int, ...]]
    weights: list[tuple[float, ...]]


def _check_size(plane: Plane, width: int, height: int, method: str) -> None:
    if width > 0 and height > 0:
        return
    if method == "lanczos":
        raise ValueError("height and width must be > 0")
    raise RuntimeError(
        "Input and output sizes should be greater than 0, but got input"
        f" (H: {plane.height}, W: {plane.width}) output (H: {height}, W: {width})"
    )


@lru_cache(_PLANS)
def _nearest(before: int, after: int) -> list[int]:
    scale = float32(before / after)
    return [min(math.floor(float32((i + 0.5) * scale)), before - 1) for i in range(after)]


def _position(scale: float, index: int) -> float:
    return float32(scale * (index + 0.5) - 0.5)  # exact in double, so this is the kernel's one rounding


@lru_cache(_PLANS)
def _bilinear(before: int, after: int) -> _Taps:
    scale = float32(before / after)
    taps = _Taps([], [])
    for i in range(after):
        position = max(_position(scale, i), 0.0)
        low = min(math.floor(position), before - 1)
        share = min(max(float32(position - low), 0.0), 1.0)
        taps.rows.append((low, min(low + 1, before - 1)))
        taps.weights.append((float32(1.0 - share), share))
    return taps


@lru_cache(_PLANS)
def _bicubic(before: int, after: int) -> _Taps:
    scale = float32(before / after)
    taps = _Taps([], [])
    for i in range(after):
        position = _position(scale, i)
        low = math.floor(position)
        t = min(max(float32(position - low), 0.0), 1.0)
        rest = float32(1.0 - t)
        taps.rows.append(tuple(min(max(low + k, 0), before - 1) for k in (-1, 0, 1, 2)))
        far, near = float32(t + 1.0), float32(rest + 1.0)
        taps.weights.append((_cubic_far(far), _cubic_near(t), _cubic_near(rest), _cubic_far(near)))
    return taps


def _cubic_near(x: float) -> float:
    """((A + 2) x - (A + 3)) x² + 1, every step rounded."""
    step = float32(float32((_A + 2) * x) - (_A + 3))
    return float32(float32(float32(step * x) * x) + 1.0)


def _cubic_far(x: float) -> float:
    """((A x - 5 A) x + 8 A) x - 4 A, the first two steps fused."""
    step = float32(_A * x - 5 * _A)
    step = float32(step * x + 8 * _A)
    return float32(float32(step * x) - 4 * _A)


def _chain(values: Sequence[Plane], weights: Sequence[Plane]) -> Plane:
    """The weighted sum in the kernel's order: the second product first, the others fused onto it."""
    total = calculate(lambda v: v["value"] * v["weight"], value=values[1], weight=weights[1])
    for k in (0, *range(2, len(values))):
        total = fused_multiply_add(values[k], weights[k], total)
    return total


def _bilinear_small(plane: Plane, width: int, height: int) -> Plane:
    """The kernel for small results: four products of four weights, in one chain."""
    across, down = _bilinear(plane.width, width), _bilinear(plane.height, height)
    source = as_float(plane)
    values, weights = [], []
    for k, m in ((0, 0), (0, 1), (1, 0), (1, 1)):
        row = take_rows(source, [rows[k] for rows in down.rows])
        values.append(take_columns(row, [columns[m] for columns in across.rows]))
        tall = from_column([w[k] for w in down.weights], width)
        wide = from_row([w[m] for w in across.weights], height)
        weights.append(calculate(lambda v: v["tall"] * v["wide"], tall=tall, wide=wide))
    return _chain(values, weights)


@lru_cache(_PLANS)
def _windows(before: int, after: int) -> tuple[list[tuple[int, ...]], int]:
    """The indices that each result averages, filled up with `before` (the zero edge), and their number."""
    spans = [(i * before // after, -(-(i + 1) * before // after)) for i in range(after)]
    longest = max(end - start for start, end in spans)
    return [(*range(start, end), *([before] * (longest - (end - start)))) for start, end in spans], longest


def _filled(window: tuple[int, ...], edge: int) -> float:
    return float(sum(index != edge for index in window))


def _with_zero_edge(plane: Plane) -> Plane:
    """The plane with a row and a column of zeros at its end, for windows to be filled up with."""
    return plane.crop((0, 0, plane.width + 1, plane.height + 1))


def _added(a: Plane, b: Plane) -> Plane:
    return calculate(lambda v: v["a"] + v["b"], a=a, b=b)
