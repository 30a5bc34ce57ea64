"""A claim as it travels from a tick to a dispatcher: plain JSON, which any version can read."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter

from processor.attempt import Claim
from processor.inbox import Drop
from processor.leases.lease import Lease
from processor.store import ObjectInfo

_DROP = TypeAdapter(Drop)
_LEASE = TypeAdapter(Lease)
_CANCEL = TypeAdapter(ObjectInfo | None)


def to_json(claim: Claim) -> dict[str, Any]:
    """What a dispatcher needs of a claim. What the drop said is left out: it is read again."""
    return {
        "drop": _DROP.dump_python(claim.drop, mode="json"),
        "lease": _LEASE.dump_python(claim.lease, mode="json"),
        "cancel": _CANCEL.dump_python(claim.cancel, mode="json"),
    }


def from_json(value: dict[str, Any]) -> Claim:
    """The claim that `to_json` wrote."""
    return Claim(
        drop=_DROP.validate_python(value["drop"]),
        lease=_LEASE.validate_python(value["lease"]),
        cancel=_CANCEL.validate_python(value["cancel"]),
    )
