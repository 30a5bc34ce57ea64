"""Float32 arithmetic without tensors: each operation rounds as a tensor's does."""

from __future__ import annotations

import struct
from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from handlers.engine.convolve import gaussian, tensor_sum
from handlers.engine.limits import Limits
from handlers.engine.planes import (
    BYTE_VALUES,
    as_bytes,
    as_float,
    constant,
    constant_value,
    float32,
    fused_multiply_add,
    take_columns,
    take_rows,
)
from handlers.engine.resample import METHODS, Resizer, center_crop_box

floats = st.floats(-4, 4, width=32).filter(lambda x: x == 0 or abs(x) > 1e-6)


def plane(*values: float) -> Image.Image:
    return Image.frombytes("F", (len(values), 1), struct.pack(f"<{len(values)}f", *values))


def values(picture: Image.Image) -> list[float]:
    return list(struct.unpack(f"<{picture.width * picture.height}f", picture.tobytes()))


def nearest(exact: Fraction) -> float:
    """The float32 nearest to an exact number."""
    if exact == 0:
        return 0.0
    guess = float32(float(exact))
    bits = struct.unpack("<i", struct.pack("<f", guess))[0]
    around = [struct.unpack("<f", struct.pack("<i", bits + step))[0] for step in (-1, 0, 1)]
    return float(min(around, key=lambda x: abs(Fraction(x) - exact)))


@given(st.lists(st.tuples(floats, floats, floats), min_size=1, max_size=50))
def test_fused_multiply_add_rounds_once(terms: list[tuple[float, float, float]]) -> None:
    """Against exact fractions; for a plane of weights and for a single one."""
    a, b, c = (plane(*column) for column in zip(*terms, strict=True))
    expected = [Fraction(x) * Fraction(y) + Fraction(z) for x, y, z in terms]
    for got, exact in zip(values(fused_multiply_add(a, b, c)), expected, strict=True):
        assert abs(Fraction(got) - exact) <= abs(Fraction(nearest(exact)) - exact)
    x, y, z = terms[0]
    exact = expected[0]
    got = values(fused_multiply_add(plane(x), y, plane(z)))[0]
    assert abs(Fraction(got) - exact) <= abs(Fraction(nearest(exact)) - exact)


def test_bytes_survive_the_way_through_float32() -> None:
    """255 * (k/255) truncates to k: loading and saving changes nothing."""
    levels = Image.frombytes("L", (256, 1), bytes(range(256)))
    assert values(as_float(levels)) == BYTE_VALUES
    assert as_bytes(as_float(levels)).tobytes() == bytes(range(256))


def test_saving_truncates_and_clips() -> None:
    """As numpy's astype does, after clip."""
    picture = as_bytes(plane(-0.5, 0.0, 0.999999 / 255, 1.5 / 255, 0.9999, 1.0, 7.0))
    assert list(picture.tobytes()) == [0, 0, 0, 1, 254, 255, 255]


def test_constants_take_the_small_form_where_it_is_exact() -> None:
    """0.5 is no multiple of 1/255."""
    assert constant(99 / 255, 2, 2).mode == "L"
    assert constant(0.5, 2, 2).mode == "F"
    assert constant_value(constant(0.5, 2, 2)) == 0.5
    assert constant_value(plane(0.1, 0.2)) is None


def test_rows_and_columns_are_taken_in_any_order() -> None:
    """Of both forms."""
    square = Image.frombytes("L", (2, 2), bytes([1, 2, 3, 4]))
    assert list(take_rows(square, [1, 0, 1]).tobytes()) == [3, 4, 1, 2, 3, 4]
    assert list(take_columns(square, [1, 1]).tobytes()) == [2, 2, 4, 4]
    assert values(take_columns(plane(0.5, 0.25), [1, 0])) == [0.25, 0.5]


@given(
    st.integers(1, 40), st.integers(1, 40), st.integers(1, 70), st.integers(1, 70), st.sampled_from(METHODS)
)
def test_resizing_keeps_one_colour(before: int, across: int, width: int, height: int, method: str) -> None:
    """Whatever the sizes: the sums of the weights are 1 but for rounding."""
    resizer = Resizer(Limits(), lambda: None)
    result = resizer.resize(Image.new("L", (before, across), 200), width, height, method)
    assert result.size == (width, height)
    low, high = as_float(result).getextrema()
    assert isinstance(low, float)
    assert isinstance(high, float)
    assert abs(low - 200 / 255) < 1e-5
    assert abs(high - 200 / 255) < 1e-5


@given(st.integers(1, 500), st.integers(1, 500), st.integers(1, 500), st.integers(1, 500))
def test_centre_crop_stays_inside(old_width: int, old_height: int, width: int, height: int) -> None:
    """And is centred."""
    left, top, right, bottom = center_crop_box((old_width, old_height), width, height)
    assert 0 <= left <= right <= old_width
    assert 0 <= top <= bottom <= old_height
    assert left == old_width - right
    assert top == old_height - bottom


def test_kernels_sum_to_one() -> None:
    """But for rounding."""
    for radius in (1, 2, 9):
        weights = [weight for row in gaussian(radius, 1.0) for weight in row]
        assert abs(tensor_sum(weights) - 1) < 1e-6
        assert abs(tensor_sum(weights) - sum(weights)) < 1e-6
