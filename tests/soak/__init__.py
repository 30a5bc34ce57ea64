"""Real processes, killed at random requests, against S3 servers that fail: see `rounds`."""
