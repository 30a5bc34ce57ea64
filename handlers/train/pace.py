"""How fast a run trains, and when its next checkpoint is due. Pure."""

from __future__ import annotations

from typing import Final

_KNOWN_STEPS: Final = 10
"""So many steps tell how long the next take; of pictures of several sizes each takes its own time."""


class Pace:
    """The pace of one run, by this machine's clock.

    Not the trainer's own figure: that is of its last two or three steps, and leaves out saving and sampling.

    Args:
        start: the step that it goes on from.
    """

    def __init__(self, *, start: int, steps: int, save_every: int) -> None:
        self._start = start
        self._steps = steps
        self._save_every = save_every
        self._next_save = (start // save_every + 1) * save_every
        self._first: tuple[int, float] | None = None
        """Step and time from which on it is measured: loading and compiling are behind."""
        self._done = start

    def stepped(self, done: int, now_s: float) -> None:
        """So many steps are done."""
        self._done = done
        if self._first is None and done > self._start:
            self._first = (done, now_s)

    def saved(self, step: int) -> None:
        """The checkpoint of a step is there."""
        self._next_save = step + self._save_every

    def ahead_s(self, now_s: float) -> float | None:
        """Seconds until the next save is due, or the end; None if it is due, or nobody can know yet."""
        steps = min(self._next_save, self._steps) - self._done
        known = self._done - self._first[0] if self._first else 0
        return steps * self._seconds_per_step(now_s) if steps > 0 and known >= _KNOWN_STEPS else None

    def interval_s(self, now_s: float) -> float:
        """Seconds from a save to the one after it, or the end, by what little may be known; 0 by nothing."""
        return min(self._save_every, self._steps - self._done) * self._seconds_per_step(now_s)

    def _seconds_per_step(self, now_s: float) -> float:
        if self._first is None or self._done <= self._first[0]:
            return 0.0
        step, at_s = self._first
        return (now_s - at_s) / (self._done - step)
