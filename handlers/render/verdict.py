"""ComfyUI's answers, turned into ours: validation errors, history entries, failures."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from handlers.render.catalog import FILE_INPUTS, MODEL_INPUTS
from handlers.render.graph import Graph, describe, nearest, owner_of
from handlers.render.preflight import CONNECT_HOW_TO
from processor.errors import ErrorKind, TaskFailed
from processor.redact import redact

_TERMINAL = frozenset({"execution_success", "execution_error", "execution_interrupted"})
_OUT_OF_MEMORY = (
    "cuda out of memory",
    "allocation on device",
    "out of memory on your gpu",
    "mps backend out of memory",
)
_DEAD_DEVICE = ("cuda error", "device-side assert", "unspecified launch failure")
_MAX_TEXT = 2_000


@dataclass(frozen=True)
class Verdict:
    """How a prompt ended well: its outputs per node and the engine's own seconds."""

    prompt_id: str
    outputs: dict[str, dict[str, Any]]
    seconds: float | None
    cached: frozenset[str] = field(default_factory=frozenset)
    owners: dict[str, str] = field(default_factory=dict)
    """For nodes that others expanded into, the node that shows what they do."""


def read_history(entry: dict[str, Any], prompt_id: str, graph: Graph) -> Verdict:
    """The verdict of a history entry, taken from its last terminal message.

    `ExecutionBlocked` is an error message that ends nothing: a node only declined to run.

    Raises:
        TaskFailed: the prompt failed or was interrupted.
    """
    status = entry.get("status") or {}
    messages = [
        message for message in status.get("messages") or [] if isinstance(message, list) and len(message) == 2
    ]
    terminal = [
        (kind, data)
        for kind, data in messages
        if kind in _TERMINAL and (data or {}).get("exception_type") != "ExecutionBlocked"
    ]
    kind, data = terminal[-1] if terminal else ("execution_success" if status.get("completed") else "", {})
    if kind == "execution_error":
        raise failure_of(data, graph)
    if kind == "execution_interrupted":
        raise TaskFailed(ErrorKind.UNAVAILABLE, "the prompt was interrupted at the engine, not by this job")
    if kind != "execution_success":
        raise TaskFailed(ErrorKind.CRASHED, "the engine's history does not say how the prompt ended")
    outputs = entry.get("outputs")
    return Verdict(
        prompt_id,
        outputs if isinstance(outputs, dict) else {},
        _seconds(messages),
        frozenset(
            node for kind, data in messages if kind == "execution_cached" for node in data.get("nodes", [])
        ),
        _owners(entry.get("meta")),
    )


def _owners(meta: Any) -> dict[str, str]:
    known = meta.items() if isinstance(meta, dict) else ()
    return {
        node_id: str(of["display_node"])
        for node_id, of in known
        if isinstance(of, dict) and of.get("display_node") not in (None, node_id)
    }


def failure_of(error: dict[str, Any], graph: Graph) -> TaskFailed:
    """The failure that an `execution_error` reports, without the inputs it quotes."""
    node_id = owner_of(graph, str(error.get("node_id")))
    exception = str(error.get("exception_type") or "")
    message = redact(str(error.get("exception_message") or "").strip())[:_MAX_TEXT]
    trace = [redact(str(line).rstrip())[:500] for line in (error.get("traceback") or [])[-12:]]
    place = describe(graph, node_id)
    if is_out_of_memory(exception, message):
        return TaskFailed(
            ErrorKind.OUT_OF_MEMORY,
            f"{place}: the GPU ran out of memory",
            where=node_id,
            mend="A smaller picture or batch, or a bigger `gpu`, needs less of it",
            details=[message],
        )
    if any(sign in message.casefold() for sign in _DEAD_DEVICE):
        return TaskFailed(
            ErrorKind.CRASHED, f"{place}: the GPU failed: {message}", where=node_id, details=trace
        )
    text = message or exception or "failed without a message"
    return TaskFailed(ErrorKind.NODE_FAILED, f"{place}: {text}", where=node_id, details=[exception, *trace])


def is_out_of_memory(exception: str, message: str) -> bool:
    """Whether an exception of the engine means that its GPU memory was too small."""
    if exception.rpartition(".")[2] == "OutOfMemoryError":
        return True
    folded = message.casefold()
    # "CUDA error: out of memory" leaves the device unusable, so it counts as a crash.
    return any(sign in folded for sign in _OUT_OF_MEMORY)


def rejection_of(answer: dict[str, Any], graph: Graph) -> TaskFailed:
    """The failure that a 400 of `POST /prompt` reports, readable."""
    error = answer.get("error")
    error = error if isinstance(error, dict) else {"message": str(error)}
    kind = str(error.get("type") or "")
    text = redact(str(error.get("message") or "the engine refused the prompt"))[:_MAX_TEXT]
    if kind == "invalid_prompt" and "does not exist" in text:
        node_id = str(error.get("details") or "").rpartition("#")[2].strip("'\" ")
        what = f"{describe(graph, node_id)}: the engine has no node of this class"
        return TaskFailed(ErrorKind.MISSING_NODE, what, where=node_id, mend=CONNECT_HOW_TO)
    if kind in ("missing_node_type", "prompt_no_outputs"):
        return _without_node_errors(kind, error, graph)
    problems = node_problems(answer.get("node_errors") or {}, graph)
    if problems:
        return _worst(problems)
    details = redact(str(error.get("details") or ""))[:_MAX_TEXT]
    return TaskFailed(ErrorKind.INVALID, f"{text}: {details}" if details else text, where="workflow")


def _without_node_errors(kind: str, error: dict[str, Any], graph: Graph) -> TaskFailed:
    if kind == "prompt_no_outputs":
        mend = "Add a SaveImage (or another save node)"
        return TaskFailed(
            ErrorKind.INVALID, "no node of this graph saves anything", where="workflow", mend=mend
        )
    # Newer versions name the class in extra_info.
    info = error.get("extra_info") or {}
    node_id = str(info.get("node_id") or "")
    what = f"{describe(graph, node_id)}: the engine has no node of this class"
    return TaskFailed(ErrorKind.MISSING_NODE, what, where=node_id, mend=CONNECT_HOW_TO)


def node_problems(node_errors: dict[str, Any], graph: Graph) -> list[TaskFailed]:
    """Each validation error of each node, in the order of the graph."""
    order = {node_id: index for index, node_id in enumerate(graph)}
    problems: list[TaskFailed] = []
    for node_id in sorted(node_errors, key=lambda known: order.get(known, len(order))):
        problems.extend(
            _node_problem(error, node_id, graph)
            for error in node_errors[node_id].get("errors") or []
            if isinstance(error, dict)
        )
    return problems


def partly_invalid(node_errors: dict[str, Any], graph: Graph) -> TaskFailed:
    """The failure of a prompt that the engine accepted without some of its outputs."""
    problems = node_problems(node_errors, graph)
    dropped = sorted(
        {output for error in node_errors.values() for output in error.get("dependent_outputs") or []}
    )
    worst = _worst(problems) if problems else TaskFailed(ErrorKind.INVALID, "some outputs fail validation")
    names = ", ".join(describe(graph, node_id) for node_id in dropped)
    extra = f"so {names} would be left out" if names else "so outputs would be left out"
    mend = (
        f"{worst.mend}; or set allow_invalid_outputs"
        if worst.mend
        else "Mend it, or set allow_invalid_outputs"
    )
    return TaskFailed(
        worst.kind, f"{worst.what}, {extra}", where=worst.where, mend=mend, details=worst.details
    )


def _worst(problems: list[TaskFailed]) -> TaskFailed:
    order = (ErrorKind.MISSING_NODE, ErrorKind.MISSING_MODEL, ErrorKind.BAD_INPUT, ErrorKind.INVALID)
    worst = min(problems, key=lambda problem: order.index(problem.kind))
    details = [
        f"{problem.what}. {problem.mend}" if problem.mend else problem.what for problem in problems[:100]
    ]
    return TaskFailed(
        worst.kind,
        worst.what,
        where=worst.where,
        mend=worst.mend,
        details=details if len(details) > 1 else [],
    )


def _node_problem(error: dict[str, Any], node_id: str, graph: Graph) -> TaskFailed:
    extra = error.get("extra_info")
    info: dict[str, Any] = extra if isinstance(extra, dict) else {}
    kind = str(error.get("type") or "")
    details = redact(str(error.get("details") or ""))[:_MAX_TEXT]
    name = str(info.get("input_name") or details.partition(" ")[0].rstrip(":,"))
    class_type = graph.get(node_id, {}).get("class_type", "")
    place, where = f"{describe(graph, node_id)}: {name}", f"{node_id}.{name}"
    received = repr(info.get("received_value"))[:200]
    options = _options(info.get("input_config"))
    match kind:
        case "value_not_in_list":
            known = [str(choice) for choice in options.get("choices", [])]
            near = nearest(str(info.get("received_value")), known, what="allowed values") if known else None
            if name in MODEL_INPUTS.get(class_type, {}):
                folder = MODEL_INPUTS[class_type][name]
                mend = f"Upload it under comfy_models/{folder}/. {near or ''}".strip()
                return TaskFailed(
                    ErrorKind.MISSING_MODEL,
                    f"{place} {received}: the engine has no such model",
                    where=where,
                    mend=mend,
                )
            return TaskFailed(
                ErrorKind.INVALID, f"{place} {received} is not an allowed value", where=where, mend=near
            )
        case "required_input_missing":
            return TaskFailed(
                ErrorKind.INVALID,
                f"{describe(graph, node_id)}: the required input {name} is missing",
                where=where,
            )
        case "value_smaller_than_min":
            return TaskFailed(
                ErrorKind.INVALID,
                f"{place} {received} is below the smallest allowed, {options.get('min')}",
                where=where,
            )
        case "value_bigger_than_max":
            return TaskFailed(
                ErrorKind.INVALID,
                f"{place} {received} is above the largest allowed, {options.get('max')}",
                where=where,
            )
        case "return_type_mismatch" | "bad_linked_input":
            return TaskFailed(ErrorKind.INVALID, f"{place}: {error.get('message')} ({details})", where=where)
        case "custom_validation_failed" if name in FILE_INPUTS.get(class_type, ()):
            return TaskFailed(
                ErrorKind.BAD_INPUT, f"{place}: {details.partition(' - ')[2] or details}", where=where
            )
        case "exception_during_inner_validation" if str(info.get("exception_type")) == "KeyError":
            missing = details.strip("'")
            what = f"{describe(graph, node_id)} is linked to node {missing}, which is not in the graph"
            return TaskFailed(ErrorKind.INVALID, what, where=node_id, mend="Export the workflow again")
        case _:
            what = f"{describe(graph, node_id)}: {error.get('message') or kind}: {details}"
            return TaskFailed(ErrorKind.INVALID, what, where=where if name else node_id)


def _options(config: Any) -> dict[str, Any]:
    """`input_config` as `{"choices", "min", "max", …}`; it is `[type or choices, options]`."""
    if not isinstance(config, list) or not config:
        return {}
    options = dict(config[1]) if len(config) > 1 and isinstance(config[1], dict) else {}
    choices = config[0] if isinstance(config[0], list) else options.get("options")
    return options | ({"choices": choices} if isinstance(choices, list) else {})


def _seconds(messages: list[list[Any]]) -> float | None:
    """From start to end by the engine's clock; its timestamps are milliseconds."""
    stamps = {kind: data.get("timestamp") for kind, data in messages if isinstance(data, dict)}
    began, ended = stamps.get("execution_start"), stamps.get("execution_success")
    if isinstance(began, (int, float)) and isinstance(ended, (int, float)) and ended >= began:
        return (ended - began) / 1000.0
    return None
