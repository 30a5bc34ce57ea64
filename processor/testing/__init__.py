"""Fakes that ship with the package, for its own tests and for handlers' authors.

They keep the contracts (the same suites run on them as on the real ones), so a test
written with them holds on a bucket.
"""

from processor.testing.clock import ManualClock
from processor.testing.counting import CountingLeases, CountingStore
from processor.testing.faults import Fault, FaultPlan, FaultyLeases, FaultyStore, When

__all__ = [
    "CountingLeases",
    "CountingStore",
    "Fault",
    "FaultPlan",
    "FaultyLeases",
    "FaultyStore",
    "ManualClock",
    "When",
]
