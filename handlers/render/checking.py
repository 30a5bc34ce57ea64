"""What a job's graphs are held against before anything is queued: policy, and the engine's schema."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from handlers.render import policy
from handlers.render.catalog import MODEL_INPUTS, NOT_MODELS
from handlers.render.graph import Graph, Schema, Set, Target, applied
from handlers.render.preflight import Problem, check_graph, check_sets
from processor.records import ModelFile


@dataclass(frozen=True)
class Elsewhere:
    """Tells the values that are checked elsewhere: names of models and of files."""

    graph: Graph
    files: Collection[Target]
    declared: Collection[ModelFile]
    """What the workflow says that it needs: no loader of ours, but some node's, lists it."""

    def __call__(self, target: Target, value: Any) -> bool:
        if target in self.files:
            return True
        if not isinstance(value, str):
            return False
        loads = target.input in MODEL_INPUTS.get(self.graph[target.node]["class_type"], {})
        return (loads and value not in NOT_MODELS) or any(value == model.name for model in self.declared)


def problems_of(
    base: Graph,
    task_sets: Sequence[Sequence[Set]],
    schema: Schema | None,
    elsewhere: Elsewhere,
    *,
    allow: Collection[str],
) -> list[Problem]:
    """All that is wrong with a job's tasks, as far as a schema tells.

    Raises:
        JobInvalid: kind `refused`, by policy.
    """
    first = applied(base, task_sets[0])
    every = _distinct(change for changes in task_sets for change in changes)
    ours = [change for change in every if not elsewhere(Target(change.node, change.input), change.value)]
    policy.check_paths(first, ours, allow=allow)
    return [*check_graph(first, schema, exempt=elsewhere), *check_sets(first, ours, schema)]


def _distinct(sets: Iterable[Set]) -> list[Set]:
    return list({(change.node, change.input, repr(change.value)): change for change in sets}.values())
