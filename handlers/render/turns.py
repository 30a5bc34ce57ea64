"""Whose file is it? A node that chooses where it writes may give two prompts the same path.

Only a node with a `filename_prefix` can be told where to write (`outputs`). One without may write
`latest.png` each time: while it is copied for one task, the engine already runs the next task's
prompt, and one would get the other's picture, or half of it. So once a node class is known to write
where it chooses, prompts with such a node go one at a time, copying included. Those that ran at once
when it came out wait for each other, and whoever shared a path with another runs again, alone.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from handlers.render.graph import Graph
from handlers.render.outputs import Chosen, ForgottenOutput
from processor.handler import Stop

_LOOK_S: Final = 1.0
"""How often one that waits looks whether it is to stop."""
_REMEMBERED: Final = 100_000


@dataclass(eq=False)
class Turn:
    """One prompt's time on the engine, until what it made is copied."""

    classes: frozenset[str]
    met: list[Turn] = field(default_factory=list)
    """Others that were there meanwhile."""
    settled: bool = False
    """It has said where its nodes wrote; what fails never does."""
    over: bool = False


class Turns:
    """Keeps prompts apart that may write to one path. One for each engine; thread-safe."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._there: list[Turn] = []
        self._choosing: set[str] = set()
        """Node classes that are known to write where they choose."""
        self._makers: OrderedDict[str, str | None] = OrderedDict()
        """By path, what made the file that lies there; None where that is unclear."""

    @contextmanager
    def taken(self, graph: Graph, stop: Stop) -> Iterator[Turn]:
        """A turn for this graph's prompt, once nobody is there that must not be beside it.

        Raises:
            TaskFailed: told to stop while it waited.
        """
        turn = Turn(frozenset(node["class_type"] for node in graph.values()))
        with self._changed:
            while any(other.classes & turn.classes & self._choosing for other in self._there):
                self._wait(stop)
            for other in self._there:
                other.met.append(turn)
                turn.met.append(other)
            self._there.append(turn)
        try:
            yield turn
        finally:
            with self._changed:
                self._there.remove(turn)
                turn.over = True
                turn.met.clear()
                if not turn.settled and turn.classes & self._choosing:
                    self._makers.clear()  # it may have written anywhere before it failed
                self._changed.notify_all()

    def settle(self, turn: Turn, chosen: Sequence[Chosen], stop: Stop) -> bool:
        """Whether what lies under these paths is, until the turn is over, what its prompt reports;
        waits for those that may be writing there. If not, the prompt is to have another turn.

        Raises:
            ForgottenOutput: nor would another turn help, before the engine's cache forgets.
            TaskFailed: told to stop while it waited.
        """
        with self._changed:
            classes = {file.class_type for file in chosen}
            self._choosing |= classes
            rivals = [other for other in turn.met if other.classes & classes]
            self._remember({file.path: file.maker for file in chosen if not file.cached}, alone=not rivals)
            turn.settled = True
            self._changed.notify_all()
            while any(not other.settled and not other.over for other in rivals):
                self._wait(stop)
            strange = [file for file in chosen if self._makers.get(file.path) != file.maker]
            if strange and not rivals:
                what = f"{strange[0].class_type} reports {strange[0].path!r}, which may be another prompt's"
                raise ForgottenOutput(what, where="workflow")
            return not strange and all(other.settled for other in rivals)

    def _remember(self, written: dict[str, str], *, alone: bool) -> None:
        for path, maker in written.items():
            # Of prompts that ran at once, nobody knows whose file was the last.
            clear = alone or self._makers.get(path, maker) == maker
            self._makers[path] = maker if clear else None
            self._makers.move_to_end(path)
        while len(self._makers) > _REMEMBERED:
            self._makers.popitem(last=False)

    def _wait(self, stop: Stop) -> None:
        stop.check()
        self._changed.wait(_LOOK_S)
