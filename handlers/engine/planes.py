"""float32 arithmetic on single-band pictures, with Pillow alone.

ComfyUI keeps pictures as float32 tensors. Here a plane is one band of one picture, in one of two forms:

- mode "L": the byte k stands for the float32 nearest to k/255. Loading, drawing and 8-bit filters make
  these; moving pixels about keeps them;
- mode "F": the float32 values themselves, once arithmetic has made them.

Both mean the same numbers, and every function takes either. Pillow's "F" arithmetic rounds each operation
to float32 exactly as an elementwise tensor operation does; `fused_multiply_add` adds the one operation that
Pillow lacks and that ComfyUI's resampling kernels use.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image, ImageMath

Plane = Image.Image
"""One band: mode "L" or "F"."""

_FLOAT = struct.Struct("<f")


def float32(value: float) -> float:
    """The nearest float32, as a Python float."""
    return float(_FLOAT.unpack(_FLOAT.pack(value))[0])


BYTE_VALUES = [float32(k / 255) for k in range(256)]
"""The number that each byte of an "L" plane stands for."""


def as_float(plane: Plane) -> Plane:
    """The same numbers in mode "F"."""
    return plane if plane.mode == "F" else plane.point(BYTE_VALUES, "F")


def as_bytes(plane: Plane) -> Plane:
    """The numbers times 255, clipped to a byte and truncated: what saving a tensor does.

    An "L" plane comes back as it is: 255 * (k/255) in float32 truncates to k for every k.
    """
    return plane if plane.mode == "L" else scaled(plane, 255.0).convert("L")


def scaled(plane: Plane, factor: float, offset: float = 0.0) -> Plane:
    """`plane * factor + offset` with one rounding; mode "F".

    Args:
        factor: a float32 (see `float32`), or the rounding is not the tensor's.
    """
    return as_float(plane).point(lambda value: value * factor + offset)


def calculate(formula: Callable[[dict[str, Any]], Any], **planes: Plane) -> Plane:
    """A formula over planes of one size, each operation rounded to float32."""
    floats = {name: as_float(plane) for name, plane in planes.items()}
    result: Plane = ImageMath.lambda_eval(formula, **floats)
    return result


def fused_multiply_add(a: Plane, b: Plane | float, c: Plane) -> Plane:
    """`a * b + c` rounded once, as a processor's FMA does.

    Products are made exact by splitting each factor into two halves of 12 bits (Dekker 1971), the sum's
    error is recovered (Knuth's two-sum), and both errors are added last.

    Args:
        b: a plane, or a float32 that stands for one.
    """
    if isinstance(b, int | float):
        halves = _number_halves(b)
        return calculate(lambda v: _exact_multiply_add(v["a"], b, halves, v["c"]), a=a, c=c)
    return calculate(lambda v: _exact_multiply_add(v["a"], v["b"], _halves(v["b"]), v["c"]), a=a, b=b, c=c)


def _exact_multiply_add(a: Any, b: Any, b_halves: tuple[Any, Any], c: Any) -> Any:
    a_high, a_low = _halves(a)
    b_high, b_low = b_halves
    product = a * b
    product_error = ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low
    total = product + c
    rest = total - product
    total_error = (product - (total - rest)) + (c - rest)
    return total + (total_error + product_error)


def _halves(x: Any) -> tuple[Any, Any]:
    scaled_up = x * 4097.0  # 2**12 + 1
    high = scaled_up - (scaled_up - x)
    return high, x - high


def _number_halves(x: float) -> tuple[float, float]:
    scaled_up = float32(x * 4097.0)
    high = float32(scaled_up - float32(scaled_up - x))
    return high, float32(x - high)


def constant(value: float, width: int, height: int) -> Plane:
    """A plane of one float32 value; mode "L" where a byte stands for it."""
    level = round(value * 255)
    if 0 <= level <= 255 and BYTE_VALUES[level] == float32(value):
        return Image.new("L", (width, height), level)
    return Image.new("F", (width, height), value)


def constant_value(plane: Plane) -> float | None:
    """The value of a plane that has only one, else None."""
    low, high = plane.getextrema()
    if low != high or not isinstance(low, int | float):
        return None
    return BYTE_VALUES[int(low)] if plane.mode == "L" else float(low)


def same_mode(planes: Sequence[Plane]) -> list[Plane]:
    """The planes in one mode, so that they can be pasted into each other."""
    if len({plane.mode for plane in planes}) > 1:
        return [as_float(plane) for plane in planes]
    return list(planes)


def transposed(plane: Plane) -> Plane:
    """Rows for columns."""
    return plane.transpose(Image.Transpose.TRANSPOSE)


class Rows:
    """A plane's rows, to be taken in any order, any number of times."""

    def __init__(self, plane: Plane) -> None:
        self.mode = plane.mode
        self.width = plane.width
        self._stride = plane.width * (4 if plane.mode == "F" else 1)
        self._raw = memoryview(plane.tobytes())

    def take(self, indices: Sequence[int]) -> Plane:
        """A plane made of these rows, in this order."""
        raw, stride = self._raw, self._stride
        joined = b"".join([raw[i * stride : (i + 1) * stride] for i in indices])
        return Image.frombytes(self.mode, (self.width, len(indices)), joined)


def take_rows(plane: Plane, indices: Sequence[int]) -> Plane:
    """A plane made of these rows of another."""
    return Rows(plane).take(indices)


def take_columns(plane: Plane, indices: Sequence[int]) -> Plane:
    """A plane made of these columns of another."""
    return transposed(take_rows(transposed(plane), indices))


def from_column(values: Sequence[float], width: int) -> Plane:
    """A plane whose row i has the value i throughout."""
    data = b"".join([_FLOAT.pack(value) * width for value in values])
    return Image.frombytes("F", (width, len(values)), data)


def from_row(values: Sequence[float], height: int) -> Plane:
    """A plane whose column i has the value i throughout."""
    data = struct.pack(f"<{len(values)}f", *values) * height
    return Image.frombytes("F", (len(values), height), data)
