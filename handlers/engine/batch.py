"""The values that travel along a graph's links."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from handlers.engine.limits import LimitExceeded, Limits
from handlers.engine.planes import Plane

Frame = tuple[Plane, ...]
"""One picture: red, green and blue planes, or a mask's only one."""


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """An IMAGE (frames of three planes) or a MASK (of one): 1..N frames of one size. Immutable.

    Planes may be shared between frames and batches, so nothing ever draws on one.
    """

    frames: tuple[Frame, ...]

    @property
    def width(self) -> int:
        return self.frames[0][0].width

    @property
    def height(self) -> int:
        return self.frames[0][0].height

    @property
    def size(self) -> tuple[int, int]:
        return self.frames[0][0].size

    def __str__(self) -> str:
        """What an error report shows of an input, where ComfyUI prints the tensor."""
        kind = "IMAGE" if len(self.frames[0]) == 3 else "MASK"
        return f"{kind} {len(self.frames)}x{self.height}x{self.width}"

    def map(self, change: Callable[[Plane], Plane]) -> Batch:
        """Change every distinct plane once."""
        done: dict[int, Plane] = {}
        for frame in self.frames:
            for plane in frame:
                if id(plane) not in done:
                    done[id(plane)] = change(plane)
        return Batch(tuple(tuple(done[id(plane)] for plane in frame) for frame in self.frames))

    def check(self, limits: Limits) -> None:
        """Refuse a batch that is too large to keep.

        Raises:
            LimitExceeded: too many frames, too large a frame, or too many bytes.
        """
        if len(self.frames) > limits.frames:
            raise LimitExceeded(
                f"a batch of {len(self.frames)} pictures is larger than the built-in engine takes"
                f" ({limits.frames})"
            )
        limits.check_frame(self.width, self.height)
        distinct = {id(plane): plane for frame in self.frames for plane in frame}
        held = sum(p.width * p.height * (4 if p.mode == "F" else 1) for p in distinct.values())
        if held > limits.batch_bytes:
            raise LimitExceeded(
                f"a batch of {held} bytes is larger than the built-in engine takes ({limits.batch_bytes})"
            )


def zip_map(first: Batch, second: Batch, combine: Callable[[Plane, Plane], Plane]) -> Batch:
    """Combine two batches plane by plane, each distinct pair once.

    A batch of one frame goes with every frame of the other, as tensors broadcast.

    Raises:
        RuntimeError: batches of two different lengths above one, worded as ComfyUI words it.
    """
    a, b = len(first.frames), len(second.frames)
    if a != b and 1 not in (a, b):
        raise RuntimeError(
            f"The size of tensor a ({a}) must match the size of tensor b ({b}) at non-singleton dimension 0"
        )
    count = max(a, b)
    done: dict[tuple[int, int], Plane] = {}

    def paired(left: Plane, right: Plane) -> Plane:
        key = (id(left), id(right))
        if key not in done:
            done[key] = combine(left, right)
        return done[key]

    pairs = zip(stretched(first.frames, count), stretched(second.frames, count), strict=True)
    return Batch(tuple(tuple(map(paired, left, right)) for left, right in pairs))


def stretched(frames: Sequence[Frame], count: int) -> tuple[Frame, ...]:
    """The frames, the last one repeated up to `count`."""
    return (*frames, *([frames[-1]] * (count - len(frames))))
