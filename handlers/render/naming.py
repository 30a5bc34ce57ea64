"""The names a job may use for a graph's inputs, and what each sets."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from handlers.render.graph import (
    Graph,
    Schema,
    Set,
    Target,
    describe,
    find_nodes,
    input_specs,
    is_link,
    nearest,
    target_of,
    title_of,
)
from handlers.render.parameters import find_parameters
from handlers.render.workflow import Parameter, coerce
from processor.errors import JobInvalid

_WHOLE = re.compile(r"\s*[+-]?[0-9]{1,30}\s*")
_SCALAR_TYPES = {"INT": "int", "FLOAT": "float", "BOOLEAN": "bool", "STRING": "string"}


@dataclass(frozen=True)
class Binding:
    """A name with the inputs it sets."""

    name: str
    targets: tuple[Target, ...]
    parameter: Parameter | None
    types: tuple[str | None, ...]
    """Per target, the type that texts are turned into; None leaves them."""

    def sets(self, value: Any, *, where: str) -> list[Set]:
        """The changes that giving this name a value makes.

        Raises:
            JobInvalid: the value does not fit.
        """
        if self.parameter is not None:
            value = self.parameter.coerce(value, where=where)
        return [
            Set(target.node, target.input, _fit(value, type_, where=where))
            for target, type_ in zip(self.targets, self.types, strict=True)
        ]


class Binder:
    """Resolves names against one graph: a declared parameter first, then `node.input` by id
    or title, then what was found automatically."""

    def __init__(
        self, graph: Graph, declared: Mapping[str, Parameter] | None = None, schema: Schema | None = None
    ) -> None:
        self._graph = graph
        self._declared = dict(declared or {})
        self._found = find_parameters(graph)
        self._schema = schema or {}
        self._bound: dict[str, Binding] = {}

    @property
    def parameters(self) -> dict[str, Parameter]:
        """What the workflow declares, else what was found."""
        return self._declared or self._found

    def targets(self, name: str) -> tuple[Target, ...]:
        """The inputs of a parameter; none when there is no such parameter."""
        parameter = self._declared.get(name) or self._found.get(name)
        return () if parameter is None else self._targets_of(parameter)

    def bind(self, name: str, *, where: str) -> Binding:
        """The inputs that `name` means.

        Raises:
            JobInvalid: nothing or too much is called so; the nearest known name is given.
        """
        if name not in self._bound:
            self._bound[name] = self._resolve(name, where)
        return self._bound[name]

    def overrides(self, overrides: Mapping[str, Any], *, where: str = "overrides") -> list[Set]:
        """All changes that a job's `overrides` make, in their order."""
        sets: list[Set] = []
        for name, value in overrides.items():
            place = f"{where}.{name}"
            if (
                isinstance(value, dict)
                and name not in self._declared
                and (nodes := find_nodes(self._graph, name))
            ):
                sets.extend(self._node_sets(self._one(nodes, name, place), value, place))
            else:
                sets.extend(self.bind(name, where=place).sets(value, where=place))
        return sets

    def _resolve(self, name: str, where: str) -> Binding:
        if name in self._declared:
            return self._bind_parameter(name, self._declared[name])
        if (target := self._dotted(name, where)) is not None:
            return Binding(name, (target,), None, (self._type_of(target),))
        if name in self._found:
            return self._bind_parameter(name, self._found[name])
        if nodes := find_nodes(self._graph, name):
            inputs = self._inputs(nodes[0])
            example = next((known for known in inputs if not is_link(inputs[known])), "input")
            raise JobInvalid(
                f"{name!r} is {describe(self._graph, nodes[0])}; which of its inputs is meant?",
                where=where,
                mend=f'Write "{name}.{example}", or {{"{name}": {{"{example}": …}}}}',
            )
        raise self._unknown(name, where)

    def _bind_parameter(self, name: str, parameter: Parameter) -> Binding:
        targets = self._targets_of(parameter)
        return Binding(name, targets, parameter, (None,) * len(targets))

    def _targets_of(self, parameter: Parameter) -> tuple[Target, ...]:
        found = (target_of(self._graph, target) for target in parameter.targets)
        return tuple(target for target in found if target is not None)

    def _dotted(self, name: str, where: str) -> Target | None:
        """`node.input`; ids and titles may hold dots themselves, so every cut is tried."""
        cuts = [index for index, letter in enumerate(name) if letter == "."]
        for cut in reversed(cuts):
            reference, input_name = name[:cut], name[cut + 1 :]
            nodes = find_nodes(self._graph, reference)
            if nodes and input_name:
                node_id = self._one(nodes, reference, where)
                self._check_input(node_id, input_name, where)
                return Target(node_id, input_name)
        return None

    def _node_sets(self, node_id: str, value: dict[str, Any], where: str) -> list[Set]:
        if isinstance(value.get("inputs"), dict) and "inputs" not in self._inputs(node_id):
            changes, extra = value["inputs"], value.keys() - {"inputs", "_meta", "class_type"}
            if (
                extra
                or value.get("class_type", self._graph[node_id]["class_type"])
                != self._graph[node_id]["class_type"]
            ):
                raise JobInvalid("only inputs can be overridden, not the node itself", where=where)
        else:
            changes = value
        for name in changes:
            self._check_input(node_id, name, where)
        return [
            Set(node_id, name, _fit(new, self._type_of(Target(node_id, name)), where=f"{where}.{name}"))
            for name, new in changes.items()
        ]

    def _inputs(self, node_id: str) -> dict[str, Any]:
        inputs: dict[str, Any] = self._graph[node_id]["inputs"]
        return inputs

    def _check_input(self, node_id: str, name: str, where: str) -> None:
        info = self._schema.get(self._graph[node_id]["class_type"])
        known = list(input_specs(info)) if info else []
        inputs = self._inputs(node_id)
        if name not in inputs and name not in known:
            raise JobInvalid(
                f"{describe(self._graph, node_id)} has no input {name!r}",
                where=where,
                mend=nearest(name, [*inputs, *known], what="inputs"),
            )

    def _type_of(self, target: Target) -> str | None:
        info = self._schema.get(self._graph[target.node]["class_type"])
        spec = input_specs(info).get(target.input) if info else None
        if spec and isinstance(spec[0], str) and spec[0] in _SCALAR_TYPES:
            return _SCALAR_TYPES[spec[0]]
        match self._inputs(target.node).get(target.input):
            case bool():
                return "bool"
            case int() | float():
                return "float"
            case str():
                return "string"
            case _:
                return None

    def _one(self, nodes: list[str], reference: str, where: str) -> str:
        if len(nodes) > 1:
            listed = ", ".join(nodes[:12])
            raise JobInvalid(
                f"{len(nodes)} nodes are titled {reference!r}",
                where=where,
                mend=f"Name one by its id: {listed}",
            )
        return nodes[0]

    def _unknown(self, name: str, where: str) -> JobInvalid:
        parameters = list(self.parameters)
        node = name.rpartition(".")[0]
        if node:
            titles = [title_of(self._graph, node_id) for node_id in self._graph]
            return JobInvalid(
                f"there is no node {node!r} in the graph",
                where=where,
                mend=nearest(node, [*titles, *self._graph], what="nodes"),
            )
        known: Iterable[str] = [*parameters, *(title_of(self._graph, node_id) for node_id in self._graph)]
        return JobInvalid(
            f"{name!r} is neither a parameter nor a node of this workflow",
            where=where,
            mend=nearest(name, parameters or known, what="parameters"),
        )


def _fit(value: Any, type_: str | None, *, where: str) -> Any:
    # Only texts are converted (a CSV has nothing else): a wrong JSON value is for preflight.
    if not isinstance(value, str) or type_ in (None, "string"):
        return value
    if type_ in ("int", "float") and _WHOLE.fullmatch(value):
        return int(value)  # not by way of a float, which holds no seed beyond 2**53
    number = coerce(value, type_ or "string", where=where)
    # An export writes 8.0 as 8: keep whole numbers whole.
    return int(number) if isinstance(number, float) and number.is_integer() and "." not in value else number
