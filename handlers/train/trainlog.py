"""What ai-toolkit prints, as events. Pure; recordings of every case are tested against it.

Progress is on stderr, in pieces separated by carriage returns:
`zoe:  25%|██▌       | 1/4 [00:00<00:01,  1.91it/s, lr: 1.0e-04 loss: 1.307e+00]`.
Other bars look alike (loading, sampling, caching), so only the run's own name counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

_PIECES: Final = re.compile(r"[\r\n]+")
_BAR: Final = re.compile(r"^\s*\d+%\|[^|]*\|\s*(?P<done>\d+)/(?P<total>\d+) \[(?P<facts>[^\]]*)\]")
_LOSS: Final = re.compile(r"\bloss: (?P<loss>\S+)")
_LR: Final = re.compile(r"\blr: (?P<lr>\S+)")
_ANY_BAR: Final = re.compile(r"\d+%\|.*\| *\d+/\d+ \[|^\d+it \[")
_ESCAPES: Final = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_SAVED: Final = "Saved checkpoint to "
_SAVED_OPTIMIZER: Final = "Saved optimizer to "
_LOST_OPTIMIZER: Final = "Could not save optimizer"
_SKIPPED: Final = "OOM during training step, skipping batch"
_FOUND_STEP: Final = re.compile(r"Found step (\d+) in metadata")
_MAX_PIECE: Final = 100_000


@dataclass(frozen=True, slots=True)
class Step:
    """The progress bar moved, or its loss did."""

    done: int
    """Steps done; with a new loss, also the number of the step whose loss it is."""
    total: int
    loss: float | None = None
    lr: float | None = None


@dataclass(frozen=True, slots=True)
class Saved:
    """A weights file has been written; its optimizer is written next."""

    path: PurePosixPath


@dataclass(frozen=True, slots=True)
class OptimizerSaved:
    """The save is complete."""


@dataclass(frozen=True, slots=True)
class OptimizerLost:
    """The save is complete but for its optimizer; the trainer goes on."""


@dataclass(frozen=True, slots=True)
class Resumed:
    """It goes on from a checkpoint's step."""

    step: int


@dataclass(frozen=True, slots=True)
class NanLoss:
    """A loss was no number. The trainer sets it to zero and goes on as if nothing were."""


@dataclass(frozen=True, slots=True)
class BatchSkipped:
    """A step ran out of the GPU's memory. The trainer goes on, unless three follow each other."""


Event = BatchSkipped | Step | Saved | OptimizerSaved | OptimizerLost | Resumed | NanLoss


class Pieces:
    """Text as it arrives, cut at carriage returns and newlines."""

    def __init__(self) -> None:
        self._rest = ""

    def feed(self, text: str) -> Iterator[str]:
        *whole, self._rest = _PIECES.split(self._rest + text)
        self._rest = self._rest[-_MAX_PIECE:]
        yield from (piece for piece in whole if piece.strip())

    def end(self) -> Iterator[str]:
        """What was not ended by a newline."""
        rest, self._rest = self._rest, ""
        if rest.strip():
            yield rest


def read_piece(piece: str, name: str) -> Event | None:
    """What one piece of output tells about the run of this name; None for everything else."""
    piece = _ESCAPES.sub("", piece)
    if piece.startswith(f"{name}:"):
        return _read_bar(piece[len(name) + 1 :])
    if piece.startswith(_SAVED):
        return Saved(PurePosixPath(piece[len(_SAVED) :].strip()))
    if piece.startswith(_SAVED_OPTIMIZER):
        return OptimizerSaved()
    if piece.startswith(_LOST_OPTIMIZER):
        return OptimizerLost()
    if _SKIPPED in piece:
        return BatchSkipped()
    if "loss is nan" in piece:
        return NanLoss()
    if match := _FOUND_STEP.search(piece):
        return Resumed(int(match[1]))
    return None


def is_bar(piece: str) -> bool:
    """Whether a piece is some progress bar: not worth keeping in a log."""
    return _ANY_BAR.search(_ESCAPES.sub("", piece)) is not None


def _read_bar(text: str) -> Step | None:
    match = _BAR.match(text)
    if match is None:
        return None
    facts = match["facts"]
    return Step(
        done=int(match["done"]),
        total=int(match["total"]),
        loss=_number(_LOSS.search(facts), "loss"),
        lr=_number(_LR.search(facts), "lr"),
    )


def _number(match: re.Match[str] | None, group: str) -> float | None:
    try:
        return float(match[group]) if match else None
    except ValueError:
        return None
