"""Huey's usual local mode: SQLite as the queue, one consumer with threads."""

import json
import sys
import time

from huey import SqliteHuey

TASKS = 10_000
huey = SqliteHuey(filename="huey.db")


@huey.task()
def noop(number: int) -> int:
    return number


consumer = huey.create_consumer(workers=3, worker_type="thread", initial_delay=0.001, max_delay=0.01)
consumer.start()
began = time.perf_counter()
results = noop.map(range(TASKS))
assert len(results.get(blocking=True)) == TASKS
sys.stdout.write("\n" + json.dumps({"seconds": time.perf_counter() - began, "tasks": TASKS}) + "\n")
sys.stdout.flush()
consumer.stop()
