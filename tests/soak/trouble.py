"""What goes wrong in a soak: faults of the store, and kills at the moment of a request.

Everything is drawn from one seed. The processes' own timing is not, so that a seed repeats
a run's plan, not its every step.
"""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable
from typing import Final

from tests.support.b2like import Kind, Request

FAULT_SHARE: Final = 0.04
"""Of all requests; a bad day of a store is one in a hundred."""
_BEFORE: Final = (Kind.CUT_BEFORE, Kind.SLOW_DOWN, Kind.INTERNAL_ERROR)
_AFTER: Final = (Kind.CUT_AFTER, Kind.INTERNAL_ERROR_AFTER, Kind.SLOW)
_READING: Final = (Kind.TRUNCATED, Kind.SLOW)
_READS: Final = frozenset({"GetObject", "ListObjectsV2", "ListObjectVersions"})

Kill = Callable[[Request], str]
"""Kills something on the occasion of a request; says what."""


class Trouble:
    """Decides about each request of a soak. Thread-safe.

    Between `arm` and the kill it counts requests; `struck` is set once somebody is dead.
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)  # noqa: S311 - a draw to be repeated
        self._lock = threading.Lock()
        self._calm = True
        self._left = 0
        self._kill: Kill | None = None
        self.struck = threading.Event()
        self.killed: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.requests = 0

    def calm(self) -> None:
        """No faults and no kills from now on."""
        with self._lock:
            self._calm, self._kill = True, None

    def arm(self, kill: Kill, requests: int) -> None:
        """Faults from now on, and a kill at the so-many-th request."""
        with self._lock:
            self._calm, self._kill, self._left = False, kill, requests
            self.struck.clear()

    def strike_now(self, request: Request) -> None:
        """Kill without waiting for a request, if none has come in time."""
        with self._lock:
            kill, self._kill = self._kill, None
        if kill is not None:
            self._carry_out(kill, request)

    def decide(self, request: Request) -> Kind | None:
        """How this request fails; called by the proxy."""
        with self._lock:
            self.requests += 1
            if self._calm:
                return None
            kill = None
            if self._kill is not None:
                self._left -= 1
                if self._left <= 0:
                    kill, self._kill = self._kill, None
            kind = self._draw(request) if kill is None else self._random.choice((*_BEFORE[:1], *_AFTER[:1]))
            if kind is not None:
                self.faults[kind.value] += 1
        if kill is not None:
            self._carry_out(kill, request)
        return kind

    def _draw(self, request: Request) -> Kind | None:
        if self._random.random() >= FAULT_SHARE:
            return None
        kinds = (*_BEFORE, *_READING) if request.operation in _READS else (*_BEFORE, *_AFTER)
        return self._random.choice(kinds)

    def _carry_out(self, kill: Kill, request: Request) -> None:
        victim = kill(request)
        with self._lock:
            self.killed[victim] += 1
        self.struck.set()
