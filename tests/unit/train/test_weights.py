"""Safetensors headers: what opens, what doesn't, and metadata added without touching a tensor."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handlers.train.weights import BadWeights, add_metadata, find_non_finite, read_header
from tests.support.trainer import weights


def written(folder: Path, data: bytes) -> Path:
    path = folder / "x.safetensors"
    path.write_bytes(data)
    return path


def with_header(header: object, data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def test_a_whole_file_tells_its_step(tmp_path: Path) -> None:
    """As ai-toolkit writes it."""
    header = read_header(written(tmp_path, weights(250)))
    assert header.step == 250
    assert find_non_finite(tmp_path / "x.safetensors", header) is None


@given(cut=st.integers(min_value=0, max_value=len(weights(7)) - 1))
def test_a_file_cut_off_anywhere_does_not_open(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    """Saves are not atomic: every prefix of one may be what a crash left."""
    with pytest.raises(BadWeights):
        read_header(written(tmp_path_factory.mktemp("cut"), weights(7)[:cut]))


TENSOR = {"dtype": "F16", "shape": [2], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        struct.pack("<Q", 2**60) + b"{}",
        with_header([], b""),
        with_header({}, b""),
        with_header({"a": TENSOR}, b"\0" * 5),
        with_header({"a": TENSOR, "b": TENSOR}, b"\0" * 4),
        with_header({"a": {**TENSOR, "data_offsets": [1, 5]}}, b"\0" * 5),
        with_header({"a": {**TENSOR, "dtype": "F99"}}, b"\0" * 4),
        with_header({"a": {"dtype": "F16"}}, b"\0" * 4),
        with_header({"__metadata__": [], "a": TENSOR}, b"\0" * 4),
        struct.pack("<Q", 4) + b"\xff\xfe{}",
    ],
)
def test_what_is_no_whole_file_is_refused(tmp_path: Path, data: bytes) -> None:
    """Gaps, overlaps, unknown types, lengths of fantasy."""
    with pytest.raises(BadWeights):
        read_header(written(tmp_path, data))


@pytest.mark.parametrize(
    ("dtype", "form", "value"), [("F16", "<e", float("nan")), ("F32", "<f", float("inf"))]
)
def test_weights_that_are_no_numbers_are_found(tmp_path: Path, dtype: str, form: str, value: float) -> None:
    """What a zeroed NaN loss leaves behind."""
    data = struct.pack(form, 1.0) + struct.pack(form, value)
    header = {"a": {"dtype": dtype, "shape": [2], "data_offsets": [0, len(data)]}}
    path = written(tmp_path, with_header(header, data))
    assert find_non_finite(path, read_header(path)) == "a"


def test_metadata_is_added_and_the_tensors_stay_to_the_byte(tmp_path: Path) -> None:
    """Earlier keys stay, the data begins aligned."""
    source, target = written(tmp_path, weights(7)), tmp_path / "y.safetensors"
    add_metadata(source, target, {"modelspec.title": "Zoë"})
    old, new = read_header(source), read_header(target)
    assert new.metadata == {**old.metadata, "modelspec.title": "Zoë"}
    assert new.data_at % 8 == 0
    assert target.read_bytes()[new.data_at :] == source.read_bytes()[old.data_at :]
