"""What a node's function is given besides its inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from handlers.engine.files import Folders
from handlers.engine.limits import Limits
from handlers.engine.resample import Resizer


class Interrupted(Exception):
    """The user interrupted the running prompt."""


@dataclass(frozen=True, slots=True)
class Context:
    """One run of one node.

    Args:
        prompt: the graph as it was queued, for metadata.
        extra_pnginfo: what else the client wants written into saved files.
        metadata: whether saved files carry either.
        checkpoint: raises `Interrupted` when the user has interrupted; called in every long loop.
        preview_tag: the random part of this server's preview names.
    """

    folders: Folders
    limits: Limits
    prompt: dict[str, Any]
    extra_pnginfo: dict[str, Any] | None
    metadata: bool
    checkpoint: Callable[[], None]
    preview_tag: str

    @property
    def resizer(self) -> Resizer:
        """Resizing within this run's limits."""
        return Resizer(self.limits, self.checkpoint)
