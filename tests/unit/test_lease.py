"""Leases: who may run a job, and until when."""

from __future__ import annotations

import fcntl
import time
from datetime import timedelta
from pathlib import Path
from typing import IO

import pytest
from structlog.testing import capture_logs

from processor.clock import SystemClock
from processor.errors import ForeignAuthority, LeaseLost, StoreUnavailable
from processor.leases.authority import Authority
from processor.leases.inheritance import InheritedLeases
from processor.leases.lease import Leases
from processor.leases.memory import MemoryLeases
from processor.leases.protocol import Record
from processor.policy import Policy
from processor.store.memory import MemoryStore
from processor.testing.clock import ManualClock
from processor.testing.counting import CountingLeases, CountingStore

JOB = "a-0123456789abcdef"
TERM_S, MARGIN_S = 600.0, 30.0


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def leases(clock: ManualClock) -> Leases:
    return Leases(MemoryLeases(), clock, lease_s=TERM_S, margin_s=MARGIN_S)


def test_only_one_owner_holds_a_job(leases: Leases) -> None:
    """The second asks in vain while the first's lease stands."""
    assert leases.acquire(JOB, nonce="a") is not None
    assert leases.acquire(JOB, nonce="b") is None


def test_asking_again_with_the_same_nonce_is_the_same_lease(leases: Leases) -> None:
    """A reply that was lost is asked for again, not lost."""
    first, again = leases.acquire(JOB, nonce="a"), leases.acquire(JOB, nonce="a")
    assert first is not None
    assert again is not None
    assert first.epoch == again.epoch == 1


def test_an_expired_lease_is_taken_over_with_the_next_epoch(leases: Leases, clock: ManualClock) -> None:
    """And the former owner finds out before it does anything more."""
    first = leases.acquire(JOB, nonce="a")
    assert first is not None
    clock.advance(TERM_S + MARGIN_S)
    second = leases.acquire(JOB, nonce="b")
    assert second is not None
    assert second.epoch == 2
    assert not leases.holds(first)
    with pytest.raises(LeaseLost):
        leases.renew(first)


def test_a_taker_waits_out_the_margin(leases: Leases, clock: ManualClock) -> None:
    """The holder stops a margin early, the taker waits a margin longer."""
    first = leases.acquire(JOB, nonce="a")
    assert first is not None
    clock.advance(TERM_S - MARGIN_S)
    assert not leases.holds(first)
    clock.advance(2 * MARGIN_S - 0.001)
    assert leases.acquire(JOB, nonce="b") is None


def test_renewal_extends_and_release_ends(leases: Leases, clock: ManualClock) -> None:
    """A renewed lease outlives its first term; a released one is free at once."""
    lease = leases.acquire(JOB, nonce="a")
    assert lease is not None
    clock.advance(TERM_S / 2)
    lease = leases.renew(lease)
    assert lease.until == clock.now() + timedelta(seconds=TERM_S)
    clock.advance(TERM_S * 0.8)
    assert leases.acquire(JOB, nonce="b") is None
    leases.release(lease)
    taken = leases.acquire(JOB, nonce="b")
    assert taken is not None
    assert taken.epoch == 2


def test_an_heir_takes_over_at_once(leases: Leases) -> None:
    """Whoever was handed a lease need not wait for it to run out; its giver has lost it then."""
    first = leases.acquire(JOB, nonce="a")
    assert first is not None
    heir = leases.acquire(JOB, nonce="b", heir_of=first)
    assert heir is not None
    assert heir.epoch == 2
    with pytest.raises(LeaseLost):
        leases.renew(first)
    assert leases.acquire(JOB, nonce="c", heir_of=first) is None


def test_a_lease_that_the_store_forgot_is_lost(leases: Leases) -> None:
    """A wiped lease store ends every lease at its next renewal."""
    lease = leases.acquire(JOB, nonce="a")
    assert lease is not None
    leases.store.delete(f"lease/{JOB}/1")
    with pytest.raises(LeaseLost):
        leases.renew(lease)


def inheriting(store: MemoryLeases, clock: ManualClock, folder: Path) -> InheritedLeases:
    return InheritedLeases(store, clock, lease_s=TERM_S, margin_s=MARGIN_S, folder=folder)


def test_a_dead_runners_leases_are_inherited_a_living_ones_are_not(
    clock: ManualClock, tmp_path: Path
) -> None:
    """After kill -9 the next runner on this machine carries on without waiting."""
    store = MemoryLeases()
    first = inheriting(store, clock, tmp_path)
    assert first.acquire(JOB, nonce="a") is not None
    second = inheriting(store, clock, tmp_path)
    assert second.acquire(JOB, nonce="b") is None
    first._notes.close()  # what the kernel does to a killed process
    third = inheriting(store, clock, tmp_path)
    lease = third.acquire(JOB, nonce="c")
    assert lease is not None
    assert lease.epoch == 2
    second.close()
    third.close()


class DyingLeases(MemoryLeases):
    """Whoever asks it dies before the reply; what was asked for stands."""

    def create(self, key: str, value: Record) -> Record:
        super().create(key, value)
        raise KeyboardInterrupt


def test_a_lease_whose_reply_its_owner_did_not_live_to_see_is_inherited(
    clock: ManualClock, tmp_path: Path
) -> None:
    """Killed right after it asked; and its first heir dies in the same place."""
    store = DyingLeases()
    for nonce in ("a", "b"):
        dead = inheriting(store, clock, tmp_path)
        with pytest.raises(KeyboardInterrupt):
            dead.acquire(JOB, nonce=nonce)
        dead._notes.close()
    living = MemoryLeases()
    living._records = store._records
    third = inheriting(living, clock, tmp_path)
    lease = third.acquire(JOB, nonce="c")
    assert lease is not None
    assert lease.epoch == 2
    third.close()


def test_an_heir_that_dies_idle_passes_on_what_it_was_left(clock: ManualClock, tmp_path: Path) -> None:
    """It took over the notes, and was killed before it took the lease."""
    store = MemoryLeases()
    first = inheriting(store, clock, tmp_path)
    assert first.acquire(JOB, nonce="a") is not None
    first._notes.close()
    inheriting(store, clock, tmp_path)._notes.close()
    third = inheriting(store, clock, tmp_path)
    assert third.acquire(JOB, nonce="c") is not None
    third.close()


def test_notes_stay_short_and_are_still_whole(
    clock: ManualClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A runner that asks for others' jobs all day long; what it holds meanwhile is inherited still."""
    monkeypatch.setattr("processor.leases.inheritance._MANY", 20)
    store = MemoryLeases()
    other = Leases(store, clock, lease_s=TERM_S, margin_s=MARGIN_S)
    assert other.acquire("others", nonce="o") is not None
    first = inheriting(store, clock, tmp_path)
    assert first.acquire(JOB, nonce="a") is not None
    for _ in range(99):
        assert first.acquire("others", nonce="a") is None
    assert len(first._path.read_text().splitlines()) <= 25
    first._notes.close()
    second = inheriting(store, clock, tmp_path)
    assert second.acquire("others", nonce="b") is None
    lease = second.acquire(JOB, nonce="b")
    assert lease is not None
    assert lease.epoch == 2
    second.close()


def test_a_torn_note_is_no_obstacle(clock: ManualClock, tmp_path: Path) -> None:
    """A runner may die while it writes."""
    (tmp_path / "1-dead.jsonl").write_text('{"job": "x", "epoch": 1, "nonce": "a", "until": "20')
    leases = inheriting(MemoryLeases(), clock, tmp_path)
    assert leases.acquire("x", nonce="b") is not None
    leases.close()


def test_runners_that_start_together_after_one_died(
    clock: ManualClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What another takes over between our look and our opening it is neither missed nor inherited twice."""
    dead = [tmp_path / f"{number}-dead.jsonl" for number in range(2)]
    for path in dead:
        path.write_text('{"job": "x", "epoch": 1, "nonce": "a"}\n')
    locked = fcntl.flock

    def overtaken(notes: IO[str], how: int) -> None:
        locked(notes, how)
        for path in dead:  # the other has read and removed them meanwhile
            path.unlink(missing_ok=True)

    monkeypatch.setattr(fcntl, "flock", overtaken)
    leases = inheriting(MemoryLeases(), clock, tmp_path)
    assert not leases._left
    leases.close()


def test_new_notes_that_another_took_for_a_dead_runners(
    clock: ManualClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It found them before they were locked, and removed them; then they are begun again."""
    locked, times = fcntl.flock, iter(range(9))

    def overtaken(notes: IO[str], how: int) -> None:
        if next(times) == 0:
            Path(notes.name).unlink()
        locked(notes, how)

    monkeypatch.setattr(fcntl, "flock", overtaken)
    leases = inheriting(MemoryLeases(), clock, tmp_path)
    assert leases._path.exists()
    leases.close()


def test_a_full_disk_takes_the_notes_and_no_job(clock: ManualClock, tmp_path: Path) -> None:
    """They only save waiting: jobs are claimed and released all the same, and it is said once."""
    leases = inheriting(MemoryLeases(), clock, tmp_path)
    leases._notes.close()
    leases._notes = Path("/dev/full").open("w", encoding="utf-8")  # noqa: SIM115 - `close` closes it
    with capture_logs() as logs:
        for nonce in ("a", "b"):
            lease = leases.acquire(JOB, nonce=nonce)
            assert lease is not None
            leases.release(lease)
        leases.close()
    assert [line["event"] for line in logs] == ["lease.not_noted"]


def authority(store: MemoryStore, leases: MemoryLeases, clock: ManualClock, name: str) -> Authority:
    nonces = iter(f"{name}{k}" for k in range(9))
    return Authority(store, leases, clock, Policy(), nonce=lambda: next(nonces))


def test_runners_with_one_lease_store_agree(clock: ManualClock) -> None:
    """The first founds, the others find."""
    store, leases = MemoryStore(clock=clock), MemoryLeases()
    assert authority(store, leases, clock, "a").check() == authority(store, leases, clock, "b").check()


def test_a_wiped_lease_store_is_replaced_only_after_the_longest_lease(clock: ManualClock) -> None:
    """Old holders must have noticed before anyone may claim again."""
    store, leases = MemoryStore(clock=clock), MemoryLeases()
    before = authority(store, leases, clock, "a").check()
    leases.delete("authority")
    wiped = authority(store, leases, clock, "b")
    with pytest.raises(StoreUnavailable, match="lost its contents"):
        wiped.check()
    clock.advance(TERM_S)
    with pytest.raises(StoreUnavailable):
        wiped.check()
    clock.advance(2 * MARGIN_S)
    after = wiped.check()
    assert after.previous == before.id
    assert authority(store, leases, clock, "c").check() == after


def test_what_a_wiped_lease_store_forgot_is_known_while_it_is_asked_again(clock: ManualClock) -> None:
    """Other threads' jobs ask meanwhile, and after no answer came, whether they may have a past."""

    class Watched(MemoryLeases):
        def read(self, key: str) -> Record | None:
            known.append(ours.older_than_founding(dropped))
            if out_of_reach:
                raise StoreUnavailable("out of reach")
            return super().read(key)

    known: list[bool] = []
    out_of_reach = False
    store, leases, dropped = MemoryStore(clock=clock), Watched(), clock.now()
    ours = authority(store, leases, clock, "a")
    ours.check()
    leases.delete("authority")
    clock.advance(1)
    with pytest.raises(StoreUnavailable, match="lost its contents"):
        ours.check()
    clock.advance(TERM_S + 2 * MARGIN_S)
    ours.check()
    known.clear()
    clock.advance(1)
    ours.check()
    out_of_reach = True
    clock.advance(1)
    with pytest.raises(StoreUnavailable, match="out of reach"):
        ours.check()
    assert known == [True, True]
    assert ours.older_than_founding(dropped)
    with pytest.raises(StoreUnavailable, match="out of reach"):
        ours.check(max_age_s=10.0)


def test_another_lease_store_is_refused_with_its_name(clock: ManualClock) -> None:
    """Even if it has an authority of its own for another bucket."""
    store, ours, theirs = MemoryStore(clock=clock), MemoryLeases(), MemoryLeases()
    authority(store, ours, clock, "a").check()
    authority(MemoryStore(clock=clock), theirs, clock, "b").check()
    with pytest.raises(ForeignAuthority, match="it claims nothing"):
        authority(store, theirs, clock, "c").check()


def test_nothing_is_founded_upon_stale_answers(clock: ManualClock) -> None:
    """While the lease store's answer was on its way another may have founded: ask again."""

    class Slow(MemoryLeases):
        def create(self, key: str, value: Record) -> Record:
            clock.advance(60)
            return super().create(key, value)

    store = MemoryStore(clock=clock)
    slow = authority(store, Slow(), clock, "slow")
    with pytest.raises(StoreUnavailable, match="too long"):
        slow.check()
    rulers = MemoryLeases()
    ruler = authority(store, rulers, clock, "ruler").check()
    with pytest.raises(ForeignAuthority):
        slow.check()
    assert authority(store, rulers, clock, "again").check() == ruler


def test_while_the_lease_store_says_the_same_the_bucket_is_not_asked_again(clock: ManualClock) -> None:
    """It names another founding only after the lease store does; ten seconds are allowed for the rest."""
    store, leases = CountingStore(MemoryStore(clock=clock)), CountingLeases(MemoryLeases())
    ours = Authority(store, leases, clock, Policy(), nonce=lambda: "a")
    ours.check()
    for wait_s, asked_of_store, asked_of_leases in ((1, 0, 1), (0, 0, 0), (8, 0, 1), (2, 1, 1)):
        clock.advance(wait_s)
        store.reset()
        leases.reset()
        ours.check(max_age_s=10.0, since=clock.monotonic())
        assert (store.total, leases.total) == (asked_of_store, asked_of_leases)


def test_an_answer_from_before_a_lease_does_not_vouch_for_it(clock: ManualClock) -> None:
    """Young enough, but asked before: the lease store may have been wiped in between."""
    store, leases = MemoryStore(clock=clock), MemoryLeases()
    ours = authority(store, leases, clock, "a")
    founding = ours.check()
    clock.advance(1)
    leases.delete("authority")
    assert ours.check(max_age_s=10.0) == founding
    with pytest.raises(StoreUnavailable, match="lost its contents"):
        ours.check(max_age_s=10.0, since=clock.monotonic())


def test_the_machines_clock_counts_what_it_slept() -> None:
    """A lease must not seem to stand when a laptop's lid is opened again; `time.monotonic` stands still."""
    counting = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    before = time.clock_gettime(counting)
    told = SystemClock().monotonic()
    assert before <= told <= time.clock_gettime(counting)
