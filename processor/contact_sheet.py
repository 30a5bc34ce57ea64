"""Many pictures on one: a contact sheet as JPEG. Pure but for the pictures it is handed."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Sequence

from PIL import Image, ImageDraw, ImageFont

from processor.pictures import open_picture

MAX_PICTURES = 400
MAX_PICTURE_BYTES = 64 * 1024 * 1024
_CELL = 240
_CAPTION = 18
_GAP = 6
_PAPER = (246, 246, 244)
_INK = (98, 101, 109)
_QUALITY = 85


def contact_sheet(pictures: Iterable[tuple[str, bytes]], *, columns: int | None = None) -> bytes | None:
    """The pictures in their order, each with its caption; None if none of them can be read.

    Args:
        pictures: caption and file, at most `MAX_PICTURES` of which are taken, one at a time.
        columns: as many as make the sheet about 3:2 otherwise.
    """
    cells: list[tuple[str, Image.Image]] = []
    for caption, data in pictures:
        if len(cells) == MAX_PICTURES:
            break
        if (small := thumbnail(data, _CELL)) is not None:
            cells.append((caption, small))
    return _laid_out(cells, columns or _columns(len(cells))) if cells else None


def thumbnail(data: bytes, side: int) -> Image.Image | None:
    """A picture scaled into a square of `side`; None for what is no picture, or one far too large."""
    try:
        with open_picture(io.BytesIO(data)) as image:
            image.draft("RGB", (side * 2, side * 2))  # a JPEG is decoded at the size that is needed
            image.thumbnail((side, side), Image.Resampling.LANCZOS)
            return image.convert("RGB")
    except Exception:  # noqa: BLE001 - a picture's maker chose every byte; one less is shown
        return None


def _columns(count: int) -> int:
    return max(1, min(count, round(math.sqrt(count * 1.5))))


def _laid_out(cells: Sequence[tuple[str, Image.Image]], columns: int) -> bytes:
    width = max(image.width for _, image in cells)
    height = max(image.height for _, image in cells)
    rows = math.ceil(len(cells) / columns)
    across, down = width + _GAP, height + _CAPTION + _GAP
    sheet = Image.new("RGB", (columns * across + _GAP, rows * down + _GAP), _PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for place, (caption, image) in enumerate(cells):
        x, y = _GAP + place % columns * across, _GAP + place // columns * down
        sheet.paste(image, (x + (width - image.width) // 2, y + (height - image.height) // 2))
        draw.text((x + 2, y + height + 3), _fitting(caption, font, width - 4), fill=_INK, font=font)
    buffer = io.BytesIO()
    sheet.save(buffer, "JPEG", quality=_QUALITY, optimize=True)
    return buffer.getvalue()


def _fitting(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int) -> str:
    """As much of a caption as fits; the built-in font has no signs beyond Latin."""
    plain = " ".join(text.encode("latin-1", "replace").decode("latin-1").split())[:200]
    while plain and font.getlength(plain) > width:
        plain = plain[:-1]
    return plain
