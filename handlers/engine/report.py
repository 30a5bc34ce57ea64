"""What clients are told while a prompt runs, in ComfyUI's messages and their order."""

from __future__ import annotations

import time
import traceback
from typing import Any, Protocol

from handlers.engine.jobs import Job


class Send(Protocol):
    """How a message leaves: to one client, or (None) to all. Never waits."""

    def __call__(self, event: str, data: dict[str, Any], client_id: str | None) -> None: ...


class RunReport:
    """One prompt's messages, and those of them that its history keeps.

    Most are sent only when the prompt came with a `client_id`. Without one, `progress_state` and
    `execution_interrupted` go to everyone who listens: ComfyUI's behaviour.

    Attributes:
        messages: `[event, data]` of the prompt's beginning and end, for the history.
        executed: the nodes that ran, in order.
        current: the node that runs now.
    """

    def __init__(self, job: Job, send: Send) -> None:
        self.messages: list[list[Any]] = []
        self.executed: list[str] = []
        self.current: str | None = None
        self._job = job
        self._send = send
        self._progress: dict[str, dict[str, Any]] = {}

    def started(self) -> None:
        """The prompt was taken from the queue."""
        self._record("execution_start", {})

    def found_cached(self, nodes: list[str]) -> None:
        """These nodes need not run."""
        self._record("execution_cached", {"nodes": nodes})

    def succeeded(self) -> None:
        """All outputs were made."""
        self._record("execution_success", {})

    def interrupted(self) -> None:
        """The user stopped it in the current node."""
        data = {"node_id": self.current, "node_type": self._node_type(), "executed": self.executed}
        self._record("execution_interrupted", data, to_all=True)

    def failed(self, error: Exception, inputs: dict[str, Any]) -> None:
        """The current node raised.

        Args:
            inputs: what it had been given.
        """
        data = {
            "node_id": self.current,
            "node_type": self._node_type(),
            "executed": self.executed,
            "exception_message": f"{error}\n",
            "exception_type": type(error).__qualname__,
            "traceback": traceback.format_tb(error.__traceback__),
            "current_inputs": {name: [_shown(value)] for name, value in inputs.items()},
            "current_outputs": list(self._job.prompt),
        }
        self._record("execution_error", data)

    def node_started(self, node_id: str) -> None:
        """A node begins to run."""
        self.current = node_id
        self._set_progress(node_id, 0.0, "running")
        self._tell("executing", {"node": node_id, "display_node": node_id})

    def node_showed(self, node_id: str, ui: dict[str, Any] | None) -> None:
        """An output node has something to show, from this run or an earlier one."""
        self._tell("executed", {"node": node_id, "display_node": node_id, "output": ui})

    def node_finished(self, node_id: str) -> None:
        """A node has run, or need not."""
        self._set_progress(node_id, 1.0, "finished")

    def _set_progress(self, node_id: str, value: float, state: str) -> None:
        self._progress[node_id] = {
            "value": value,
            "max": 1.0,
            "state": state,
            "node_id": node_id,
            "prompt_id": self._job.prompt_id,
            "display_node_id": node_id,
            "parent_node_id": None,
            "real_node_id": node_id,
        }
        data = {"prompt_id": self._job.prompt_id, "nodes": dict(self._progress)}
        self._send("progress_state", data, self._job.client_id)

    def _node_type(self) -> str | None:
        node = self._job.prompt.get(self.current or "", {})
        node_type: str | None = node.get("class_type")
        return node_type

    def _tell(self, event: str, data: dict[str, Any]) -> None:
        if self._job.client_id is not None:
            self._send(event, {**data, "prompt_id": self._job.prompt_id}, self._job.client_id)

    def _record(self, event: str, data: dict[str, Any], *, to_all: bool = False) -> None:
        stamped = {"prompt_id": self._job.prompt_id, **data, "timestamp": int(time.time() * 1000)}
        self.messages.append([event, stamped])
        if to_all or self._job.client_id is not None:
            self._send(event, stamped, self._job.client_id)


def _shown(value: object) -> object:
    return value if isinstance(value, int | float | str | None) else str(value)
