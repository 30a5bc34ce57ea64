"""Many pictures on one: a contact sheet as JPEG. Pure but for `stored_thumbnail`."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Sequence

from PIL import Image, ImageDraw, ImageFont

from processor.errors import NotFound, TooLarge
from processor.pictures import open_picture
from processor.store import Store, read_bytes

MAX_PICTURES = 400
CELL = 240
"""Side of the square that each picture is fitted into."""
READERS = 4
"""Pictures read and scaled at once: each may be of this size, and as large again once it is decoded."""
_MAX_PICTURE_BYTES = 64 * 1024 * 1024
_CAPTION = 18
_GAP = 6
_PAPER = (246, 246, 244)
_INK = (98, 101, 109)
_QUALITY = 85


def contact_sheet(
    pictures: Iterable[tuple[str, Image.Image | None]], *, columns: int | None = None
) -> bytes | None:
    """The pictures in their order, each with its caption; None if none of them could be read.

    Args:
        pictures: caption and thumbnail of `CELL`, at most `MAX_PICTURES` of which are taken.
        columns: as many as make the sheet about 3:2 otherwise.
    """
    cells: list[tuple[str, Image.Image]] = []
    for caption, small in pictures:
        if len(cells) == MAX_PICTURES:
            break
        if small is not None:
            cells.append((caption, small))
    return _laid_out(cells, columns or _columns(len(cells))) if cells else None


def stored_thumbnail(store: Store, key: str, side: int) -> Image.Image | None:
    """The thumbnail of a stored picture; None for what is gone, too large or no picture.

    Cost: 1 request.
    """
    try:
        return thumbnail(read_bytes(store, key, limit_bytes=_MAX_PICTURE_BYTES), side)
    except (NotFound, TooLarge):
        return None


def thumbnail(data: bytes, side: int) -> Image.Image | None:
    """A picture scaled into a square of `side`; None for what is no picture, or one far too large."""
    try:
        with open_picture(io.BytesIO(data)) as image:
            image.draft("RGB", (side * 2, side * 2))  # a JPEG is decoded at the size that is needed
            shown = as_shown(image)
            shown.thumbnail((side, side), Image.Resampling.LANCZOS)
            return _on_paper(shown)
    except Exception:  # noqa: BLE001 - a picture's maker chose every byte; one less is shown
        return None


def is_deep(image: Image.Image) -> bool:
    """Whether a picture's one channel has numbers that 8 bits don't hold: depth maps, heights, floats."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def as_shown(image: Image.Image) -> Image.Image:
    """A picture as 8 bits a channel: what it means to the eye, where plain conversion would cut it off."""
    if is_deep(image):
        return _scaled(image)
    wanted = "RGBA" if image.has_transparency_data else "RGB"
    return image if image.mode == wanted else image.convert(wanted)


def _scaled(image: Image.Image) -> Image.Image:
    """16 bits from black to white, floats from 0 to 1; what goes beyond that, from its least to its most."""
    full = 1.0 if image.mode == "F" else 65535.0
    deep = image if image.mode == "F" else image.convert("I").convert("F")
    low, high = deep.getextrema()
    assert isinstance(low, float) and isinstance(high, float)  # noqa: S101, PT018 - it has one channel
    if low >= 0 and high <= full:
        low, high = 0.0, full
    scale = 255 / (high - low) if high > low else 0.0
    return deep.point(lambda value: value * scale - low * scale).convert("L")


def _on_paper(image: Image.Image) -> Image.Image:
    if image.mode != "RGBA":
        return image.convert("RGB")
    paper = Image.new("RGB", image.size, _PAPER)
    paper.paste(image, mask=image.getchannel("A"))
    return paper


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
