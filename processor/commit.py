"""The commit: exactly one manifest ever stands for a job, whoever else tries.

Leases may fail (a zombie wakes, a lease store forgets); this does not rest on them. Every
outcome goes through the same election, and a manifest that stands wins over any election.
"""

from __future__ import annotations

import hashlib

from pydantic import ValidationError

from processor.errors import LeaseLost, NotFound, StoreError
from processor.inbox import Drop
from processor.layout import candidate_key, manifest_key
from processor.leases.lease import Lease
from processor.leases.protocol import Record
from processor.machine import Machine
from processor.records import Manifest, dump
from processor.store import read_bytes

_JSON = "application/json"


def standing(machine: Machine, job_id: str) -> Manifest | None:
    """The manifest that stands for a job, or None.

    Raises:
        StoreError: it can't be read; absence is never inferred from an error.
    Cost: 1 request.
    """
    try:
        data = read_bytes(
            machine.stores.main, manifest_key(job_id), limit_bytes=machine.policy.max_record_bytes
        )
    except NotFound:
        return None
    try:
        return Manifest.model_validate_json(data)
    except ValidationError as error:
        raise StoreError(
            f"the manifest does not read as one ({error.error_count()} errors)",
            where=manifest_key(job_id),
            mend="It was changed by hand, or by a newer Dropbatch: restore it, or remove it to run again",
        ) from None


def matches(manifest: Manifest, drop: Drop) -> bool:
    """Whether a manifest is of this very drop. An emitted job is its name, whatever the version."""
    if drop.emitted_id is not None:
        return manifest.drop.key == drop.key
    return (manifest.drop.key, manifest.drop.version) == (drop.key, drop.version)


def commit(machine: Machine, lease: Lease, candidate: Manifest) -> Manifest:
    """Make one manifest stand: the candidate, or whichever was elected before it.

    The candidate is written under its attempt first, so that the election only has to
    name it; then the winner's bytes go to `manifest.json`. Redoing any step is harmless.

    Returns:
        The manifest that stands, which may be another attempt's.
    Raises:
        LeaseLost: nothing was elected or written by us; or the drop was discarded meanwhile.
        ForeignAuthority: likewise.
    Cost: 2 requests and 1 of the lease store; 2 more if another attempt won.
    """
    store = machine.stores.main
    job_id = candidate.job_id
    data = dump(candidate)
    own_key = candidate_key(job_id, candidate.attempt)
    store.put(own_key, data, media_type=_JSON)
    vote: Record = {"nonce": candidate.attempt, "key": own_key, "sha256": hashlib.sha256(data).hexdigest()}
    winner = _elect(machine, lease, vote)
    if not winner["key"]:
        raise LeaseLost("the drop was discarded while it ran", where=job_id)
    if winner["nonce"] != candidate.attempt:
        return standing(machine, job_id) or enact(machine, job_id, winner)
    if _may_be_forgotten(machine, lease, candidate) and (stands := standing(machine, job_id)) is not None:
        return stands
    store.put(manifest_key(job_id), data, media_type=_JSON)
    return candidate


def elect_none(machine: Machine, lease: Lease) -> Record:
    """Elect that no manifest shall ever stand for a job; returns the vote that won.

    Raises:
        LeaseLost, ForeignAuthority: nothing was elected by us.
    Cost: 1 request of the lease store.
    """
    return _elect(machine, lease, {"nonce": f"{lease.epoch}-{lease.nonce}", "key": "", "sha256": ""})


def elected(machine: Machine, lease: Lease) -> Record | None:
    """The vote that won a job's election, if there was one; its `key` is "" where none shall stand.

    Raises:
        LeaseLost: the answer came too late to act upon.
    Cost: 1 request of the lease store.
    """
    winner = machine.leases.store.read(_election(lease.job_id))
    _in_time(machine, lease, "while the election was looked up")
    return winner


def enact(machine: Machine, job_id: str, winner: Record) -> Manifest:
    """Make an elected manifest stand whose attempt may have died before it could.

    Cost: 2 requests.
    """
    store, key = machine.stores.main, str(winner["key"])
    data = read_bytes(store, key, limit_bytes=machine.policy.max_record_bytes)
    if hashlib.sha256(data).hexdigest() != winner["sha256"]:
        raise StoreError("the elected manifest has changed since its election", where=key)
    manifest = Manifest.model_validate_json(data)
    store.put(manifest_key(job_id), data, media_type=_JSON)
    return manifest


def _elect(machine: Machine, lease: Lease, vote: Record) -> Record:
    # Asked before the lease was taken, the answer would be of no use: a lease store that was wiped
    # in between grants any lease, also that of a job whose manifest is on its way.
    machine.authority.check(max_age_s=machine.policy.authority_max_age_s, since=lease.held_since)
    _in_time(machine, lease, "before the commit")
    winner = machine.leases.store.create(_election(lease.job_id), vote)
    _in_time(machine, lease, "while the outcome was elected")
    return winner


def _in_time(machine: Machine, lease: Lease, when: str) -> None:
    """Leave the rest to others once the lease is over.

    Who takes the job over finds the election and enacts it. A late answer may be of an election
    that a wiped lease store, or the sweep, has forgotten since: it must not be acted upon.
    """
    if not machine.leases.holds(lease):
        raise LeaseLost(f"the lease ran out {when}", where=lease.job_id)


def _election(job_id: str) -> str:
    return f"commit/{job_id}"


def _may_be_forgotten(machine: Machine, lease: Lease, candidate: Manifest) -> bool:
    """Whether an election older than ours may have put a manifest there since we last looked.

    A first attempt looked right after it acquired the lease, and nobody else can have won
    since, unless the lease store has lost an election along with the rest.
    """
    if lease.epoch > 1 or candidate.drop.modified is None:
        return True
    return machine.authority.older_than_founding(candidate.drop.modified)
