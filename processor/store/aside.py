"""Removing a file only if it is the one that was meant, where the system can't compare.

The file is renamed aside, compared, and linked back if it is another. A process that dies
in between leaves a note of where the file belongs; `recover` brings it back, so that a
crash never loses what someone has just dropped.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Final

from processor.errors import InvalidKey
from processor.store.protocol import MAX_KEY_BYTES
from processor.store.tree import OWN, TEMP, Tree, split_key

ASIDE: Final = (OWN, "aside")
_NOTE: Final = ".key"
_ABANDONED_S: Final = 60.0
"""A removal takes milliseconds. One that was only slow is repeated by whoever asked for
it, since its file is back; removing twice is harmless."""
_STALE_DRAFT_S: Final = 86_400.0


def remove_if(tree: Tree, key: str, matches: Callable[[os.stat_result], bool]) -> bool:
    """Remove the file at `key` if `matches` says so of the very file that is removed.

    Returns:
        False if another file stands there; it stays, or stands again after a moment.
    Raises:
        FileNotFoundError: nothing stands there.
    """
    parts = split_key(key)
    nonce = secrets.token_hex(12)
    note = (*ASIDE, nonce + _NOTE)
    with tree.folder(parts[:-1]) as folder:
        found = os.stat(parts[-1], dir_fd=folder, follow_symlinks=False)
        if not stat.S_ISREG(found.st_mode):
            raise FileNotFoundError(errno.ENOENT, "not a regular file", parts[-1])
        if not matches(found):
            return False
        with tree.draft() as draft:
            draft.file.write(key.encode())
            draft.place(note, replace=False)
        with tree.folder(ASIDE) as aside:
            try:
                os.rename(parts[-1], nonce, src_dir_fd=folder, dst_dir_fd=aside)
                matched = matches(os.stat(nonce, dir_fd=aside, follow_symlinks=False))
                if not matched:
                    _link_back(tree, aside, nonce, parts)
                os.unlink(nonce, dir_fd=aside)
            finally:
                # After a failure amid this the note must stay while its file does.
                if not _stands(nonce, aside):
                    os.unlink(nonce + _NOTE, dir_fd=aside)
        os.fsync(folder)
    return matched


def recover(tree: Tree) -> None:
    """Clean up after processes that died: bring back what they left aside amid
    `remove_if`, and remove drafts that nobody will place any more.

    What can't be mended now is left to the next call.

    Cost: a look into two folders that are empty or absent, as a rule.
    """
    for folder, name in _aged(tree, ASIDE, _ABANDONED_S):
        if name.endswith(_NOTE):
            # Another process may be restoring the same.
            with suppress(OSError):
                _restore_one(tree, folder, name.removesuffix(_NOTE))
    for folder, name in _aged(tree, TEMP, _STALE_DRAFT_S):
        with suppress(OSError):
            os.unlink(name, dir_fd=folder)


def _aged(tree: Tree, parts: Sequence[str], age_s: float) -> Iterator[tuple[int, str]]:
    """Files of one of our own folders that are older than `age_s`, with its open handle."""
    try:
        folder = tree.open_folder(parts)
    except OSError:
        return
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries]
        for name in names:
            with suppress(FileNotFoundError):
                if _age_s(name, folder) > age_s:
                    yield folder, name
    finally:
        os.close(folder)


def _restore_one(tree: Tree, aside: int, nonce: str) -> None:
    note = nonce + _NOTE
    if _stands(nonce, aside):
        with tree.open_file((*ASIDE, note)) as file:
            key = file.read(MAX_KEY_BYTES + 1)
        try:
            parts = split_key(key.decode())
        except (InvalidKey, UnicodeDecodeError):
            return  # not a note of ours: leave both for a person to look at
        _link_back(tree, aside, nonce, parts)
        os.unlink(nonce, dir_fd=aside)
    os.unlink(note, dir_fd=aside)


def _link_back(tree: Tree, aside: int, nonce: str, parts: Sequence[str]) -> None:
    # Something newer standing there has replaced what is aside, as any put would have.
    with suppress(FileExistsError):
        tree.within(
            parts[:-1],
            lambda folder: os.link(nonce, parts[-1], src_dir_fd=aside, dst_dir_fd=folder),
        )


def _stands(name: str, folder: int) -> bool:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _age_s(name: str, folder: int) -> float:
    # The file system's own times are compared with this machine's clock, not the injected
    # one: a simulated hour must not make a removal that is under way look abandoned.
    return time.time() - os.stat(name, dir_fd=folder).st_mtime
