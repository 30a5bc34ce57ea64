"""The lease store: four primitives, and no others, on which every promise stands."""

from __future__ import annotations

from typing import Protocol

JsonScalar = str | int | float | bool | None
Record = dict[str, JsonScalar]
"""A small flat JSON object. Every record has a `nonce` that names its writer."""


class LeaseStore(Protocol):
    """Linearizable put-if-absent, and little else. No CAS, no listing, no expiry is relied on.

    Keys are `/`-separated words. Thread-safe. Every call may raise `StoreUnavailable`:
    then nothing is known, and the call may be repeated with the same value.
    """

    @property
    def backend(self) -> str:
        """Names the implementation and place, e.g. `directory:/path` or `modal-dict:name`.
        Recorded in `state/authority.json` for people; the id is what is compared."""
        ...

    def create(self, key: str, value: Record) -> Record:
        """Put if absent; return the value that stands, ours or an earlier one.

        Atomic with its content: a reader never sees a key without its value. An unclear
        reply (time-out, lost connection) is resolved here by reading back and comparing
        nonces, so that a caller whose value stands is always told so.

        Cost: 1 request, 2 if something stood or the reply was lost.
        """
        ...

    def read(self, key: str) -> Record | None:
        """The value that stands, or None. Cost: 1 request."""
        ...

    def write(self, key: str, value: Record) -> None:
        """Overwrite. Only for keys that carry the writer's own nonce: one writer a key.
        Cost: 1 request."""
        ...

    def delete(self, key: str) -> None:
        """Remove; no error if absent. Only the sweep calls this. Cost: 1 request."""
        ...
