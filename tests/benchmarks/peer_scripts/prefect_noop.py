"""Prefect's usual local mode: a flow that maps a task over its own temporary server."""

import json
import sys
import time

from prefect import flow, task
from prefect.task_runners import ThreadPoolTaskRunner

TASKS = 500  # its cost a task doesn't depend on their number; 10,000 would take half an hour


@task
def noop(number: int) -> int:
    return number


@flow(task_runner=ThreadPoolTaskRunner(max_workers=3), log_prints=False)
def all_of_it() -> int:
    return len(noop.map(range(TASKS)).result())


began = time.perf_counter()
assert all_of_it() == TASKS
sys.stdout.write("\n" + json.dumps({"seconds": time.perf_counter() - began, "tasks": TASKS}) + "\n")
