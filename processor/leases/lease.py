"""A lease: the time-limited right to run one job.

Keys: `lease/<job>/<epoch>` is immutable and made by put-if-absent; the current epoch is
the first whose successor is absent. `beat/<job>/<epoch>/<nonce>` has one writer, the
holder, and carries the renewed end or the release. Leases only make duplicate runs rare;
what makes the outcome one is the election in `processor.commit`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from processor.clock import Clock
from processor.errors import LeaseLost
from processor.leases.protocol import LeaseStore, Record


@dataclass(frozen=True, slots=True)
class Lease:
    """Held by whoever knows the nonce, until `until` on the store's clock."""

    job_id: str
    epoch: int
    nonce: str
    until: datetime
    held_since: float = field(default=0.0, compare=False)
    """When it was known to be held, on this process's monotonic clock."""


class Leases:
    """Acquire, renew and release leases on any lease store.

    Args:
        lease_s: how long a lease stands without renewal.
        margin_s: how far two clocks may disagree: a holder considers its lease over this
            much early, a taker waits this much longer.
    """

    def __init__(self, store: LeaseStore, clock: Clock, *, lease_s: float, margin_s: float) -> None:
        if lease_s <= 2 * margin_s:
            raise ValueError("a lease must be longer than twice the margin")
        self.store = store
        self._clock = clock
        self._term = timedelta(seconds=lease_s)
        self._margin = timedelta(seconds=margin_s)

    def acquire(self, job_id: str, *, nonce: str, heir_of: Lease | None = None) -> Lease | None:
        """Take the right to run a job, so that at most one owner holds its current epoch.

        Atomic: one put-if-absent of `lease/<job>/<epoch>`; nothing is ever overwritten.

        Args:
            nonce: names this owner; fresh for every process.
            heir_of: a lease handed over by its holder, whose successor may be taken at once;
                and the successor's, if the holder's nonce has that.
        Returns:
            The lease, or None while another owner's stands.
        Raises:
            StoreUnavailable: nothing is known to be taken; safe to try next tick.
        Cost: 1 request for a job never leased before; else one per epoch, and 2.
        """
        epoch = heir_of.epoch + 1 if heir_of else 1
        until = self._clock.now() + self._term
        entry: Record = {"nonce": nonce, "until": until.isoformat()}
        standing = self.store.create(_lease_key(job_id, epoch), entry)
        if standing["nonce"] == nonce:
            return Lease(job_id, epoch, nonce, until, self._clock.monotonic())
        while (following := self.store.read(_lease_key(job_id, epoch + 1))) is not None:
            epoch, standing = epoch + 1, following
        inherited = heir_of is not None and standing["nonce"] == heir_of.nonce
        if not inherited and not self._over(job_id, epoch, standing):
            return None
        epoch += 1
        standing = self.store.create(_lease_key(job_id, epoch), entry)
        if standing["nonce"] != nonce:
            return None
        return Lease(job_id, epoch, nonce, until, self._clock.monotonic())

    def renew(self, lease: Lease) -> Lease:
        """Extend a held lease by a full term from now.

        The whole exchange must end before the old term does: a taker looks at the beat only
        after that, and so is sure to see it.

        Raises:
            LeaseLost: it ran out, was taken over, or the lease store has forgotten it.
            StoreUnavailable: unknown; the old end still holds, try again before it.
        Cost: 3 requests.
        """
        if not self.holds(lease):
            raise LeaseLost("the lease ran out before it was renewed", where=lease.job_id)
        until = self._clock.now() + self._term
        self.store.write(_beat_key(lease), {"nonce": lease.nonce, "until": until.isoformat()})
        self.confirm(lease)
        return replace(lease, until=until)

    def confirm(self, lease: Lease) -> None:
        """Ask the lease store whether this lease is still the current one.

        Raises:
            LeaseLost: see `renew`.
        Cost: 2 requests.
        """
        own = self.store.read(_lease_key(lease.job_id, lease.epoch))
        if own is None or own["nonce"] != lease.nonce:
            raise LeaseLost("the lease store no longer knows this lease", where=lease.job_id)
        if self.store.read(_lease_key(lease.job_id, lease.epoch + 1)) is not None:
            raise LeaseLost("another process has taken the job over", where=lease.job_id)
        if not self.holds(lease):
            raise LeaseLost("the lease ran out while it was confirmed", where=lease.job_id)

    def holds(self, lease: Lease) -> bool:
        """Whether the lease still has time left, by the clock alone. Cost: none."""
        return self._clock.now() < lease.until - self._margin

    def release(self, lease: Lease) -> None:
        """Give the job back at once. Harmless if the lease was lost meanwhile. Cost: 1 request."""
        now = self._clock.now().isoformat()
        self.store.write(_beat_key(lease), {"nonce": lease.nonce, "until": now, "released": True})

    def close(self) -> None:
        """Free what this process keeps for its leases; they themselves stand until they run out."""

    def forget(self, job_id: str) -> None:
        """Remove every entry of a job whose manifest has long stood; for the sweep only.

        Cost: 3 requests per epoch, and 3.
        """
        epoch = 1
        while (entry := self.store.read(_lease_key(job_id, epoch))) is not None:
            self.store.delete(f"beat/{job_id}/{epoch}/{entry['nonce']}")
            self.store.delete(_lease_key(job_id, epoch))
            epoch += 1
        for election in ("plan", "commit"):
            self.store.delete(f"{election}/{job_id}")

    def _over(self, job_id: str, epoch: int, entry: Record) -> bool:
        # The time of asking: a holder may renew while a slow reply is on its way.
        now = self._clock.now()
        beat = self.store.read(f"beat/{job_id}/{epoch}/{entry['nonce']}") or entry
        if beat.get("released"):
            return True
        return now >= datetime.fromisoformat(str(beat["until"])) + self._margin


def _lease_key(job_id: str, epoch: int) -> str:
    return f"lease/{job_id}/{epoch}"


def _beat_key(lease: Lease) -> str:
    return f"beat/{lease.job_id}/{lease.epoch}/{lease.nonce}"
