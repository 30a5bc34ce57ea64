"""What a handler may tell about named workflows, for the commands that list and explain them.

Optional: a handler that has no such thing simply lacks these methods. Only the handler knows
what a workflow file means; the processor shows what it says.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from processor.models import Model, Scalar
from processor.store import Store


class ParameterFacts(Model):
    """Something that a job may set by name."""

    name: str
    type: str
    default: Scalar | None = None
    required: bool = False
    min: float | None = None
    max: float | None = None
    choices: list[Scalar] | None = None
    description: str = ""
    targets: list[str] = []
    """Where it goes in the graph, as `node id.input`."""


class WorkflowFacts(Model):
    """A workflow as people choose it."""

    name: str
    """What a job's `workflow` says."""
    title: str = ""
    description: str = ""
    source: str
    """`ready`, or the store key that it was read from."""
    gpu: str | None = None
    typical_seconds: float | None = None
    parameters: list[ParameterFacts] = []
    found: bool = False
    """The parameters were found in a graph that declares none."""
    models: list[str] = []
    """As `folder/file`, under `comfy_models/`."""
    nodes: int = 0
    example: dict[str, Any] = {}
    """Fields of a job that shows what it is for."""
    problem: str | None = None
    """Why it can't be used; then nothing but its name is known."""


@runtime_checkable
class Catalogue(Protocol):
    """A handler that knows named workflows."""

    def workflows(self, store: Store | None) -> list[WorkflowFacts]:
        """The ready ones, and those that users keep in the bucket.

        Cost: none without a store; 1 request per 1,000 keys, and 1 a workflow.
        """
        ...

    def workflow(self, name: str, store: Store | None) -> WorkflowFacts:
        """One of them.

        Raises:
            JobInvalid: there is none of that name; the nearest is given.
        Cost: none for a ready one, up to 4 requests otherwise.
        """
        ...
