"""The built-in engine: a small server that speaks ComfyUI's protocol and runs its model-free image nodes.

It stands in for a ComfyUI where there is none, so that everything around rendering can be tried and tested
on any machine. `/system_stats` says what it is. docs/engine.md tells which nodes it has, how exactly their
pixels equal ComfyUI's, and what it does not do.
"""

VERSION = "1"
"""Of what the engine does; raised when a graph's pixels or messages change."""
