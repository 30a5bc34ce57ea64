"""A whole fleet in one process: the real core under seeded schedules, faults and crashes.

`python -m tests.simulation` runs it; docs/reliability.md says what it holds.
"""
