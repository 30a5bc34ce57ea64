"""Tests of infra/: the Modal app and the loopback that runs it."""
