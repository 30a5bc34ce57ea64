"""When things are due: the nightly window, and the times of a recurring template. Pure.

Both are wall-clock times of a zone, turned into instants before they are compared, so that the
days on which clocks change are no special case: a window that would open (or close) in the
skipped hour does so in the instant of the change, and one in the repeated hour opens once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError
from pydantic import Field, field_validator, model_validator

from processor.models import Model

_DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Window:
    """One night: an instant it opens, an instant it closes."""

    opens: datetime
    closes: datetime
    morning: date
    """The local day on which it closes: what its report is named by."""

    def __contains__(self, moment: datetime) -> bool:
        return self.opens <= moment < self.closes


@dataclass(frozen=True, slots=True)
class Night:
    """The nightly window, every day. Equal times: always open."""

    start: time
    end: time
    zone: ZoneInfo

    def is_open(self, now: datetime) -> bool:
        """Whether held jobs may begin."""
        return now in self.begun(now)

    def begun(self, now: datetime) -> Window:
        """The newest window that has opened, closed by now or not."""
        return self._newest(now, lambda window: window.opens)

    def closed(self, now: datetime) -> Window:
        """The newest window that is over."""
        return self._newest(now, lambda window: window.closes)

    def next_opening(self, now: datetime) -> datetime:
        """When it opens next; later than now."""
        day = now.astimezone(self.zone).date() - _DAY
        while (opens := self._on(day).opens) <= now:
            day += _DAY
        return opens

    def _newest(self, now: datetime, edge: Callable[[Window], datetime]) -> Window:
        day = now.astimezone(self.zone).date() + _DAY
        while edge(window := self._on(day)) > now:
            day -= _DAY
        return window

    def _on(self, day: date) -> Window:
        """The window that opens on a local day."""
        morning = day if self.end > self.start else day + _DAY
        return Window(self._instant(day, self.start), self._instant(morning, self.end), morning)

    def _instant(self, day: date, at: time) -> datetime:
        early, late = (
            datetime.combine(day, at.replace(fold=fold), self.zone).astimezone(UTC) for fold in (1, 0)
        )
        # Of a time that occurs twice the first (fold 0) is meant; of one that is skipped, it is the later.
        return _change_between(early, late, self.zone) if early < late else late


def _change_between(before: datetime, after: datetime, zone: ZoneInfo) -> datetime:
    """The instant at which a zone's clocks change, to the second, which lies between these two."""
    first, last = int(before.timestamp()), int(after.timestamp())
    new = after.astimezone(zone).utcoffset()
    while first < last:
        middle = (first + last) // 2
        if datetime.fromtimestamp(middle, zone).utcoffset() == new:
            last = middle
        else:
            first = middle + 1
    return datetime.fromtimestamp(last, UTC)


class Schedule(Model):
    """When a recurring template emits: `"0 6 * * 1-5"`, or an object with zone and catch-up."""

    cron: str = Field(max_length=200)
    """Five fields: minute, hour, day, month, weekday."""
    zone: str | None = None
    """Like `Europe/Berlin`; the one of the settings otherwise."""
    catch_up: int = Field(default=1, ge=1, le=24)
    """How many missed times are made up for, the newest; the others are skipped for good."""

    @model_validator(mode="before")
    @classmethod
    def _text_is_cron(cls, value: Any) -> Any:
        return {"cron": value} if isinstance(value, str) else value

    @field_validator("cron")
    @classmethod
    def _is_cron(cls, value: str) -> str:
        try:
            ends = next(CronSim(value, datetime(2024, 1, 1, tzinfo=UTC)), None)
        except CronSimError as error:
            raise ValueError(f"not a cron expression: {error}") from None
        if len(value.split()) != 5 or ends is None:
            raise ValueError("not a cron expression: five fields, minute to weekday, that ever come true")
        return value

    @field_validator("zone")
    @classmethod
    def _is_zone(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                ZoneInfo(value)
            except (ZoneInfoNotFoundError, ValueError, OSError):
                raise ValueError(f"no such time zone: {value!r}; write it like Europe/Berlin") from None
        return value

    def due(self, *, since: datetime, now: datetime, zone: ZoneInfo) -> list[datetime]:
        """The times that are past and after `since`: the newest `catch_up` of them, oldest first.

        Args:
            since: when the template was uploaded; what was due before is none of its business.
            zone: used where the schedule names none.
        """
        found: list[datetime] = []
        for moment in self._backwards(now, ZoneInfo(self.zone) if self.zone else zone):
            if moment <= since or len(found) == self.catch_up:
                break
            found.append(moment)
        return found[::-1]

    def _backwards(self, now: datetime, zone: ZoneInfo) -> Iterator[datetime]:
        # Strictly before its start, so a second later finds what is due this very second.
        for moment in CronSim(self.cron, (now + timedelta(seconds=1)).astimezone(zone), reverse=True):
            instant = moment.astimezone(UTC)
            if instant <= now:
                yield instant
