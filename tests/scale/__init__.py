"""A night on Modal, simulated: the real expansion and dispatch code over containers that are a model.

Nothing here is a test. `make scale` writes docs/scale.md and its plot.
"""
