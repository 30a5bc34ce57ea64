"""Fakes that ship with the package, for its own tests and for handlers' authors.

They keep the contracts (the same suites run on them as on the real ones), so a test
written with them holds on a bucket.
"""

from processor.testing.clock import ManualClock

__all__ = ["ManualClock"]
