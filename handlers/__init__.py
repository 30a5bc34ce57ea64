"""What a task does: render, train, ingest."""
