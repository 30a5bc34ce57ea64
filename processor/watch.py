"""Wake the loop when something is dropped in a folder-bucket. The scan still decides."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import structlog

from processor.layout import CONTROL, INBOX
from processor.run import Wake
from processor.store import Store
from processor.store.directory import DirectoryStore

log = structlog.get_logger(__name__)

_STEP_MS = 10
"""Quiet time after a change before it is reported; the rest of a burst comes with the next."""


@contextmanager
def waking(store: Store, wake: Wake) -> Iterator[bool]:
    """While inside, any change below `inbox/` wakes the loop at once.

    Yields:
        Whether anything is watched: only a folder-bucket can be. Where the system refuses,
        that is logged, and drops are found by the loop's own period.
    """
    if not isinstance(store, DirectoryStore):
        yield False
        return
    with suppress(OSError):  # the watch says that there is none
        (store.root / INBOX).mkdir(parents=True, exist_ok=True)
    ended = threading.Event()
    thread = threading.Thread(target=_watch, args=(store.root, wake, ended), name="watch", daemon=True)
    thread.start()
    try:
        yield True
    finally:
        ended.set()
        thread.join()


def _watch(root: Path, wake: Wake, ended: threading.Event) -> None:
    from watchfiles import Change, watch  # late: buckets elsewhere don't need it

    control = str(root / CONTROL)

    def is_news(change: Change, path: str) -> bool:
        # What leaves the inbox was settled, mostly by ourselves; but a pause may end so.
        return change is not Change.deleted or path.startswith(control)

    try:
        changes = watch(
            root / INBOX,
            watch_filter=is_news,
            stop_event=ended,
            step=_STEP_MS,
            debounce=5 * _STEP_MS,
            raise_interrupt=False,
        )
        for _ in changes:
            wake.set()
    except (OSError, RuntimeError) as error:  # its own kind for what no OSError stands for
        log.warning("watch.ended", why=str(error), mend=_mend(error))


def _mend(error: Exception) -> str:
    if isinstance(error, PermissionError):
        cause = "let this user read the folder"
    elif isinstance(error, FileNotFoundError):
        cause = "make the folder, or let this user make it"
    else:
        cause = "raise fs.inotify.max_user_watches and max_user_instances by sysctl"
    return f"Drops are found by looking now and then; for at once, {cause} and start again"
