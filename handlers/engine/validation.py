"""Whether a prompt can run, in the words that ComfyUI's clients know.

The checks, their order and what stops a check follow `POST /prompt` of ComfyUI 0.3.64 as observed: outputs
are validated one by one with all that they need; a prompt runs when at least one output is valid, and the
others are reported and dropped.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from handlers.engine.files import Folders
from handlers.engine.graph import Prompt
from handlers.engine.limits import Limits
from handlers.engine.schema import Input, Node

Error = dict[str, Any]
"""One `{type, message, details, extra_info}`."""

_CONVERT = {"INT": int, "FLOAT": float, "STRING": str, "BOOLEAN": bool}
_LONGEST_QUOTED_LIST = 20


class MalformedPrompt(Exception):
    """What is sent is no graph at all; ComfyUI answers a bare 500."""


@dataclass(slots=True)
class Verdict:
    """What validation found.

    Attributes:
        error: why the prompt is refused, or None.
        outputs: the output nodes to run, in the prompt's order.
        node_errors: by node id; not empty even for an accepted prompt when some outputs were dropped.
    """

    error: Error | None = None
    outputs: list[str] = field(default_factory=list)
    node_errors: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class _Checked:
    """A node's result: valid, or not (perhaps only because of what it reads, then without errors)."""

    valid: bool
    errors: list[Error]


def validate_prompt(
    prompt: Prompt,
    nodes: Mapping[str, Node],
    folders: Folders,
    limits: Limits,
    targets: Iterable[str] | None = None,
) -> Verdict:
    """Check a prompt, and convert its constants in place to the declared types.

    Args:
        targets: run only these output nodes.
    Raises:
        MalformedPrompt: it is no graph.
    """
    if len(prompt) > limits.nodes:
        return _refused("invalid_prompt", f"The graph has more than {limits.nodes} nodes.", f"{len(prompt)}")
    outputs = []
    for node_id in prompt:
        name = _class_type(prompt, node_id)
        if name is None:
            problem = "Cannot execute because a node is missing the class_type property."
            return _refused("invalid_prompt", problem, f"Node ID '#{node_id}'")
        if name not in nodes:
            problem = f"Cannot execute because node {name} does not exist."
            return _refused("invalid_prompt", problem, f"Node ID '#{node_id}'")
        if nodes[name].is_output and (targets is None or node_id in targets):
            outputs.append(node_id)
    if not outputs:
        return _refused("prompt_no_outputs", "Prompt has no outputs")
    return _Validation(prompt, nodes, folders).run(outputs)


def _class_type(prompt: Any, node_id: Any) -> str | None:
    """The node's class name, None when it says none."""
    if not isinstance(prompt, dict):
        raise MalformedPrompt(f"a prompt is an object of nodes by id, not {type(prompt).__name__}")
    node = prompt[node_id]
    if isinstance(node, dict | list | str) and "class_type" not in node:
        return None
    if isinstance(node, dict) and isinstance(node["class_type"], str | int | float | None):
        return str(node["class_type"])
    raise MalformedPrompt(f"node {node_id} is no object with a class_type and inputs")


def _refused(kind: str, message: str, details: str = "") -> Verdict:
    return Verdict(error=_error(kind, message, details))


def _error(kind: str, message: str, details: str, **extra_info: Any) -> Error:
    return {"type": kind, "message": message, "details": details, "extra_info": extra_info}


def _raised(error: Exception) -> dict[str, Any]:
    name = type(error).__qualname__
    return {"exception_type": name, "traceback": traceback.format_tb(error.__traceback__)}


class _Validation:
    """One prompt's validation; what is read by several nodes is checked once."""

    def __init__(self, prompt: Prompt, nodes: Mapping[str, Node], folders: Folders) -> None:
        self._prompt = prompt
        self._nodes = nodes
        self._folders = folders
        self._checked: dict[str, _Checked] = {}

    def run(self, outputs: list[str]) -> Verdict:
        verdict = Verdict()
        reasons: list[str] = []
        for output in outputs:
            checked = self._check_output(output)
            if checked.valid:
                verdict.outputs.append(output)
                continue
            reasons += [f"{error['message']}: {error['details']}" for error in checked.errors]
            for node_id, result in self._checked.items():
                if not result.valid and result.errors:
                    entry = verdict.node_errors.setdefault(node_id, self._entry(node_id, result))
                    entry["dependent_outputs"].append(output)
        if not verdict.outputs:
            message = "Prompt outputs failed validation"
            verdict.error = _error("prompt_outputs_failed_validation", message, "\n".join(reasons))
        return verdict

    def _entry(self, node_id: str, result: _Checked) -> dict[str, Any]:
        class_type = self._prompt[node_id]["class_type"]
        return {"errors": result.errors, "dependent_outputs": [], "class_type": class_type}

    def _check_output(self, output: str) -> _Checked:
        try:
            return self._check(output)
        except Exception as error:  # noqa: BLE001 - whatever a graph provokes is an error of that graph
            problem = _error(
                "exception_during_validation", "Exception when validating node", str(error), **_raised(error)
            )
            self._checked[output] = _Checked(valid=False, errors=[problem])
            return self._checked[output]

    def _check(self, node_id: str) -> _Checked:
        """Check a node and all that it reads."""
        if node_id in self._checked:
            return self._checked[node_id]
        # stands while the node's own inputs are checked: a cycle meets it, and fails without a reason
        self._checked[node_id] = _Checked(valid=False, errors=[])
        try:
            checked = self._check_node(node_id)
        except Exception:
            del self._checked[node_id]
            raise
        del self._checked[node_id]  # so that errors are listed in the order in which nodes are finished
        self._checked[node_id] = checked
        return checked

    def _check_node(self, node_id: str) -> _Checked:
        inputs = self._prompt[node_id]["inputs"]
        node = self._nodes[self._prompt[node_id]["class_type"]]
        errors: list[Error] = []
        sources_valid = True
        for name, spec in {**node.inputs, **node.optional}.items():
            if name not in inputs:
                if name in node.inputs:
                    message = "Required input is missing"
                    errors.append(_error("required_input_missing", message, name, input_name=name))
            elif isinstance(inputs[name], list):
                error, source_valid = self._check_link(name, inputs[name], spec)
                errors += error
                sources_valid = sources_valid and source_valid
            else:
                errors += self._check_constant(node, name, inputs, spec)
        errors += self._check_custom(node, inputs)
        return _Checked(valid=sources_valid and not errors, errors=errors)

    def _check_link(self, name: str, link: list[Any], spec: Input) -> tuple[list[Error], bool]:
        """The errors of a link, and whether what it leads to is valid."""
        config = spec.config(self._folders)
        if len(link) != 2:
            message = "Bad linked input, must be a length-2 list of [node_id, slot_index]"
            extra = {"input_name": name, "input_config": config, "received_value": link}
            return [_error("bad_linked_input", message, name, **extra)], True
        source = link[0]
        received = self._nodes[self._prompt[source]["class_type"]].outputs[link[1]]
        wanted = config[0]
        if not _compatible(received, wanted):
            details = f"{name}, received_type({received}) mismatch input_type({wanted})"
            extra = {
                "input_name": name,
                "input_config": config,
                "received_type": received,
                "linked_node": link,
            }
            return [
                _error("return_type_mismatch", "Return type mismatch between linked nodes", details, **extra)
            ], True
        try:
            return [], self._check(source).valid
        except Exception as error:  # noqa: BLE001 - as above
            raised = _raised(error)
            extra = {"input_name": name, "input_config": config, "exception_message": str(error), **raised}
            problem = _error(
                "exception_during_inner_validation",
                "Exception when validating inner node",
                str(error),
                **extra,
                linked_node=link,
            )
            self._checked[source] = _Checked(valid=False, errors=[problem])
            return [], False

    def _check_constant(self, node: Node, name: str, inputs: dict[str, Any], spec: Input) -> list[Error]:
        value = inputs[name]
        if isinstance(value, dict) and "__value__" in value:  # how a client sends a list that is no link
            value = inputs[name] = value["__value__"]
        kind, options = spec.config(self._folders)
        extra = {"input_name": name, "input_config": [kind, options], "received_value": value}
        convert = None if isinstance(kind, list) else _CONVERT.get(kind)
        if convert is not None:
            try:
                value = inputs[name] = convert(value)
            except Exception as error:  # noqa: BLE001 - int() and float() raise several kinds
                message = f"Failed to convert an input value to a {kind} value"
                details = f"{name}, {value}, {error}"
                return [_error("invalid_input_type", message, details, **extra, exception_message=str(error))]
        if name in node.validates:
            return []
        extra["received_value"] = value
        if "min" in options and value < options["min"]:
            message = f"Value {value} smaller than min of {options['min']}"
            return [_error("value_smaller_than_min", message, name, **extra)]
        if "max" in options and value > options["max"]:
            message = f"Value {value} bigger than max of {options['max']}"
            return [_error("value_bigger_than_max", message, name, **extra)]
        if isinstance(kind, list) and value not in kind:
            quoted = str(kind)
            if len(kind) > _LONGEST_QUOTED_LIST:
                quoted, extra["input_config"] = f"(list of length {len(kind)})", None
            details = f"{name}: '{value}' not in {quoted}"
            return [_error("value_not_in_list", "Value not in list", details, **extra)]
        return []

    def _check_custom(self, node: Node, inputs: dict[str, Any]) -> list[Error]:
        """The node's own check of the inputs that it takes over."""
        given = {name: inputs[name] for name in inputs if name in node.validates}
        if node.validate is None or not given:
            return []
        answer = node.validate(self._folders, **given)
        if answer is True:
            return []
        message = "Custom validation failed for node"
        return [
            _error("custom_validation_failed", message, f"{name} - {answer}", input_name=name)
            for name in given
        ]


def _compatible(received: str, wanted: str | list[str]) -> bool:
    return received == wanted or (isinstance(wanted, str) and received in wanted.split(","))
