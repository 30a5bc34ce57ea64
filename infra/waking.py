"""A tick out of turn for whoever has news of the inbox: one for all that comes within a moment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

WINDOW_S: Final = 3.0
"""News within it makes one tick, at its end."""


class Notes(Protocol):
    """What is asked of the Dict."""

    def put(self, key: str, value: Any, *, skip_if_exists: bool = False) -> bool: ...

    def contains(self, key: str) -> bool: ...


@dataclass(frozen=True)
class Waking:
    """Has a tick begin at the end of the window: it sees whatever any news of the window was about.

    Args:
        spawn: has a tick begin after so many seconds.
        now: seconds, on any clock that all containers share.
    """

    notes: Notes
    spawn: Callable[[float], object]
    now: Callable[[], float]

    def __call__(self) -> bool:
        """Whether it was this call that did it. Cost: 1 request to the Dict, and 1 for the tick."""
        window, into_s = divmod(self.now(), WINDOW_S)
        if not self.notes.put(f"wake/{window:.0f}", True, skip_if_exists=True):
            return False
        self.spawn(WINDOW_S - into_s)
        return True
