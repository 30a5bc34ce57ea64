"""Machines as `dropbatch run` builds them, on a bucket of the benchmark's own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from processor import log
from processor.assembly import build
from processor.config import load_without_file
from processor.machine import Machine
from tests.support.rclone import KEY_ID, SECRET

NOOP = "tests.benchmarks.noop:NoopHandler"


@contextmanager
def machine(
    bucket: str, work: Path, *, endpoint_url: str | None = None, render: str = NOOP, **settings: object
) -> Iterator[Machine]:
    """A machine built from settings, logging JSON lines to nowhere."""
    os.environ |= {"DROPBATCH_KEY_ID": KEY_ID, "DROPBATCH_KEY": SECRET}
    configured = load_without_file(
        bucket=bucket,
        endpoint_url=endpoint_url,
        region="us-east-1",
        work_dir=work,
        founding_grace_s=0.0,
        handlers={"render": render},
        **settings,
    )
    with open(os.devnull, "w", encoding="utf-8") as nowhere:  # noqa: PTH123 - a device
        log.configure(fmt="json", stream=nowhere)
        built = build(configured)
        try:
            # The morning report reads what has settled: once a night and process, not a job's cost.
            yield replace(built, policy=replace(built.policy, young_s=0.0, night=None))
        finally:
            built.close()
