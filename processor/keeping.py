"""A lease kept: renewed in good time by whoever works under it, before, during and after the tasks."""

from __future__ import annotations

from processor.errors import LeaseLost, StoreUnavailable
from processor.leases.lease import Lease
from processor.machine import Machine

_TRY_AGAIN_S = 5.0
"""After a renewal that met a store out of reach."""


class Interrupted(Exception):
    """The machine was asked to stop, or can't work just now; the job goes back."""


class KeptLease:
    """One job's lease. Whoever does something long under it calls `keep` between its steps."""

    def __init__(self, machine: Machine, lease: Lease) -> None:
        self._machine = machine
        self.lease = lease
        """As last renewed."""
        self.due = self._due()
        """When it is to be renewed next, on the monotonic clock."""

    def keep(self) -> bool:
        """Renew the lease if that is due; a store out of reach is no reason to stop before it ends.

        Returns:
            Whether it was renewed.
        Raises:
            LeaseLost, ForeignAuthority: the job is somebody else's; nothing more may be begun.
        Cost: none until it is due, then 1 request and 3 of the lease store.
        """
        machine = self._machine
        if machine.clock.monotonic() < self.due:
            return False
        try:
            machine.authority.check()
            self.lease = machine.leases.renew(self.lease)
        except StoreUnavailable:
            if not machine.leases.holds(self.lease):
                raise LeaseLost("could not be renewed in time", where=self.lease.job_id) from None
            self.due = machine.clock.monotonic() + min(_TRY_AGAIN_S, machine.policy.renew_s)
            return False
        self.due = self._due()
        return True

    def _due(self) -> float:
        """By its end, not from now: the reply to the claim or renewal may have been long on its way, and
        all that came before the first task, too. A lease that has run out is noticed before a task.
        """
        clock, policy = self._machine.clock, self._machine.policy
        left_s = (self.lease.until - clock.now()).total_seconds()
        return clock.monotonic() + left_s - (policy.lease_s - policy.renew_s)
