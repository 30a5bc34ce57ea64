"""Which of a job's input files one task needs: a batch over a folder of pictures has thousands."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from processor.records import InputFile, Plan, Task


class TaskInputs:
    """Finds a task's input files by their names, which stand in its payload or in the plan's shared part.

    A name that is some other text there, too, brings its file along for nothing; none is missed.
    """

    def __init__(self, plan: Plan) -> None:
        self._files = {file.name: file for file in plan.inputs}
        self._shared = self._named(plan.shared)

    def of(self, task: Task) -> list[InputFile]:
        """The files of one task, each once. Cost: none."""
        return list((self._shared | self._named(task.payload)).values())

    def _named(self, value: Any) -> dict[str, InputFile]:
        if not self._files:
            return {}
        return {text: self._files[text] for text in texts_in(value) if text in self._files}


def texts_in(value: Any) -> Iterator[str]:
    """Every text in a JSON value, however deep."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for child in value.values() if isinstance(value, dict) else value:
            yield from texts_in(child)
