"""Nights and cron times: across zones, days on which clocks change, and missed times."""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo

import pytest
from cronsim import CronSim
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from processor.schedule import Night, Schedule

BERLIN = ZoneInfo("Europe/Berlin")
zones = st.sampled_from(
    [ZoneInfo(name) for name in ("UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe")]
)
"""Lord Howe's clocks change by half an hour."""
moments = st.integers(0, 4 * 365 * 86_400).map(
    lambda passed_s: datetime(2024, 1, 1, tzinfo=UTC) + timedelta(seconds=passed_s)
)
times = st.times().map(lambda at: at.replace(second=0, microsecond=0))
crons = st.sampled_from(
    ["0 6 * * *", "30 2 * * *", "*/20 * * * *", "15 1,3 * * 1-5", "0 0 1 * *", "30 2 29 2 *", "0 12 * * 7"]
)


def berlin(*args: int) -> datetime:
    return datetime(*args, tzinfo=BERLIN)  # type: ignore[arg-type,misc]


class TestNight:
    @given(times, times, zones, moments)
    def test_a_moment_is_in_the_newest_window_or_after_it(
        self, start: time, end: time, zone: ZoneInfo, now: datetime
    ) -> None:
        """`begun`, `closed` and `is_open` agree whatever the clocks of that day do."""
        night = Night(start, end, zone)
        begun, closed = night.begun(now), night.closed(now)
        assert begun.opens <= now < night.next_opening(now)
        assert closed.closes <= now
        assert night.is_open(now) == (now < begun.closes)
        assert closed.opens <= begun.opens

    @given(times, times, zones, moments)
    def test_windows_do_not_overlap(self, start: time, end: time, zone: ZoneInfo, now: datetime) -> None:
        """So that a job belongs to one night, and a night has one report."""
        night = Night(start, end, zone)
        first = night.begun(now)
        second = night.begun(night.next_opening(now))
        assert first.opens < second.opens
        assert first.closes <= second.opens
        assert first.morning < second.morning

    def test_a_window_over_midnight_is_named_by_its_morning(self) -> None:
        night = Night(time(22), time(6), BERLIN)
        window = night.begun(berlin(2026, 11, 24, 3))
        assert window.opens == berlin(2026, 11, 23, 22)
        assert window.closes == berlin(2026, 11, 24, 6)
        assert window.morning.isoformat() == "2026-11-24"
        assert not night.is_open(berlin(2026, 11, 24, 6))
        assert night.is_open(berlin(2026, 11, 24, 22))

    @pytest.mark.parametrize("minute", [0, 1, 30, 59])
    def test_a_window_that_would_open_in_the_skipped_hour_opens_as_clocks_change(self, minute: int) -> None:
        """On 2026-03-29 Berlin's clocks go from 02:00 to 03:00; a later opening would be at 03:30."""
        night = Night(time(2, minute), time(7), BERLIN)
        assert not night.is_open(datetime(2026, 3, 29, 0, 59, 59, tzinfo=UTC))
        assert night.is_open(datetime(2026, 3, 29, 1, tzinfo=UTC))
        window = night.begun(datetime(2026, 3, 29, 4, tzinfo=UTC))
        assert window.closes - window.opens == timedelta(hours=4)

    def test_a_window_that_would_close_in_the_skipped_hour_closes_as_clocks_change(self) -> None:
        window = Night(time(23), time(2, 30), BERLIN).begun(datetime(2026, 3, 29, tzinfo=UTC))
        assert window.closes == datetime(2026, 3, 29, 1, tzinfo=UTC)

    def test_half_an_hour_may_be_skipped(self) -> None:
        """On 2026-10-04 Lord Howe's clocks go from 02:00 (+10:30) to 02:30."""
        night = Night(time(2, 10), time(7), ZoneInfo("Australia/Lord_Howe"))
        assert night.next_opening(datetime(2026, 10, 3, 12, tzinfo=UTC)) == datetime(
            2026, 10, 3, 15, 30, tzinfo=UTC
        )

    def test_a_window_with_the_repeated_hour_is_an_hour_longer_and_opens_once(self) -> None:
        """On 2026-10-25 Berlin's clocks go from 03:00 back to 02:00."""
        night = Night(time(1), time(7), BERLIN)
        window = night.begun(datetime(2026, 10, 25, 3, tzinfo=UTC))
        assert window.closes - window.opens == timedelta(hours=7)
        assert night.next_opening(window.opens) == berlin(2026, 10, 26, 1)

    def test_equal_times_are_always_open(self) -> None:
        night = Night(time(5), time(5), BERLIN)
        assert all(night.is_open(berlin(2026, 3, 29, hour)) for hour in range(24))


class TestSchedule:
    @given(crons, zones, moments, st.integers(0, 5_000_000), st.integers(1, 24))
    def test_due_is_the_newest_of_all_that_is_past_and_after_the_upload(
        self, cron: str, zone: ZoneInfo, since: datetime, later_s: int, catch_up: int
    ) -> None:
        """Looked for backwards, it is what counting forwards from the upload comes to."""
        now = since + timedelta(seconds=min(later_s, 200_000))
        forwards = []
        for moment in CronSim(cron, since.astimezone(zone)):
            if moment > now:
                break
            if moment > since:
                forwards.append(moment.astimezone(UTC))
        due = Schedule(cron=cron, catch_up=catch_up).due(since=since, now=now, zone=zone)
        assert due == forwards[-catch_up:]

    @given(crons, zones, moments, st.lists(st.integers(1, 100_000), min_size=1, max_size=8))
    def test_each_due_time_is_seen_once_however_often_one_looks(
        self, cron: str, zone: ZoneInfo, since: datetime, pauses: list[int]
    ) -> None:
        """Looking again never brings up a time that is older than one seen before."""
        schedule, now, seen = Schedule(cron=cron), since, [since]
        for pause in pauses:
            now += timedelta(seconds=pause)
            due = schedule.due(since=since, now=now, zone=zone)
            assert len(due) <= 1
            if due and due[0] != seen[-1]:
                assert due[0] > seen[-1]
                seen.append(due[0])

    def test_a_due_second_is_due_in_that_second(self) -> None:
        at = datetime(2026, 5, 1, 6, tzinfo=UTC)
        day = timedelta(days=1)
        schedule = Schedule(cron="0 6 * * *")
        assert schedule.due(since=at - day / 2, now=at, zone=ZoneInfo("UTC")) == [at]
        assert schedule.due(since=at - day / 2, now=at - day / 86400, zone=ZoneInfo("UTC")) == []

    def test_missed_times_are_made_up_for_as_often_as_asked(self) -> None:
        """A week away: once by default, at most the newest three with `catch_up` 3."""
        since, now = datetime(2026, 5, 1, tzinfo=UTC), datetime(2026, 5, 8, 12, tzinfo=UTC)
        utc = ZoneInfo("UTC")
        assert [d.day for d in Schedule(cron="0 6 * * *").due(since=since, now=now, zone=utc)] == [8]
        three = Schedule(cron="0 6 * * *", catch_up=3).due(since=since, now=now, zone=utc)
        assert [d.day for d in three] == [6, 7, 8]

    def test_its_own_zone_goes_before_the_settings(self) -> None:
        schedule = Schedule(cron="0 6 * * *", zone="Europe/Berlin")
        due = schedule.due(
            since=berlin(2026, 7, 1, 0), now=berlin(2026, 7, 1, 23), zone=ZoneInfo("America/New_York")
        )
        assert due == [berlin(2026, 7, 1, 6)]

    @pytest.mark.parametrize("day", [29, 30])
    def test_the_skipped_hour_is_not_skipped(self, day: int) -> None:
        """02:30 does not exist on 2026-03-29 in Berlin: due when the clocks have changed."""
        schedule = Schedule(cron="30 2 * * *")
        due = schedule.due(since=berlin(2026, 3, day, 0), now=berlin(2026, 3, day, 12), zone=BERLIN)
        assert due == [berlin(2026, 3, 29, 3) if day == 29 else berlin(2026, 3, 30, 2, 30)]

    def test_the_repeated_hour_is_due_once(self) -> None:
        schedule = Schedule(cron="30 2 * * *", catch_up=24)
        due = schedule.due(since=berlin(2026, 10, 25, 0), now=berlin(2026, 10, 25, 12), zone=BERLIN)
        assert len(due) == 1

    @pytest.mark.parametrize(
        "wrong",
        [
            "6 o'clock",
            "* * * *",
            "61 * * * *",
            "0 0 30 2 *",
            "* * * * * *",
            {"cron": "0 6 * * *", "zone": "Mars"},
        ],
    )
    def test_what_never_comes_is_refused(self, wrong: object) -> None:
        with pytest.raises(ValidationError):
            Schedule.model_validate(wrong)
