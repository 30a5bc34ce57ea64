"""A moving picture of stills: animated WebP or GIF, or MP4 where PyAV is installed."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable
from fractions import Fraction
from typing import Any, Literal

from PIL import Image

from processor.errors import ConfigError

MAX_FRAMES = 1_000
_MAX_PIXELS = 120_000_000
"""Of all frames together, which are in memory at once."""
_MAX_SIDE = 1280


def sequence(
    pictures: Iterable[Image.Image | None], *, kind: Literal["webp", "gif", "mp4"], fps: float
) -> bytes | None:
    """The pictures one after another, all in the shape of the first; None if fewer than two could be read.

    Args:
        pictures: thumbnails of `frame_side`, at most `MAX_FRAMES` of which are taken.
    Raises:
        ConfigError: MP4, and the extra for it is not installed.
    """
    frames: list[Image.Image] = []
    for frame in pictures:
        if len(frames) == MAX_FRAMES:
            break
        if frame is not None:
            frames.append(_fitted(frame, frames[0].size) if frames else _even(frame))
    if len(frames) < 2:
        return None
    return _mp4(frames, fps) if kind == "mp4" else _animated(frames, kind, fps)


def frame_side(count: int) -> int:
    """Side of the square that each of so many pictures is fitted into."""
    return min(_MAX_SIDE, int(math.sqrt(_MAX_PIXELS / max(1, min(count, MAX_FRAMES)))))


def _even(frame: Image.Image) -> Image.Image:
    """H.264 takes even sides only."""
    return frame.crop((0, 0, max(2, frame.width // 2 * 2), max(2, frame.height // 2 * 2)))


def _fitted(frame: Image.Image, size: tuple[int, int]) -> Image.Image:
    if frame.size == size:
        return frame
    scale = min(size[0] / frame.width, size[1] / frame.height)
    small = frame.resize((max(1, round(frame.width * scale)), max(1, round(frame.height * scale))))
    fitted = Image.new("RGB", size)
    fitted.paste(small, ((size[0] - small.width) // 2, (size[1] - small.height) // 2))
    return fitted


def _animated(frames: list[Image.Image], kind: str, fps: float) -> bytes:
    buffer = io.BytesIO()
    options = {"save_all": True, "append_images": frames[1:], "duration": round(1000 / fps), "loop": 0}
    if kind == "webp":
        frames[0].save(buffer, "WEBP", quality=80, method=3, **options)
    else:
        frames[0].save(buffer, "GIF", **options)
    return buffer.getvalue()


def _mp4(frames: list[Image.Image], fps: float) -> bytes:
    try:
        import av  # late: an extra
    except ImportError as error:
        raise ConfigError(
            "a sequence as MP4 needs the video extra",
            where="output.sequence",
            mend="pip install 'dropbatch[video]'",
        ) from error
    from_image: Any = av.VideoFrame.from_image  # the library is typed in part
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
        stream.width, stream.height = frames[0].size
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(from_image(frame)))
        container.mux(stream.encode())
    return buffer.getvalue()
