"""What `make bench` measures. Nothing here is a test: figures depend on the machine.

Each figure compares two ways of doing one thing, taken alternately in one run, and is a
ratio of medians. Request counts and memory bounds, which hold on any machine, are tests
(`tests/unit/test_bounds.py`).
"""
