"""MemoryStore: deterministic, and fast enough for large simulations."""

from __future__ import annotations

import time

from processor.store.memory import MemoryStore
from processor.testing import ManualClock


def test_versions_are_deterministic() -> None:
    """Two stores that were told the same tell the same."""

    def run() -> list[str]:
        store = MemoryStore(clock=ManualClock())
        for number in range(3):
            store.put("k", b"%d" % number)
        store.hide("k")
        return [repr(info) for page in store.list("", versions=True) for info in page.objects]

    assert run() == run()
    assert "version='v000004'" in run()[0]


def test_the_clock_is_the_stores() -> None:
    """Objects and pages are dated by the injected clock."""
    clock = ManualClock()
    store = MemoryStore(clock=clock)
    put = store.put("k", b"")
    clock.advance(60)
    assert (clock.now() - put.modified).total_seconds() == 60
    assert next(store.list("")).date == clock.now()


def test_keys_come_and_go() -> None:
    """Deleting and writing again, many times over, loses and doubles nothing."""
    store = MemoryStore(versions=False, page_size=7)
    standing: set[str] = set()
    for number in range(3000):
        key = f"k/{number * 7919 % 211:03}"
        if key in standing:
            store.delete(key, version=store.stat(key).version)
            standing.remove(key)
        else:
            store.put(key, b"")
            standing.add(key)
        if number % 97 == 0:
            assert [each.key for page in store.list("k/") for each in page.objects] == sorted(standing)


def test_a_page_costs_what_it_holds() -> None:
    """Not what the store holds: a scan of very many objects streams."""
    store = MemoryStore(put_if_absent=False)
    for number in range(100_000):
        store.put(f"inbox/{number:06}", b"")
    next(store.list("inbox/"))  # sorts once
    started = time.process_time()
    pages = store.list("inbox/", versions=True)
    for _ in range(20):
        assert len(next(pages).objects) == 1000
    store.put("inbox/000000-new", b"")
    next(store.list("inbox/05"))
    assert time.process_time() - started < 1
