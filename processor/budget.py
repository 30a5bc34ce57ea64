"""The day's budget: what all runners have spent since midnight, and whether more may be begun.

Each attempt writes what it has cost as a small object whose *name* carries the sum, under the
day: `state/spend/<date>/<job>/<attempt>/<millionths>`. One listing adds up the day, nothing is
read, no two writers share a key, and an attempt that died has still said what it spent. Between
two looks runners may overspend together by what they do in a minute or a renewal.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING

import structlog

from processor.errors import StoreError
from processor.layout import spend_key, spend_prefix

if TYPE_CHECKING:
    from processor.clock import Clock
    from processor.policy import Policy
    from processor.store import Store

log = structlog.get_logger(__name__)

_FRESH_S = 60.0
_MICRO = 1_000_000

Spender = tuple[str, str]
"""Job id and attempt."""


class DayBudget:
    """What the day has cost so far, as far as this process knows. One a machine; thread-safe."""

    def __init__(self, store: Store, policy: Policy, clock: Clock) -> None:
        self._store = store
        self._policy = policy
        self._clock = clock
        self._lock = threading.Lock()
        self._day: date | None = None
        self._written: dict[Spender, int] = {}
        """Millionths of a dollar, as listed or as written by us."""
        self._own: dict[Spender, int] = {}
        self._looked_at = float("-inf")

    @property
    def cap_usd(self) -> float:
        return self._policy.max_day_cost_usd

    def add(self, spender: Spender, usd: float) -> None:
        """Count what a task has just cost. Cost: none; `write` tells the others."""
        if usd <= 0:
            return
        with self._lock:
            self._turn()
            self._own[spender] = self._own.get(spender, 0) + round(usd * _MICRO)

    def write(self, spender: Spender) -> None:
        """Tell other runners. Cost: 1 request, none where nothing was spent since.

        A store out of reach is no reason to stop a job: the next write has the whole sum.
        """
        with self._lock:
            day = self._turn()
            micros = self._own.get(spender, 0)
            if micros <= self._written.get(spender, 0):
                return
        try:
            self._store.put(spend_key(day, *spender, micros), b"", media_type="text/plain")
        except StoreError as error:
            log.warning("spend.not_written", job_id=spender[0], why=str(error))
            return
        with self._lock:
            self._written[spender] = max(micros, self._written.get(spender, 0))

    def of_job(self, job_id: str, *, since: datetime) -> float:
        """What a job has cost so far, by whatever attempt, and whether or not anything came of it.

        Args:
            since: when its first attempt began.
        Raises:
            StoreError: it can't be known now.
        Cost: 1 request for each day since, this one included.
        """
        zone, spent = self._policy.zone, dict[tuple[date, str], int]()
        day, today = since.astimezone(zone).date(), self._clock.now().astimezone(zone).date()
        while day <= today:
            for (_, attempt), micros in self._sums(day, below=f"{job_id}/"):
                spent[day, attempt] = max(micros, spent.get((day, attempt), 0))
            day += timedelta(days=1)
        return sum(spent.values()) / _MICRO

    def spent_usd(self) -> float:
        """What the day has cost. Cost: 1 request a minute, for each 1,000 entries of the day."""
        with self._lock:
            day, stale = self._turn(), self._clock.monotonic() - self._looked_at > _FRESH_S
        if stale:
            self._look(day)
        with self._lock:
            everyone = self._written.keys() | self._own.keys()
            return sum(max(self._written.get(who, 0), self._own.get(who, 0)) for who in everyone) / _MICRO

    def why_used_up(self) -> str | None:
        """That nothing more may be begun today, for people; None if it may. Cost: see `spent_usd`."""
        spent_usd = self.spent_usd()
        used_up = spent_usd >= self.cap_usd
        return f"the day has cost ${spent_usd:.2f} of ${self.cap_usd:.2f}" if used_up else None

    @property
    def used_up(self) -> bool:
        """Whether nothing more may be begun today. Cost: see `spent_usd`."""
        return self.spent_usd() >= self.cap_usd

    def _look(self, day: date) -> None:
        listed: list[tuple[Spender, int]] = []
        try:
            listed.extend(self._sums(day))
        except StoreError as error:
            # Known sums still count; not knowing the others' must not stop every job.
            log.warning("spend.not_read", why=str(error))
        with self._lock:
            if day == self._day:
                for who, sum_so_far in listed:
                    self._written[who] = max(sum_so_far, self._written.get(who, 0))
                self._looked_at = self._clock.monotonic()

    def _sums(self, day: date, *, below: str = "") -> Iterator[tuple[Spender, int]]:
        """Each sum that was written on a day, in millionths of a dollar; the later ones are larger."""
        prefix = spend_prefix(day)
        for page in self._store.list(prefix + below):
            for item in page.objects:
                job, attempt, micros = [*item.key[len(prefix) :].split("/"), "", ""][:3]
                if micros.isdecimal():
                    yield (job, attempt), int(micros)

    def _turn(self) -> date:
        """Begin a new day at midnight in the policy's zone; call under the lock."""
        day = self._clock.now().astimezone(self._policy.zone).date()
        if day != self._day:
            self._day, self._written, self._own = day, {}, {}
            self._looked_at = float("-inf")
        return day
