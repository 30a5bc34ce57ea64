"""`latest` pointers: small objects that name the newest of something, and only move forward."""

from __future__ import annotations

from typing import Any, Final

from pydantic import AwareDatetime

from processor.errors import NotFound, StoreUnavailable
from processor.layout import job_id
from processor.machine import Machine
from processor.models import Model
from processor.records import dump
from processor.store import Store, read_bytes

_MAX_BYTES: Final = 64 * 1024


class Pointer(Model):
    """What a pointer says: where the newest is, and since when it has been."""

    key: str
    """Of what it points to."""
    job_id: str
    at: AwareDatetime
    """When the job that made it finished: what forward is measured by."""
    facts: dict[str, Any] = {}


def read_pointer(store: Store, key: str) -> Pointer | None:
    """What a pointer says, or None where none stands. Cost: 1 request."""
    try:
        return Pointer.model_validate_json(read_bytes(store, key, limit_bytes=_MAX_BYTES))
    except NotFound:
        return None


def advance(machine: Machine, store: Store, key: str, pointer: Pointer) -> bool:
    """Let a pointer point to something newer; never back. Returns whether it moved.

    Comparing and writing are two requests, so they are done under a lease of the pointer's
    own; B2 could not compare by itself. Repeating it changes nothing.

    Raises:
        StoreUnavailable: another job is moving it right now; try again.
    Cost: 2 requests, and 2 of the lease store.
    """
    lease = machine.leases.acquire(job_id(key, "pointer"), nonce=machine.nonce())
    if lease is None:
        raise StoreUnavailable("another job is moving this pointer", where=key)
    try:
        standing = read_pointer(store, key)
        if standing is not None and (standing.at, standing.job_id) >= (pointer.at, pointer.job_id):
            return False
        machine.leases.confirm(lease)
        store.put(key, dump(pointer), media_type="application/json")
        return True
    finally:
        machine.leases.release(lease)
