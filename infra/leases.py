"""Leases on a Modal Dict: the lease store of a bucket without put-if-absent, such as B2's.

Modal forgets an entry that nobody read or wrote for 7 days. What that can do:

- The authority is read by every tick. It goes only if nothing ran for a week; then the next
  tick founds a new one, and attempts of older drops are looked up in the bucket.
- A lease or election of a job that is worked on is read every few minutes, and no attempt
  outlives a day. One that is older belongs to a job whose manifest stands, which wins over any
  election, or to a drop that waited in a paused inbox: its next attempt begins at epoch 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import modal

from infra.settings import modal_settings
from infra.unanswered import NO_ANSWER
from processor.errors import StoreUnavailable
from processor.leases.protocol import LeaseStore, Record
from processor.leases.record import from_bytes, to_bytes

if TYPE_CHECKING:
    from processor.config import Settings

_TRIES: Final = 5


class ModalDictLeases:
    """A `LeaseStore` of one Dict entry a record. Thread-safe, and the same from anywhere.

    Values are JSON in bytes, so that what one version of our code wrote every other reads.

    Args:
        entries: the Dict; nothing else may write to it.
        name: its name, for `backend`.
    """

    def __init__(self, entries: modal.Dict, name: str) -> None:
        self._entries = entries
        self._name = name

    @property
    def backend(self) -> str:
        return f"modal-dict:{self._name}"

    def create(self, key: str, value: Record) -> Record:
        lost: StoreUnavailable | None = None
        for _ in range(_TRIES):
            try:
                with _translated(key):
                    if self._entries.put(key, to_bytes(value), skip_if_exists=True):
                        return dict(value)
            except StoreUnavailable as error:
                # The client repeats lost requests by itself, so even a plain "no" may be ours.
                if lost is not None:
                    raise
                lost = error
            if (standing := self.read(key)) is not None:
                return standing
        raise StoreUnavailable("this entry keeps coming and going", where=key) from lost

    def read(self, key: str) -> Record | None:
        with _translated(key):
            data = self._entries.get(key)
        return None if data is None else from_bytes(data, key)

    def write(self, key: str, value: Record) -> None:
        with _translated(key):
            self._entries.put(key, to_bytes(value))

    def delete(self, key: str) -> None:
        with _translated(key):
            self._entries.pop(key, None)


def open_leases(settings: Settings) -> LeaseStore:
    """The app's lease store, from a container or from any machine with a Modal token."""
    name = modal_settings(settings).leases_name
    return ModalDictLeases(modal.Dict.from_name(name, create_if_missing=True), name)


@contextmanager
def _translated(key: str) -> Iterator[None]:
    try:
        yield
    except modal.exception.AuthError as error:
        raise StoreUnavailable(
            f"Modal does not know this token: {error}", where=key, mend="Run `modal setup`"
        ) from error
    except NO_ANSWER as error:
        raise StoreUnavailable(f"Modal's Dict does not answer: {error}", where=key) from error
