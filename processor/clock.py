"""Time, injected. Protocol time is the store's, so that hosts with wrong clocks agree."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Final, Protocol

from processor.errors import StoreUnavailable

MAX_ROUND_TRIP_S = 15.0
"""Half of the default margin by which a taker waits longer than a holder works."""


class Clock(Protocol):
    """A source of time. `now` is aware UTC; `monotonic` never goes back."""

    def now(self) -> datetime: ...

    def monotonic(self) -> float: ...

    def sleep(self, seconds: float) -> None: ...


_ELAPSED: Final[int] = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""Goes on while a laptop sleeps, on Linux (clock_gettime(2)) and on macOS (its clock_gettime(3)), where
`time.monotonic` stands still: a lease would seem to stand when its lid is opened again."""


class SystemClock:
    """This machine's clock. `monotonic` counts what it has slept, where the system tells; its zero is
    its own, so that it can't be compared with `time.monotonic`."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return time.clock_gettime(_ELAPSED)

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


class StoreClock:
    """The store's Date plus this machine's monotonic time since it was read.

    Two hosts that disagree by minutes still agree on when a lease ends, because both
    count from the same store's clock. Until the first `sync` it is the base clock.
    Thread-safe.
    """

    def __init__(self, base: Clock) -> None:
        self._base = base
        self._lock = threading.Lock()
        self._anchor: tuple[datetime, float] | None = None

    def sync(self, store_date: datetime, *, sent_at: float) -> None:
        """Anchor to the Date of a reply whose request was sent at monotonic `sent_at`.

        Anchoring at the sending, not the receipt, errs towards a late `now`: a lease
        seems to end a round trip early to its holder, never late. To a taker it seems to
        end early, too, so a reply that took long is refused.

        Raises:
            StoreUnavailable: the round trip took longer than `MAX_ROUND_TRIP_S`.
        """
        taken_s = self._base.monotonic() - sent_at
        if taken_s > MAX_ROUND_TRIP_S:
            raise StoreUnavailable(
                f"the store took {taken_s:.0f} s to tell the time: leases can't be judged by it"
            )
        with self._lock:
            self._anchor = (store_date, sent_at)

    @property
    def skew_s(self) -> float | None:
        """How far the base clock runs ahead of the store's; None before the first sync."""
        if self._anchor is None:
            return None
        return (self._base.now() - self.now()).total_seconds()

    def now(self) -> datetime:
        anchor = self._anchor
        if anchor is None:
            return self._base.now()
        date, at = anchor
        return date + timedelta(seconds=self._base.monotonic() - at)

    def monotonic(self) -> float:
        return self._base.monotonic()

    def sleep(self, seconds: float) -> None:
        self._base.sleep(seconds)
