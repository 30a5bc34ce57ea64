"""Wake the loop when something is dropped in a folder-bucket. The scan still decides."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from processor.layout import CONTROL, INBOX
from processor.run import Wake
from processor.store import Store
from processor.store.directory import DirectoryStore

_STEP_MS = 10
"""Quiet time after a change before it is reported; the rest of a burst comes with the next."""


@contextmanager
def waking(store: Store, wake: Wake) -> Iterator[bool]:
    """While inside, any change below `inbox/` wakes the loop at once.

    Yields:
        Whether anything is watched: only a folder-bucket can be.
    """
    if not isinstance(store, DirectoryStore):
        yield False
        return
    inbox = store.root / INBOX
    inbox.mkdir(parents=True, exist_ok=True)
    control = str(store.root / CONTROL)
    ended = threading.Event()

    def watch() -> None:
        from watchfiles import Change, watch  # late: buckets elsewhere don't need it

        def is_news(change: Change, path: str) -> bool:
            # What leaves the inbox was settled, mostly by ourselves; but a pause may end so.
            return change is not Change.deleted or path.startswith(control)

        changes = watch(
            inbox,
            watch_filter=is_news,
            stop_event=ended,
            step=_STEP_MS,
            debounce=5 * _STEP_MS,
            raise_interrupt=False,
        )
        for _ in changes:
            wake.set()

    thread = threading.Thread(target=watch, name="watch", daemon=True)
    thread.start()
    try:
        yield True
    finally:
        ended.set()
        thread.join()
