"""Data: ready workflows, training presets, example drops."""
