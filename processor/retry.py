"""What happens after a task fails: one pure function decides, nobody else retries."""

from __future__ import annotations

from dataclasses import dataclass

from processor.errors import ErrorKind
from processor.handler import Remedy

PERMANENT = frozenset(
    {
        ErrorKind.INVALID,
        ErrorKind.MISSING_MODEL,
        ErrorKind.MISSING_NODE,
        ErrorKind.BAD_INPUT,
        ErrorKind.REFUSED,
        ErrorKind.NODE_FAILED,
        ErrorKind.OVER_BUDGET,
        ErrorKind.CANCELLED,
    }
)
"""The same task would fail the same way: such a result is final, and adopted like a success."""

_OOM_LADDER = (Remedy.FREE_MEMORY, Remedy.RESTART, Remedy.BIGGER_GPU)
_REMEDY = {
    ErrorKind.CRASHED: Remedy.RESTART,
    ErrorKind.TIMED_OUT: Remedy.RESTART,
}


@dataclass(frozen=True, slots=True)
class Again:
    """Try the task once more, after `delay_s` and the remedy."""

    delay_s: float
    remedy: Remedy


def decide(kind: ErrorKind, tries: int, *, max_tries: int, first_delay_s: float) -> Again | None:
    """Whether a failed task is tried again, and how; None means give up.

    Args:
        tries: executions so far, at least 1.
        max_tries: executions allowed; running out of memory may climb its whole ladder.
        first_delay_s: doubled with every further try.
    """
    if kind in PERMANENT:
        return None
    if kind is ErrorKind.OUT_OF_MEMORY:
        if tries > len(_OOM_LADDER):
            return None
        return Again(delay_s=0.0, remedy=_OOM_LADDER[tries - 1])
    if tries >= max_tries:
        return None
    return Again(delay_s=first_delay_s * 2 ** (tries - 1), remedy=_REMEDY.get(kind, Remedy.NONE))
