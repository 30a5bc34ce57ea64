"""Dask's usual local mode: a cluster of processes on this machine."""

import json
import sys
import time

from distributed import Client

TASKS = 10_000


def noop(number: int) -> int:
    return number


if __name__ == "__main__":
    with Client(n_workers=2, threads_per_worker=2, dashboard_address=None) as client:
        client.gather(client.map(noop, range(4), key="warm-up"))
        began = time.perf_counter()
        assert len(client.gather(client.map(noop, range(TASKS), pure=False))) == TASKS
        taken = time.perf_counter() - began
    sys.stdout.write("\n" + json.dumps({"seconds": taken, "tasks": TASKS}) + "\n")
