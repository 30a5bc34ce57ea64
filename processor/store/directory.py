"""A folder is a bucket: the store of `file:///path`, for one machine or a shared disk."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import BinaryIO, Final

from processor.clock import Clock, SystemClock
from processor.errors import (
    AccessDenied,
    AlreadyExists,
    ConfigError,
    InvalidKey,
    NotFound,
    VersionMismatch,
)
from processor.store import aside
from processor.store.protocol import Capabilities, Download, ObjectInfo, Page, check_key
from processor.store.tree import NOT_THERE, OWN, Tree, explain, split_key

KEPT_LEVELS: Final = 2
"""Folders that stay when their last file goes: people drop into `inbox/nightly/` again."""
_CHUNK_BYTES: Final = 1 << 20
_UNIX_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_NOT_OURS: Final = frozenset({errno.EACCES, errno.EPERM})
"""What a file or folder answers that this user may not read."""


class DirectoryStore:
    """A `Store` of plain files: the key is the path. Safe among threads and processes.

    What is written here appears whole and is on disk when the call returns. Other programs
    write in place, hence `atomic_put` is False. There are no versions: the token of a file
    is its time, size and inode, and what replaces it has another.

    Symlinks, and whatever is neither a file nor a folder, are not objects: they are
    neither listed nor followed. Names that no bucket could hold (control characters, not
    UTF-8) are not listed either. `.DS_Store` and its like are; the inbox knows them.

    Args:
        root: an existing folder.
        clock: dates the pages; files are dated by the file system.
        create: make the root, and the folders above it, if they are missing.
    Raises:
        ConfigError: the root is not there, or is not a folder.
    """

    def __init__(
        self, root: Path, *, clock: Clock | None = None, create: bool = False, page_size: int = 1000
    ) -> None:
        if create:
            root.mkdir(parents=True, exist_ok=True)
        if not root.is_dir():
            raise ConfigError("there is no such folder", where=str(root), mend=f"Make it: mkdir -p '{root}'")
        self.root: Final = root.resolve()
        self._tree = Tree(self.root)
        self._clock = clock or SystemClock()
        self._page_size = page_size

    def __repr__(self) -> str:
        return f"DirectoryStore({str(self.root)!r})"

    @property
    def url(self) -> str:
        return self.root.as_uri()

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(versions=False, put_if_absent=True, atomic_put=False)

    def list(self, prefix: str, *, versions: bool = False, start_after: str = "") -> Iterator[Page]:  # noqa: ARG002 - what stands is all there is
        """As `Store.list`. Reads one folder at a time, when the listing gets there."""
        aside.recover(self._tree)
        objects: list[ObjectInfo] = []
        started = False
        for info in self._walk_from(prefix, start_after):
            objects.append(info)
            if len(objects) == self._page_size:
                started = True
                yield Page(objects, self._clock.now())
                objects = []
        if objects or not started:
            yield Page(objects, self._clock.now())

    def stat(self, key: str, *, version: str | None = None) -> ObjectInfo:
        parts = split_key(key)
        with _reading(key), self._tree.folder(parts[:-1]) as folder:
            found = os.stat(parts[-1], dir_fd=folder, follow_symlinks=False)
        if not stat.S_ISREG(found.st_mode):
            raise NotFound("there is no such file", where=key)
        return _checked(key, found, version)

    def get(self, key: str, *, version: str | None = None) -> Download:
        parts = split_key(key)
        with _reading(key):
            file = self._tree.open_file(parts)
        try:
            return Download(_checked(key, os.fstat(file.fileno()), version), file)
        except NotFound:
            file.close()
            raise

    def put(
        self,
        key: str,
        data: bytes | Path,
        *,
        media_type: str = "application/octet-stream",  # noqa: ARG002 - a file's name tells it
        if_absent: bool = False,
    ) -> ObjectInfo:
        if isinstance(data, bytes):
            return self._write(key, lambda target: _write_all(target, data), if_absent=if_absent)
        with data.open("rb") as source:
            return self._write(key, lambda target: _copy_bytes(source, target), if_absent=if_absent)

    def copy(self, source: str, target: str, *, version: str | None = None) -> ObjectInfo:
        split_key(target)
        with self.get(source, version=version) as download:
            file = download.body

            def fill(draft: BinaryIO) -> None:
                _copy_bytes(file, draft)
                # Another program may have rewritten the source in place meanwhile.
                _checked(source, os.fstat(file.fileno()), download.info.version)

            return self._write(target, fill, if_absent=False)

    def delete(self, key: str, *, version: str) -> None:
        parts = split_key(key)
        try:
            removed = aside.remove_if(self._tree, key, lambda found: _token(found) == version)
        except OSError as error:
            if error.errno in NOT_THERE:
                return
            raise explain(error, key) from error
        if not removed:
            raise VersionMismatch("another version of the file stands there", where=key)
        self._tree.prune(parts[:-1], keep=KEPT_LEVELS)

    def close(self) -> None:
        """Nothing stays open."""

    def _write(self, key: str, fill: Callable[[BinaryIO], None], *, if_absent: bool) -> ObjectInfo:
        parts = split_key(key)
        try:
            with self._tree.draft() as draft:
                fill(draft.file)
                return _describe(key, draft.place(parts, replace=not if_absent))
        except FileExistsError as error:
            if if_absent and self._is_file(parts):
                raise AlreadyExists("a file stands there", where=key) from error
            raise explain(error, key) from error
        except OSError as error:
            raise explain(error, key) from error

    def _is_file(self, parts: tuple[str, ...]) -> bool:
        try:
            with self._tree.open_file(parts):
                return True
        except OSError:
            return False

    def _walk_from(self, prefix: str, start_after: str) -> Iterator[ObjectInfo]:
        at, slash, rest = prefix.rpartition("/")
        try:
            folder = self._tree.open_folder(split_key(at) if slash else ())
        except InvalidKey:
            return  # no object has such a key, so none starts with it
        except OSError as error:
            if error.errno in NOT_THERE:
                return
            raise explain(error, at) from error
        try:
            yield from _walk(folder, at + slash, rest, start_after)
        finally:
            os.close(folder)


def _walk(folder: int, at: str, rest: str, start_after: str) -> Iterator[ObjectInfo]:
    """What lies below one folder whose names start with `rest`, in the order of keys."""
    for name in _names(folder, at, rest):
        key = at + name
        if name.endswith("/"):
            if key < start_after and not start_after.startswith(key):
                continue  # all of it comes before
            try:
                below = os.open(name[:-1], os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
            except OSError as error:
                _pass_over(error, key)
                continue
            try:
                yield from _walk(below, key, "", start_after)
            finally:
                os.close(below)
        elif key > start_after:
            try:
                found = os.stat(name, dir_fd=folder, follow_symlinks=False)
            except OSError as error:
                _pass_over(error, key)
                continue
            if stat.S_ISREG(found.st_mode):
                yield _describe(key, found, version="")


def _pass_over(error: OSError, key: str) -> None:
    """What is gone since, or not ours to look at, must not stop the scan; anything else does."""
    if error.errno not in NOT_THERE and error.errno not in _NOT_OURS:
        raise explain(error, key) from error


def _names(folder: int, at: str, rest: str) -> list[str]:
    """The files and folders in one folder; folders end with a slash, which sorts them as
    the keys below them sort: `a-b` and `a.b` before `a/b`."""
    try:
        with os.scandir(folder) as entries:
            found = [_name(entry, at) for entry in entries if entry.name.startswith(rest)]
    except OSError as error:
        _pass_over(error, at)
        return []
    return sorted(name for name in found if name)


def _name(entry: os.DirEntry[str], at: str) -> str | None:
    if (not at and entry.name == OWN) or not _is_key(at + entry.name):
        return None
    try:
        return None if entry.is_symlink() else entry.name + "/" * entry.is_dir()
    except OSError as error:  # some file systems tell the kind only when asked for it
        _pass_over(error, at + entry.name)
        return None


def _is_key(key: str) -> bool:
    try:
        check_key(key)
    except InvalidKey:
        return False
    return True


def _token(found: os.stat_result) -> str:
    return f"{found.st_mtime_ns}-{found.st_size}-{found.st_ino}"


def _describe(key: str, found: os.stat_result, *, version: str | None = None) -> ObjectInfo:
    try:
        modified = _UNIX_EPOCH + timedelta(microseconds=found.st_mtime_ns // 1000)
    except OverflowError:  # `touch -d` can set any year
        modified = _UNIX_EPOCH
    return ObjectInfo(key, found.st_size, _token(found) if version is None else version, modified)


def _checked(key: str, found: os.stat_result, version: str | None) -> ObjectInfo:
    info = _describe(key, found)
    if version is not None and info.version != version:
        raise NotFound("that version of the file is gone; another stands there", where=key)
    return info


@contextmanager
def _reading(key: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in NOT_THERE:
            raise NotFound("there is no such file", where=key) from error
        if error.errno in _NOT_OURS:
            raise AccessDenied("this user may not read the file", where=key) from error
        raise explain(error, key) from error


def _write_all(target: BinaryIO, data: bytes) -> None:
    target.write(data)


def _copy_bytes(source: BinaryIO, target: BinaryIO) -> None:
    """Copy all bytes and nothing else; inside the kernel, or by reference, where it can."""
    try:
        while os.copy_file_range(source.fileno(), target.fileno(), 1 << 30):
            pass
    except (OSError, AttributeError):  # macOS lacks it; some pairs of file systems refuse
        source.seek(0)
        target.seek(0)
        shutil.copyfileobj(source, target, _CHUNK_BYTES)
