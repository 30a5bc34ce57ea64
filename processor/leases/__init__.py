"""Who may run a job: the lease store, the lease on top of it, and the authority check."""

from processor.leases.protocol import LeaseStore, Record

__all__ = ["LeaseStore", "Record"]
