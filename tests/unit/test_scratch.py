"""Scratch folders: gone when closed, gone when their process was killed, never while it lives."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from processor.scratch import TaskFolders, remove_abandoned, scratch_folder

_HOLDER = """
import sys
from pathlib import Path
from processor.scratch import ScratchFolder
folder = ScratchFolder(Path(sys.argv[1]))
(folder.path / "half-written").write_text("x")
print(folder.path, flush=True)
sys.stdin.read()
"""


def test_only_folders_of_dead_processes_go(tmp_path: Path) -> None:
    """A killed process's folder goes, a living one's and other people's stay."""
    other = tmp_path / "somebody's"
    other.mkdir()
    command = [sys.executable, "-c", _HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        left = Path(holder.stdout.readline().strip())
        with scratch_folder(tmp_path) as mine:
            assert remove_abandoned(tmp_path) == 0
            holder.kill()
            holder.wait(timeout=10)
            assert (left / "half-written").exists()
            assert remove_abandoned(tmp_path) == 1
            assert mine.is_dir()
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == [other]


def test_a_place_that_is_not_there_yet(tmp_path: Path) -> None:
    """Looking makes nothing; using makes it and tidies up."""
    place = tmp_path / "deep" / "work"
    assert remove_abandoned(place) == 0
    assert not place.exists()
    with scratch_folder(place) as folder:
        (folder / "file").write_text("x")
    assert not folder.exists()


def test_tasks_share_one_lock_and_no_folder(tmp_path: Path) -> None:
    """Each gets an empty one; it goes with its task, and the rest when the launcher closes."""
    folders = TaskFolders(tmp_path)
    with folders.folder() as first, folders.folder() as second:
        assert first != second
        (first / "out.png").write_bytes(b"x")
        assert list(second.iterdir()) == []
        assert len(list(tmp_path.glob("scratch-*"))) == 1
    assert not first.exists()
    folders.close()
    assert list(tmp_path.glob("scratch-*")) == []
