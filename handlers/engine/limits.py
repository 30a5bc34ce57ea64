"""What one graph may ask of the engine, in one place."""

from dataclasses import dataclass


class LimitExceeded(Exception):
    """A graph asks for more than the engine gives; the message names the limit."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds that keep a user's graph from taking the machine down with it.

    A frame is one picture of a batch. Frames that are the same object (a repeated batch) share their
    memory, so memory is bounded by distinct planes, work by frames.
    """

    nodes: int = 4_096
    """Nodes in one graph."""
    pending: int = 10_000
    """Prompts that wait in the queue."""
    frame_pixels: int = 1 << 26
    """Pixels of one frame, also while it is being resized: 8192 x 8192."""
    frames: int = 16_384
    """Frames of one batch."""
    batch_bytes: int = 1 << 31
    """Memory of one batch's distinct planes."""
    saved_pixels: int = 1 << 30
    """Pixels that one save node may encode: 256 frames of 2048 x 2048."""
    input_bytes: int = 1 << 28
    """Size of one input file."""
    upload_bytes: int = 100 << 20
    """Size of one request's body; ComfyUI's own default."""
    socket_backlog: int = 10_000
    """Messages kept for a WebSocket that does not read; then it is closed."""

    def check_frame(self, width: int, height: int) -> None:
        """Refuse a frame that is too large, before anything is allocated.

        Raises:
            LimitExceeded: more than `frame_pixels`.
        """
        if width * height > self.frame_pixels:
            raise LimitExceeded(
                f"a picture of {width}x{height} is larger than the built-in engine takes"
                f" ({self.frame_pixels} pixels)"
            )
