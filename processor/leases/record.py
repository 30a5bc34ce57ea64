"""Records as bytes, for the lease stores that keep them in files or objects."""

from __future__ import annotations

import json

from processor.errors import StoreError
from processor.leases.protocol import Record

MAX_RECORD_BYTES = 1 << 20


def to_bytes(value: Record) -> bytes:
    """One line of JSON; the same record is always the same bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def from_bytes(data: bytes, key: str) -> Record:
    """The record that `to_bytes` wrote.

    Raises:
        StoreError: it is none; someone else wrote there.
    """
    try:
        record = json.loads(data)
    except ValueError:
        record = None
    if not isinstance(record, dict) or any(isinstance(each, dict | list) for each in record.values()):
        raise StoreError(
            "what stands there is no lease record",
            where=key,
            mend="Something else writes where leases are kept; remove what it wrote.",
        )
    return record
