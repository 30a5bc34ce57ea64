"""Opening pictures that somebody else made, who chose every byte of them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Final

# A reader is known once its module is imported. The rest of Pillow's stay away: few look at them,
# and one (EPS) runs another program.
from PIL import (  # noqa: F401
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

with suppress(ImportError):  # new in Pillow 11.3
    from PIL import AvifImagePlugin  # noqa: F401

FORMATS: Final = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""What is opened. A phone's MPO is a JPEG here."""


def open_picture(source: Path | IO[bytes], *, formats: Sequence[str] = FORMATS) -> Image.Image:
    """A picture of one of these formats, whatever its name says; not decoded yet.

    Raises:
        UnidentifiedImageError: it is none.
        Exception: anything else that Pillow makes of odd bytes, here and where it decodes.
    """
    return Image.open(source, formats=[name for name in formats if name in Image.OPEN])
