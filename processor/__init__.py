"""The machine: from a dropped job to a standing manifest."""
