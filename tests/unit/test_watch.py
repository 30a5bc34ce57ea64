"""The watch on a folder's inbox: it wakes the loop, and where it can't it says so once."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import watchfiles
from structlog.testing import capture_logs

from processor.run import Wake
from processor.store.directory import DirectoryStore
from processor.watch import waking


class Noticing(Wake):
    """Tells a test that it was set."""

    def __init__(self) -> None:
        super().__init__()
        self.noticed = threading.Event()

    def set(self) -> None:
        super().set()
        self.noticed.set()


def test_a_drop_wakes_the_loop(tmp_path: Path) -> None:
    """In a bucket that had no inbox yet."""
    wake = Noticing()
    with waking(DirectoryStore(tmp_path), wake) as watched:
        assert watched
        for number in range(100):  # whatever comes before the watch stands is no news to it
            (tmp_path / f"inbox/{number}.json").write_text("{}")
            if wake.noticed.wait(0.1):
                break
    assert wake.noticed.is_set()


@pytest.mark.parametrize(
    ("error", "mend"),
    [
        (PermissionError("Permission denied (os error 13)"), "read the folder"),
        (FileNotFoundError("No path was found."), "make the folder"),
        (OSError("OS file watch limit reached."), "max_user_watches"),
        (RuntimeError("Error creating recommended watcher: Too many open files"), "max_user_instances"),
    ],
)
def test_a_watch_that_the_system_refuses_is_one_line(
    tmp_path: Path, error: Exception, mend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop goes on; an uncaught exception of a thread would fail this test."""

    def refused(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(watchfiles, "watch", refused)
    with capture_logs() as logs, waking(DirectoryStore(tmp_path), Wake()):
        pass
    (line,) = logs
    assert (line["event"], line["why"]) == ("watch.ended", str(error))
    assert mend in line["mend"]
