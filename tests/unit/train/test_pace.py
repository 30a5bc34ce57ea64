"""When a run's next checkpoint is due, by its own steps and this machine's clock."""

from __future__ import annotations

import random

import pytest

from handlers.train.pace import Pace


def test_nobody_knows_before_some_steps_were_made() -> None:
    """Loading and compiling stand before the first one, and do not count."""
    pace = Pace(start=0, steps=1000, save_every=250)
    pace.stepped(0, 500.0)
    assert pace.ahead_s(500.0) is None
    for done in range(1, 12):
        assert pace.ahead_s(1000.0) is None
        pace.stepped(done, 1000.0 + 2 * done)
    assert pace.ahead_s(1022.0) == pytest.approx((250 - 11) * 2.0)


def test_a_save_that_is_due_or_the_end_is_not_ahead() -> None:
    """It may be on its way: its lines come on another stream than the steps."""
    pace = Pace(start=250, steps=700, save_every=250)
    for done in range(250, 501):
        pace.stepped(done, float(done))
    assert pace.ahead_s(500.0) is None
    pace.saved(500)
    pace.stepped(501, 501.0)
    assert pace.ahead_s(501.0) == pytest.approx(199.0)
    assert pace.interval_s(501.0) == pytest.approx(199.0)
    pace.stepped(700, 700.0)
    assert pace.ahead_s(700.0) is None


def test_saving_and_sampling_count_and_no_single_step_rules() -> None:
    """Pictures of three sizes in turn take from 0.75 to 2.6 s; the mean is what the next save depends on."""
    rng, now_s = random.Random(1), 0.0  # noqa: S311
    pace = Pace(start=0, steps=2000, save_every=250)
    for done in range(1, 1001):
        now_s += rng.choice((0.75, 1.45, 2.6)) + (30.0 if done % 250 == 0 else 0.0)
        pace.stepped(done, now_s)
        if done % 250 == 0:
            pace.saved(done)
            assert pace.interval_s(now_s) == pytest.approx(250 * 1.6 + 30, rel=0.1)
