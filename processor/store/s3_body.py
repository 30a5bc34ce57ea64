"""An S3 object as a file that is read once, from its start to its end."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, BinaryIO, Final, cast

import urllib3.exceptions
from botocore.exceptions import BotoCoreError

from processor.errors import StoreUnavailable

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer
    from botocore.response import StreamingBody

_REOPENINGS: Final = 3
_PROGRESS_BYTES: Final = 8 << 20
"""So much that came since the last break shows that to open again helps: a model of 20 GB over a line
that breaks every ten minutes arrives."""
_BUFFER_BYTES: Final = 256 * 1024


def body_file(
    stream: StreamingBody, reopen: Callable[[int], StreamingBody], *, size_bytes: int, key: str
) -> BinaryIO:
    """A readable file over a reply's body, which survives a lost connection.

    Args:
        reopen: opens the same version of the object again, from a byte offset on.
    """
    return cast("BinaryIO", io.BufferedReader(_Body(stream, reopen, size_bytes, key), _BUFFER_BYTES))


class _Body(io.RawIOBase):
    """Reading raises StoreUnavailable once the connection was lost too often on the same few MiB: a
    truncated body is never taken for a whole one."""

    def __init__(
        self, stream: StreamingBody, reopen: Callable[[int], StreamingBody], size_bytes: int, key: str
    ) -> None:
        super().__init__()
        self._stream = stream
        self._reopen = reopen
        self._size_bytes = size_bytes
        self._key = key
        self._at = 0
        self._reopenings = 0
        self._broke_at = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        while self._at < self._size_bytes:
            try:
                data = self._stream.read(len(view))
            except (BotoCoreError, urllib3.exceptions.HTTPError, OSError) as error:
                self._resume(error)
                continue
            if not data:
                self._resume(None)
                continue
            view[: len(data)] = data
            self._at += len(data)
            return len(data)
        return 0

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
        super().close()

    def _resume(self, error: Exception | None) -> None:
        self._stream.close()
        if self._at - self._broke_at >= _PROGRESS_BYTES:
            self._reopenings = 0
        self._broke_at = self._at
        if self._reopenings == _REOPENINGS:
            raise StoreUnavailable(
                f"the download broke off {_REOPENINGS + 1} times, last after {self._at:,} of"
                f" {self._size_bytes:,} bytes",
                where=self._key,
            ) from error
        self._reopenings += 1
        self._stream = self._reopen(self._at)
