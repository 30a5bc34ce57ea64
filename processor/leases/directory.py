"""Leases in a local folder: `link` is the put-if-absent that every process agrees on."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from processor.errors import ConfigError, StoreUnavailable
from processor.leases.protocol import Record
from processor.leases.record import MAX_RECORD_BYTES, from_bytes, to_bytes
from processor.store.tree import NOT_THERE, Tree, explain, split_key

_TRIES: Final = 10


class DirectoryLeases:
    """A `LeaseStore` of small files. Safe among threads and processes of one machine.

    A record is written to a temp file, synced, then linked (`create`) or renamed
    (`write`) into place, so that nobody sees a key without its whole value, not even
    after a power cut. Network file systems that don't make `link` atomic are not for this.

    Args:
        root: the folder; made if it is missing.
    Raises:
        ConfigError: the folder can't be made.
    """

    def __init__(self, root: Path) -> None:
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"the folder for leases can't be made ({error.strerror})", where=str(root)
            ) from error
        self._root = root.resolve()
        self._tree = Tree(self._root)

    @property
    def backend(self) -> str:
        return f"directory:{self._root}"

    def create(self, key: str, value: Record) -> Record:
        parts = split_key(key)
        with _translated(key):
            for _ in range(_TRIES):
                try:
                    self._place(parts, value, replace=False)
                except FileExistsError:
                    # Deleted before it could be read: then the place is free again.
                    if (standing := self._read(parts, key)) is not None:
                        return standing
                else:
                    return dict(value)
        raise StoreUnavailable("another process keeps creating and removing this record", where=key)

    def read(self, key: str) -> Record | None:
        with _translated(key):
            return self._read(split_key(key), key)

    def write(self, key: str, value: Record) -> None:
        with _translated(key):
            self._place(split_key(key), value, replace=True)

    def delete(self, key: str) -> None:
        parts = split_key(key)
        try:
            with self._tree.folder(parts[:-1]) as folder:
                os.unlink(parts[-1], dir_fd=folder)
                os.fsync(folder)
        except OSError as error:
            if error.errno not in NOT_THERE:
                raise explain(error, key) from error
        self._tree.prune(parts[:-1], keep=1)

    def _place(self, parts: Sequence[str], value: Record, *, replace: bool) -> None:
        with self._tree.draft() as draft:
            draft.file.write(to_bytes(value))
            draft.place(parts, replace=replace)

    def _read(self, parts: Sequence[str], key: str) -> Record | None:
        try:
            with self._tree.open_file(parts) as file:
                return from_bytes(file.read(MAX_RECORD_BYTES), key)
        except OSError as error:
            if error.errno in NOT_THERE:
                return None
            raise


@contextmanager
def _translated(key: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise explain(error, key) from error
