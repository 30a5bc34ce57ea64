"""Discard: a drop leaves the inbox unrun, because a newer one replaced it or its user took it back.

That, too, is an outcome, and it is elected like the others. Otherwise a runner that slept
could still commit what was removed, and nobody would be left to do what follows from it.
"""

from __future__ import annotations

import structlog

from processor.commit import elect_none, enact, standing
from processor.effects import run_effects
from processor.errors import DropbatchError, StoreError
from processor.inbox import Drop
from processor.leases.lease import Lease
from processor.machine import Machine
from processor.records import Manifest
from processor.settle import remove, settle

log = structlog.get_logger(__name__)


def discard(machine: Machine, lease: Lease, drop: Drop) -> Manifest | None:
    """Remove this version of a drop, unless its job has been committed: then settle it.

    Returns:
        The manifest that stands, effects done and drop settled; None if it was removed
        unrun, and then no manifest will ever stand for it.
    Raises:
        LeaseLost, ForeignAuthority, StoreError: it is left as it is, for a later tick.
    Cost: 1 request and 1 of the lease store; 1 more if it was ever leased before.
    """
    manifest = standing(machine, lease.job_id) if lease.epoch > 1 else None
    if manifest is None:
        winner = elect_none(machine, lease)
        if not winner["key"]:
            remove(machine, drop)
            return None
        manifest = enact(machine, lease.job_id, winner)
    run_effects(machine, manifest)
    settle(machine, drop, manifest, cancelling=False)
    return manifest


def try_discard(machine: Machine, drop: Drop) -> bool:
    """Remove a version that a newer one replaced, unless somebody is running it.

    Under its lease, so that nobody can begin it at the same time.

    Returns:
        Whether it is gone.
    Raises:
        StoreError: it is there still, or it may be; logged already.
    Cost: 1 request and 3 of the lease store.
    """
    if not drop.version:
        return True  # without versions nothing of it is left
    try:
        if drop.emitted_id is not None and not drop.hidden:
            remove(machine, drop)  # the same job stands above it, under the same id
            return True
        lease = machine.leases.acquire(drop.job_id, nonce=machine.nonce())
        if lease is None:
            return False
        discard(machine, lease, drop)
        machine.leases.release(lease)
    except DropbatchError as error:
        log.warning("drop.not_discarded", key=drop.key, why=str(error))
        if isinstance(error, StoreError):
            raise
        return False
    return True
