"""A run's losses: collected while it trains, thinned to what a picture can show, drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from PIL import Image, ImageDraw

Points = list[tuple[int, float]]
"""Step and loss, in order of the steps."""

_KEPT: Final = 2000
_WIDTH, _HEIGHT, _MARGIN = 960, 360, 44
_SCALE: Final = 2
_RAW, _SMOOTH, _INK, _PAPER = (176, 190, 210), (29, 78, 216), (71, 85, 105), (255, 255, 255)
_SMOOTHING: Final = 0.9
_TAIL: Final = 0.1


class Curve:
    """Losses by step. A step trained again, after a restart, has its later loss."""

    def __init__(self, earlier: Sequence[tuple[int, float]] = ()) -> None:
        self._losses: dict[int, float] = dict(earlier)

    def add(self, step: int, loss: float) -> None:
        self._losses[step] = loss

    @property
    def points(self) -> Points:
        """At most 2,000 of them, evenly chosen, the last one among them."""
        points = sorted(self._losses.items())
        stride = math.ceil(len(points) / _KEPT)
        return points if stride <= 1 else points[-1::-stride][::-1]

    @property
    def last(self) -> float | None:
        return max(self._losses.items())[1] if self._losses else None

    @property
    def level(self) -> float | None:
        """The mean over the last tenth of the steps: what runs are compared by."""
        losses = [loss for _, loss in sorted(self._losses.items())]
        tail = losses[-max(1, int(len(losses) * _TAIL)) :]
        return sum(tail) / len(tail) if tail else None


def thinned(points: Sequence[tuple[int, float]], count: int) -> Points:
    """At most so many points, the first and the last among them."""
    if len(points) <= count:
        return list(points)
    return [points[round(k * (len(points) - 1) / (count - 1))] for k in range(count)]


def smoothed(points: Sequence[tuple[int, float]]) -> Points:
    """An exponential mean, which shows where a noisy loss is going."""
    found: Points = []
    mean = points[0][1] if points else 0.0
    for step, loss in points:
        mean = _SMOOTHING * mean + (1 - _SMOOTHING) * loss
        found.append((step, mean))
    return found


def draw_curve(points: Sequence[tuple[int, float]], path: Path, *, title: str) -> None:
    """The loss curve as a PNG, raw and smoothed."""
    width, height, margin = _WIDTH * _SCALE, _HEIGHT * _SCALE, _MARGIN * _SCALE
    image = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(image)
    left, right, top, bottom = margin, width - margin // 2, margin, height - margin
    low, high = min(loss for _, loss in points), max(loss for _, loss in points)
    spread = (high - low) or 1.0
    first, last = points[0][0], max(points[-1][0], points[0][0] + 1)

    def place(step: int, loss: float) -> tuple[float, float]:
        x = left + (step - first) / (last - first) * (right - left)
        return x, bottom - (loss - low) / spread * (bottom - top)

    for k in range(5):
        y = bottom - k / 4 * (bottom - top)
        draw.line((left, y, right, y), fill=(226, 232, 240), width=_SCALE)
        draw.text((4, y - 12), f"{low + spread * k / 4:.3g}", fill=_INK, font_size=11 * _SCALE)
    for series, colour, weight in ((points, _RAW, 1), (smoothed(points), _SMOOTH, 2)):
        if len(series) > 1:
            draw.line([place(*point) for point in series], fill=colour, width=weight * _SCALE, joint="curve")
        else:
            x, y = place(*series[0])
            draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=colour)
    draw.text((left, margin // 4), title, fill=_INK, font_size=13 * _SCALE)
    draw.text((left, bottom + 8), f"step {first}", fill=_INK, font_size=11 * _SCALE)
    draw.text((right, bottom + 8), f"step {last}", fill=_INK, font_size=11 * _SCALE, anchor="ra")
    image.resize((_WIDTH, _HEIGHT), Image.Resampling.LANCZOS).save(path, optimize=True)
