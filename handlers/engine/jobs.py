"""The queue of prompts and the history of what became of them."""

from __future__ import annotations

import heapq
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from handlers.engine.graph import Prompt

HISTORY_SIZE = 10_000
_SECRETS = ("auth_token_comfy_org", "api_key_comfy_org")


class QueueFull(Exception):
    """More prompts wait than the engine keeps."""


@dataclass(frozen=True, slots=True)
class Job:
    """A validated prompt in the queue."""

    number: float
    """Its place: lower runs first."""
    prompt_id: str
    prompt: Prompt
    extra_data: dict[str, Any]
    outputs: list[str]

    @property
    def client_id(self) -> str | None:
        """Whom its messages are for; None is everyone, for the few messages that are sent then."""
        client_id: str | None = self.extra_data.get("client_id")
        return client_id

    def listed(self) -> list[Any]:
        """As `/queue` and `/history` show it."""
        return [self.number, self.prompt_id, self.prompt, self.extra_data, self.outputs]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job ended.

    Args:
        messages: the events of its status, `[name, data]` each, in order.
        outputs: by node id, what its output nodes show.
        meta: by node id, whose results those are.
    """

    succeeded: bool
    messages: list[list[Any]]
    outputs: dict[str, Any]
    meta: dict[str, Any]

    def entry(self, job: Job) -> dict[str, Any]:
        """The history entry."""
        listed = job.listed()
        listed[3] = {key: value for key, value in job.extra_data.items() if key not in _SECRETS}
        return {
            "prompt": listed,
            "outputs": self.outputs,
            "status": {
                "status_str": "success" if self.succeeded else "error",
                "completed": self.succeeded,
                "messages": self.messages,
            },
            "meta": self.meta,
        }


@dataclass(slots=True)
class JobQueue:
    """Prompts that wait, the one that runs, and those that have run. Safe for threads.

    Args:
        changed: called, under the lock, after every change in how many are left.
        capacity: how many may wait.
    """

    changed: Callable[[], None]
    capacity: int
    running: Job | None = None
    _waiting: list[tuple[float, int, Job]] = field(default_factory=list)
    _history: dict[str, dict[str, Any]] = field(default_factory=dict)
    _arrivals: int = 0
    _forget_results: bool = False
    _closed: bool = False
    _condition: threading.Condition = field(default_factory=lambda: threading.Condition(threading.RLock()))

    def put(self, job: Job) -> None:
        """Add a job.

        Raises:
            QueueFull: `capacity` jobs wait already.
        """
        with self._condition:
            if len(self._waiting) >= self.capacity:
                raise QueueFull(f"{self.capacity} prompts wait already")
            self._arrivals += 1
            heapq.heappush(self._waiting, (job.number, self._arrivals, job))
            self.changed()
            self._condition.notify()

    def take(self) -> tuple[Job | None, bool]:
        """Wait for work.

        Returns:
            The job that now runs, or None; and whether kept results are to be forgotten first.
            (None, False) is the end: the queue was closed.
        """
        with self._condition:
            self._condition.wait_for(lambda: self._waiting or self._forget_results or self._closed)
            forget, self._forget_results = self._forget_results, False
            if self._closed or not self._waiting:
                return None, forget and not self._closed
            self.running = heapq.heappop(self._waiting)[2]
            self.changed()
            return self.running, forget

    def finish(self, job: Job, outcome: Outcome) -> None:
        """Move the running job to the history."""
        with self._condition:
            self.running = None
            if len(self._history) > HISTORY_SIZE:
                del self._history[next(iter(self._history))]
            self._history[job.prompt_id] = outcome.entry(job)
            self.changed()

    def remaining(self) -> int:
        """How many wait or run."""
        with self._condition:
            return len(self._waiting) + (self.running is not None)

    def listed(self) -> dict[str, Any]:
        """As `/queue` shows it."""
        with self._condition:
            waiting = [job.listed() for _, _, job in self._waiting]
            return {
                "queue_running": [self.running.listed()] if self.running else [],
                "queue_pending": waiting,
            }

    def clear(self) -> None:
        """Drop all that waits."""
        with self._condition:
            self._waiting.clear()
            self.changed()

    def delete(self, prompt_id: object) -> None:
        """Drop a waiting job of that id, where there is one."""
        with self._condition:
            for item in self._waiting:
                if item[2].prompt_id == prompt_id:
                    self._waiting.remove(item)
                    heapq.heapify(self._waiting)
                    self.changed()
                    return

    def forget_results(self) -> None:
        """Have the worker drop its kept results, between two jobs."""
        with self._condition:
            self._forget_results = True
            self._condition.notify()

    def close(self) -> None:
        """Have the worker end."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()

    def history(self, max_items: int | None = None, offset: int = -1) -> dict[str, Any]:
        """Entries in the order in which they ended; without an offset, the last `max_items`."""
        with self._condition:
            keys = list(self._history)
            if offset < 0:
                offset = 0 if max_items is None else max(len(keys) - max_items, 0)
            end = None if max_items is None else offset + max_items
            return {key: self._history[key] for key in keys[offset:end]}

    def history_entry(self, prompt_id: str) -> dict[str, Any]:
        """That one entry by its id; nothing where there is none."""
        with self._condition:
            entry = self._history.get(prompt_id)
            return {} if entry is None else {prompt_id: entry}

    def forget(self, prompt_id: object = None) -> None:
        """Drop one entry of the history, or all."""
        with self._condition:
            if prompt_id is None:
                self._history.clear()
            elif isinstance(prompt_id, str):
                self._history.pop(prompt_id, None)
