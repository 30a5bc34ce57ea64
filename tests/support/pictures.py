"""Small pictures and dataset folders for tests."""

from __future__ import annotations

import io
import random

from PIL import Image, ImageDraw

from processor.store import Store


def picture(seed: int, *, size: tuple[int, int] = (64, 64), form: str = "PNG") -> bytes:
    """A picture unlike those of other seeds, to the eye and to a hash."""
    source = random.Random(seed)  # noqa: S311 - a picture to be repeated
    image = Image.new("RGB", size, tuple(source.randrange(256) for _ in range(3)))
    draw = ImageDraw.Draw(image)
    for _ in range(12):
        x, y = source.randrange(size[0]), source.randrange(size[1])
        colour = tuple(source.randrange(256) for _ in range(3))
        draw.ellipse((x - 12, y - 12, x + 12, y + 12), fill=colour)
    return encoded(image, form)


def encoded(image: Image.Image, form: str = "PNG") -> bytes:
    stream = io.BytesIO()
    image.save(stream, form)
    return stream.getvalue()


def upload(store: Store, dataset: str, files: dict[str, bytes]) -> None:
    """Put files into a dataset's inbox folder, in the order given."""
    for name, data in files.items():
        store.put(f"inbox/datasets/{dataset}/{name}", data)


def captioned(count: int, *, first: int = 0, word: str = "zoe") -> dict[str, bytes]:
    """`count` pictures with captions that have the trigger word."""
    files: dict[str, bytes] = {}
    for k in range(first, first + count):
        files[f"{k:03d}.png"] = picture(k)
        files[f"{k:03d}.txt"] = f"{word} number {k}".encode()
    return files
