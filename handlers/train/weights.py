"""Safetensors files without a tensor library: does it open, which step is it, who made it?

The format (https://github.com/huggingface/safetensors#format): 8 bytes little-endian
length, a JSON header of tensors and `__metadata__`, then the tensors without gaps.
"""

from __future__ import annotations

import json
import math
import shutil
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

MAX_HEADER_BYTES: Final = 100_000_000
"""The format's own limit."""
_PREFIX: Final = 8
_ALIGNMENT: Final = 8
_METADATA: Final = "__metadata__"
_ITEM_BYTES: Final = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
    "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1,
}  # fmt: skip
_EXPONENT: Final = {"F16": ("<H", 0x7C00), "BF16": ("<H", 0x7F80), "F32": ("<I", 0x7F800000)}
"""A float whose exponent bits are all ones is infinite or no number."""
_PROBED: Final = 4096
"""Values looked at per tensor: a NaN, once there, is everywhere after a step."""


class BadWeights(Exception):
    """A file that is no whole safetensors file; says why."""


@dataclass(frozen=True, slots=True)
class Header:
    """What a safetensors file says of itself."""

    metadata: dict[str, str]
    tensors: dict[str, dict[str, Any]]
    data_at: int

    @property
    def step(self) -> int | None:
        """The training step that ai-toolkit wrote into it; None from other tools."""
        try:
            step = json.loads(self.metadata.get("training_info", "{}")).get("step")
        except (ValueError, AttributeError):
            return None
        return step if isinstance(step, int) else None


def read_header(path: Path) -> Header:
    """Read and check a file's header: complete, and the data exactly as long as it says.

    Raises:
        BadWeights: truncated, overlapping, or no safetensors file at all.
    """
    size_bytes = path.stat().st_size
    with path.open("rb") as stream:
        prefix = stream.read(_PREFIX)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == _PREFIX else -1
        if not 0 < length <= min(MAX_HEADER_BYTES, size_bytes - _PREFIX):
            raise BadWeights(f"no safetensors header in {size_bytes:,} bytes")
        text = stream.read(length)
    try:
        document = json.loads(text)
    except ValueError as error:
        raise BadWeights(f"its header is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise BadWeights("its header is no object")
    metadata = document.pop(_METADATA, {})
    if not isinstance(metadata, dict):
        raise BadWeights("its metadata is no object")
    _check_tensors(document, size_bytes - _PREFIX - length)
    return Header({key: str(value) for key, value in metadata.items()}, document, _PREFIX + length)


def find_non_finite(path: Path, header: Header) -> str | None:
    """The first tensor with an infinity or no number among its first values, if any."""
    with path.open("rb") as stream:
        for name, tensor in header.tensors.items():
            spelled = _EXPONENT.get(tensor["dtype"])
            if spelled is None:
                continue
            form, mask = spelled
            start, end = tensor["data_offsets"]
            stream.seek(header.data_at + start)
            item_bytes = struct.calcsize(form)
            data = stream.read(min(end - start, _PROBED * item_bytes))
            if any(bits & mask == mask for (bits,) in struct.iter_unpack(form, data)):
                return name
    return None


def add_metadata(source: Path, target: Path, extra: Mapping[str, str]) -> None:
    """Copy a file with further metadata; the tensors stay as they are to the byte."""
    header = read_header(source)
    document = {_METADATA: {**header.metadata, **extra}, **header.tensors}
    text = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with source.open("rb") as old, target.open("wb") as new:
        new.write(struct.pack("<Q", len(text)) + text)
        old.seek(header.data_at)
        shutil.copyfileobj(old, new, 1 << 20)


def _check_tensors(tensors: dict[str, Any], data_bytes: int) -> None:
    at = 0
    try:
        spans = sorted(
            (*tensor["data_offsets"], tensor["dtype"], math.prod(tensor["shape"]))
            for tensor in tensors.values()
        )
        for start, end, dtype, count in spans:
            if start != at or end - start != count * _ITEM_BYTES[dtype]:
                raise BadWeights("its tensors do not lie as its header says")
            at = end
    except (KeyError, TypeError, ValueError) as error:
        raise BadWeights(f"its header describes no tensors: {error}") from None
    if not spans:
        raise BadWeights("it holds no tensors")
    if at != data_bytes:
        raise BadWeights(f"{data_bytes:,} bytes of tensors where its header says {at:,}")
