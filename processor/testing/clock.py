"""A clock that moves only when told, so that hours pass in a test without waiting."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


class ManualClock:
    """A `Clock` for tests: `sleep` returns at once and moves the time. Thread-safe.

    Args:
        start: aware UTC.
    """

    def __init__(self, start: datetime = EPOCH) -> None:
        self._start = start
        self._passed_s = 0.0
        self._set_by_s = 0.0
        self._lock = threading.Lock()

    def now(self) -> datetime:
        with self._lock:
            return self._start + timedelta(seconds=self._passed_s + self._set_by_s)

    def monotonic(self) -> float:
        with self._lock:
            return self._passed_s

    def sleep(self, seconds: float) -> None:
        self.advance(seconds)

    def advance(self, seconds: float) -> None:
        """Let time pass, on the wall and on the monotonic clock alike; >= 0."""
        if seconds < 0:
            raise ValueError("time does not go back; use set_wall for a wrong clock")
        with self._lock:
            self._passed_s += seconds

    def set_wall(self, now: datetime) -> None:
        """Set the wall clock, as a person or NTP does; the monotonic clock doesn't notice."""
        with self._lock:
            self._set_by_s = (now - self._start).total_seconds() - self._passed_s
