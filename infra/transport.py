"""Work and its results as they travel between a dispatcher and a worker: plain JSON.

A redeploy replaces containers one by one. What an old dispatcher sends, a new worker reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from processor.execute import Execution
from processor.handler import Work
from processor.records import TaskResult

MAX_LOG_CHARS: Final = 200_000
"""Of an engine's log, its end: a reply over 2 MiB would travel as a blob."""


@dataclass(frozen=True)
class Order:
    """What one input of a worker holds."""

    run_id: str
    """Names the dispatcher's run, whose stop the worker looks for."""
    gpu: str | None
    """What the pool was asked for; None for a pool with a choice, or without GPUs."""
    works: list[Work]

    def to_json(self) -> dict[str, Any]:
        works = [work.model_dump(mode="json", exclude_defaults=True) for work in self.works]
        return {"run_id": self.run_id, "gpu": self.gpu, "works": works}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Order:
        return cls(value["run_id"], value["gpu"], [Work.model_validate(work) for work in value["works"]])


def execution_to_json(execution: Execution) -> dict[str, Any]:
    return {
        "result": execution.result.model_dump(mode="json", exclude_defaults=True),
        "log": execution.log[-MAX_LOG_CHARS:],
        "engine": execution.engine,
    }


def execution_from_json(value: dict[str, Any]) -> Execution:
    return Execution(TaskResult.model_validate(value["result"]), value["log"], value["engine"])
