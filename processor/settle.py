"""Settle: the drop leaves the inbox, to `done/` or `failed/`, once its manifest stands."""

from __future__ import annotations

import hashlib
import re
from contextlib import suppress
from pathlib import PurePosixPath

from processor.errors import NotFound, StoreError, VersionMismatch
from processor.inbox import Drop
from processor.layout import cancel_key, settled_prefix
from processor.machine import Machine
from processor.records import DropRef, Manifest, Outcome, dump
from processor.report import error_json

_MAX_NAME_BYTES = 700
"""A key has 1,024 bytes; the root prefix, the day and the job id need some."""
_KEPT_NAME_BYTES = 200
_OURS = re.compile(r"(drop-)*(error\.json|receipt\.json|report\.json|report\.txt)", re.IGNORECASE)
"""What this machine itself writes beside a settled drop, in any case, for some file systems fold it;
and what such names become, so that no two names become one."""


def settle(machine: Machine, drop: Drop, manifest: Manifest, *, cancelling: bool) -> None:
    """Copy this version of the drop, check the copy's reply, then delete this version.

    A re-upload that arrived meanwhile is another version and survives. Where it goes
    derives from the manifest alone, so repeating after a crash changes nothing.

    Args:
        cancelling: there is, or was, a request to cancel this job; it goes, too.
    Cost: 2 requests; 1 more for an error report, 2 for a cancel request, 1 if the drop is gone.
    """
    store = machine.stores.main
    prefix = settled_prefix(manifest.outcome, manifest.finished_at, manifest.job_id)
    if manifest.outcome.settles_in == "failed":
        store.put(prefix + "error.json", error_json(manifest), media_type="application/json")
    try:
        copy = store.copy(drop.key, prefix + kept_name(PurePosixPath(drop.key).name), version=drop.version)
    except NotFound:
        _leave_receipt(machine, drop, prefix)
    else:
        if copy.size_bytes != drop.size_bytes:
            raise StoreError(
                f"the copy has {copy.size_bytes} bytes, the drop {drop.size_bytes}", where=copy.key
            )
        remove(machine, drop)
    if cancelling or manifest.outcome is Outcome.CANCELLED:
        _drop_cancel_request(machine, cancel_key(manifest.job_id))


def kept_name(name: str) -> str:
    """A drop's name in the folder where it settles: its own, with a word before it where a report of
    ours has that name, or its end behind a hash where the key would be longer than stores take."""
    if _OURS.fullmatch(name):
        return f"drop-{name}"
    data = name.encode()
    if len(data) <= _MAX_NAME_BYTES:
        return name
    end = data[-_KEPT_NAME_BYTES:].decode("utf-8", "ignore")
    return f"{hashlib.sha256(data).hexdigest()[:16]}-{end}"


def _leave_receipt(machine: Machine, drop: Drop, prefix: str) -> None:
    """Stand in for a drop that its user removed or overwrote while it ran: the sweep and
    `dropbatch status` find jobs by what was settled. Cost: 1 request, 2 if it is needed."""
    store = machine.stores.main
    try:
        store.stat(prefix + kept_name(PurePosixPath(drop.key).name))
    except NotFound:
        receipt = DropRef(
            key=drop.key, version=drop.version, size_bytes=drop.size_bytes, modified=drop.modified
        )
        store.put(prefix + "receipt.json", dump(receipt), media_type="application/json")


def remove(machine: Machine, drop: Drop) -> None:
    """Delete exactly this version of a drop; a newer upload under the same key stays.

    Cost: 1 request; 2 without versions.
    """
    # A mismatch means that it was replaced since: what stands now is another drop's content.
    with suppress(VersionMismatch):
        machine.stores.main.delete(drop.key, version=drop.version)


def _drop_cancel_request(machine: Machine, key: str) -> None:
    store = machine.stores.main
    with suppress(NotFound, VersionMismatch):
        store.delete(key, version=store.stat(key).version)
