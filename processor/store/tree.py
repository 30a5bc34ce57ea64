"""A folder tree that can't be left: every step is relative to an open folder, and no
symlink is followed. Under `DirectoryStore` and `DirectoryLeases`."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final

from processor.errors import AccessDenied, InvalidKey, StoreError, StoreUnavailable
from processor.store.protocol import check_key

MAX_NAME_BYTES: Final = 255
"""What ext4, APFS, XFS and NTFS allow one name to have."""
OWN: Final = ".dropbatch"
"""The folder in a tree's root for what is not yet, or no longer, an object."""
TEMP: Final = (OWN, "tmp")

_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: opening a pipe that someone put in the tree must not wait for its writer.
_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NEW_FILE: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_TRIES: Final = 100

NOT_THERE: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})
"""What opening answers for a missing name, a file amid the path, or a symlink."""


class Tree:
    """Files below one root folder, reached only by names that keep inside it. Thread-safe.

    Args:
        root: may itself be, or be reached by, a symlink: that is its owner's choice.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    @contextmanager
    def folder(self, parts: Sequence[str], *, create: bool = False) -> Iterator[int]:
        """An open handle of a folder below the root.

        Raises:
            OSError: it isn't there, or something on the way is no plain folder.
            StoreUnavailable: the root itself is gone.
        """
        handle = self.open_folder(parts, create=create)
        try:
            yield handle
        finally:
            os.close(handle)

    def open_folder(self, parts: Sequence[str], *, create: bool = False) -> int:
        """As `folder`, for the caller to close."""
        here = self._open_root()
        try:
            for part in parts:
                below = _open_below(here, part, create=create)
                os.close(here)
                here = below
        except BaseException:
            os.close(here)
            raise
        return here

    def open_file(self, parts: Sequence[str]) -> BinaryIO:
        """Open a regular file for reading; anything else is FileNotFoundError."""
        with self.folder(parts[:-1]) as folder:
            handle = os.open(parts[-1], _FILE, dir_fd=folder)
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            raise FileNotFoundError(errno.ENOENT, "not a regular file", parts[-1])
        return os.fdopen(handle, "rb")

    @contextmanager
    def draft(self) -> Iterator[Draft]:
        """A new file that nobody sees until it is placed, and that is gone if it isn't."""
        name = secrets.token_hex(12)
        with self.folder(TEMP, create=True) as folder:
            handle = os.open(name, _NEW_FILE, 0o666, dir_fd=folder)
            try:
                with os.fdopen(handle, "r+b") as file:
                    yield Draft(self, folder, name, file)
            finally:
                with suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=folder)

    def within(self, parts: Sequence[str], act: Callable[[int], None]) -> None:
        """Run `act` on the handle of a folder that is made if need be, and make it last.

        Someone may remove the empty folder between its making and its use; then again.
        """
        for attempt in range(_TRIES):
            try:
                with self.folder(parts, create=True) as folder:
                    act(folder)
                    os.fsync(folder)
            except FileNotFoundError:
                if attempt == _TRIES - 1:
                    raise
            else:
                return

    def prune(self, parts: Sequence[str], *, keep: int) -> None:
        """Remove a folder and those above it as far as they are empty, but the first `keep`."""
        # rmdir refuses what isn't empty, and `within` makes again what a writer needs.
        with suppress(OSError):
            for depth in range(len(parts), keep, -1):
                with self.folder(parts[: depth - 1]) as folder:
                    os.rmdir(parts[depth - 1], dir_fd=folder)

    def _open_root(self) -> int:
        try:
            return os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise StoreUnavailable(
                f"the folder can't be opened ({error.strerror})",
                where=str(self.root),
                mend="Is the disk mounted, and may this user read it?",
            ) from error


class Draft:
    """An open temp file and the right to put it in its place, whole."""

    def __init__(self, tree: Tree, folder: int, name: str, file: BinaryIO) -> None:
        self.file = file
        self._tree = tree
        self._folder = folder
        self._name = name

    def place(self, parts: Sequence[str], *, replace: bool) -> os.stat_result:
        """Make it the file at `parts`; durable when this returns.

        Raises:
            FileExistsError: not `replace`, and something stands there.
        """
        self.file.flush()
        os.fsync(self.file.fileno())
        put = os.rename if replace else os.link

        def act(folder: int) -> None:
            put(self._name, parts[-1], src_dir_fd=self._folder, dst_dir_fd=folder)

        self._tree.within(parts[:-1], act)
        return os.fstat(self.file.fileno())


def split_key(key: str) -> tuple[str, ...]:
    """The path of a key below the root.

    Raises:
        InvalidKey: no store could hold it, a name in it is too long for a file system,
            or it lies in our own folder.
    """
    parts = tuple(check_key(key).split("/"))
    for part in parts:
        size_bytes = len(part.encode())
        if size_bytes > MAX_NAME_BYTES:
            raise InvalidKey(
                f"a folder can't hold a name of {size_bytes} bytes, at most {MAX_NAME_BYTES}",
                where=key,
                mend="Shorten each part between slashes, or use a bucket instead of a folder.",
            )
    if parts[0].lower() == OWN:  # some file systems fold case
        raise InvalidKey(f"{OWN} is the machine's own folder", where=key)
    return parts


def explain(error: OSError, key: str) -> StoreError:
    """Our error for an operating system's, for anything but a plain absence."""
    reason = error.strerror or str(error)
    match error.errno:
        case errno.ENOTDIR | errno.ELOOP | errno.EISDIR | errno.EEXIST | errno.ENOTEMPTY:
            return InvalidKey(
                "a folder, a symlink or a file stands in the way",
                where=key,
                mend="In a folder one name can't be both a file and a folder; symlinks are not followed.",
            )
        case errno.ENAMETOOLONG | errno.EILSEQ | errno.EINVAL:
            return InvalidKey(f"this file system can't hold that name ({reason})", where=key)
        case errno.EACCES | errno.EPERM | errno.EROFS | errno.ENOTSUP:
            return AccessDenied(
                f"the file system refuses ({reason})",
                where=key,
                mend="Check who owns the folder, and that its file system has hard links.",
            )
        case _:
            return StoreUnavailable(f"the file system failed ({reason})", where=key)


def _open_below(here: int, part: str, *, create: bool) -> int:
    try:
        return os.open(part, _FOLDER, dir_fd=here)
    except FileNotFoundError:
        if not create:
            raise
    with suppress(FileExistsError):
        os.mkdir(part, dir_fd=here)
        os.fsync(here)
    return os.open(part, _FOLDER, dir_fd=here)
