"""One file of a dataset, looked at on a CPU: does it decode, what is it, what does it look like?"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final, Literal

from PIL import Image, ImageOps, UnidentifiedImageError

from handlers.ingest.records import CAPTION
from processor.datasets import OPTIONS, VIDEOS
from processor.pictures import open_picture

PICTURES: Final = frozenset({".jpg", ".jpeg", ".png", ".webp"})
"""What the trainer reads (toolkit/data_loader.py of ai-toolkit 0.12.26)."""
UNUSABLE: Final = frozenset(
    {
        ".gif",
        ".bmp",
        ".tif",
        ".tiff",
        ".heic",
        ".heif",
        ".avif",
        ".jxl",
        ".jp2",
        ".psd",
        ".raw",
        ".dng",
        ".svg",
    }
)
"""Pictures to a person, and nothing to the trainer, which would leave them out silently."""

_FORMATS: Final = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""What may be in a file of such a name; the trainer's Pillow goes by the bytes, too."""

MAX_PIXELS: Final = 64_000_000
"""Larger pictures are refused before they are decoded: a small file can claim any size."""
MAX_FILE_BYTES: Final = 2 * 1024**3
MAX_CAPTION_BYTES: Final = 64 * 1024
_LOOK_SIDE: Final = 1024
"""Pixels of the longer side of what a picture's look is taken from."""
_ORIENTATION: Final = 0x0112
_SIDEWAYS: Final = (5, 6, 7, 8)
_FTYP_AT: Final = slice(4, 8)

_OPTIONS_ALMOST: Final = re.compile(r"dataset\.ya?ml(\.txt)?", re.IGNORECASE)
"""What is meant for the options, and would be passed over; editors add a suffix that Windows hides."""

_GREYS: Final = ("I", "F")
"""How the modes begin that hold more than 8 bits a grey; the trainer makes white of most of them."""

FileKind = Literal["picture", "video", "caption", "options", "misnamed", "unusable", "unseen", "other"]


class BadFile(Exception):
    """A file that can't be trained on; says why."""


@dataclass(frozen=True, slots=True)
class Looked:
    """What a picture or video turned out to be."""

    width: int = 0
    height: int = 0
    look: int | None = None
    """64 bits that nearly equal pictures nearly share (a difference hash)."""
    colour: tuple[int, int, int] = (0, 0, 0)
    """The mean colour, which tells apart pictures of equal shape."""


def kind_of(name: str) -> FileKind:
    """What a file in a dataset folder is, by its name."""
    if name == OPTIONS:
        return "options"
    if _OPTIONS_ALMOST.fullmatch(name):
        return "misnamed"
    path = PurePosixPath(name)
    if path.parent.name == "_controls" or any(part.startswith(".") for part in path.parts):
        return "unseen"
    suffix = path.suffix.lower()
    if suffix in PICTURES:
        return "picture"
    if suffix in VIDEOS:
        return "video"
    if suffix == CAPTION:
        return "caption"
    return "unusable" if suffix in UNUSABLE else "other"


def look_at_picture(path: Path) -> Looked:
    """Decode a picture wholly, within limits.

    Raises:
        BadFile: it does not decode, or is too large to.
    """
    try:
        image, (width, height) = _decoded(path)
        look = _difference_hash(image)
        pixel = image.convert("RGB").resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))
    except BadFile:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise BadFile(f"claims more than {MAX_PIXELS:,} pixels") from None
    except UnidentifiedImageError:
        raise BadFile("is no picture, whatever its name says") from None
    except Exception as error:  # noqa: BLE001 - Pillow raises whatever odd bytes bring about, in EXIF too
        raise BadFile(f"does not decode: {error!s:.200}; save it anew as PNG or JPEG") from None
    colour = tuple(pixel) if isinstance(pixel, tuple) else (0, 0, 0)
    return Looked(width, height, look, (int(colour[0]), int(colour[1]), int(colour[2])))


def _decoded(path: Path) -> tuple[Image.Image, tuple[int, int]]:
    """A picture, upright and small enough to be looked at, and its whole size.

    Of the whole one there is no copy: a large picture is a quarter of a gigabyte.
    """
    with open_picture(path, formats=_FORMATS) as opened:
        _check_header(opened)
        with _DECODED.held(opened.width * opened.height):
            opened.load()
            small = opened
            if (longest := max(opened.size)) > _LOOK_SIDE:
                size = [max(1, side * _LOOK_SIDE // longest) for side in opened.size]
                small = opened.resize((size[0], size[1]), Image.Resampling.NEAREST)
            turned = opened.getexif().get(_ORIENTATION) in _SIDEWAYS
            width, height = opened.size
            return ImageOps.exif_transpose(small), (height, width) if turned else (width, height)


class Pixels:
    """What is decoded at a time, whatever the threads: each waits until there is room for its picture."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0
        self._changed = threading.Condition()

    @contextmanager
    def held(self, pixels: int) -> Iterator[None]:
        """While inside, these count; one picture alone is always let in."""
        with self._changed:
            self._changed.wait_for(lambda: not self._held or self._held + pixels <= self._limit)
            self._held += pixels
        try:
            yield
        finally:
            with self._changed:
                self._held -= pixels
                self._changed.notify_all()


_DECODED: Final = Pixels(MAX_PIXELS)


def _check_header(picture: Image.Image) -> None:
    """What shows before a pixel is decoded."""
    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise BadFile(f"{width:,} by {height:,} pixels; at most {MAX_PIXELS:,} are taken")
    if picture.mode.startswith(_GREYS):
        raise BadFile("has more than 8 bits a grey, of which the trainer makes white; save it with 8")


def look_at_video(path: Path) -> Looked:
    """Check that a file begins as a video does, and decode its first frame where PyAV is installed.

    Raises:
        BadFile: it does not.
    """
    with path.open("rb") as stream:
        head = stream.read(16)
    known = head[_FTYP_AT] == b"ftyp" or head[:4] in (b"\x1aE\xdf\xa3", b"RIFF")
    if not known:
        raise BadFile("is no video, whatever its name says")
    try:
        import av  # an extra
    except ImportError:
        return Looked()
    try:
        with av.open(str(path)) as container:
            frame = next(container.decode(video=0))
            return Looked(frame.width, frame.height)
    except (OSError, ValueError, StopIteration, IndexError, av.error.FFmpegError) as error:
        raise BadFile(f"does not decode: {error}"[:200]) from None


def read_caption(data: bytes) -> str:
    """A caption's text, without the mark that some editors put first.

    Raises:
        BadFile: it is too long, or not UTF-8; the trainer would fail on it in mid-training.
    """
    if len(data) > MAX_CAPTION_BYTES:
        raise BadFile(f"{len(data):,} bytes; a caption has at most {MAX_CAPTION_BYTES:,}")
    try:
        return data.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise BadFile(f"is not UTF-8 (byte {error.start}); save it as UTF-8") from None


def _difference_hash(image: Image.Image) -> int:
    """Of 8 by 8 comparisons between neighbours in a 9 by 8 grey thumbnail."""
    small = image.convert("L").resize((9, 8), Image.Resampling.LANCZOS)
    pixels = small.tobytes()
    bits = 0
    for row in range(8):
        for column in range(8):
            at = row * 9 + column
            bits = bits << 1 | (pixels[at] > pixels[at + 1])
    return bits
